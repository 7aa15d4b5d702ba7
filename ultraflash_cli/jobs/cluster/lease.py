"""Ownership of a unit: a file that its owner keeps updating, and that others take over
once the updates stop. No clock of another machine or of the file server is trusted: the
owner increments a heartbeat counter, and waiting processes measure on their own clock
how long it has been unchanged. If both run on the same machine, the process itself is
checked.
"""

import json
import os
import socket
import threading
import uuid
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from ultraflash_cli.files import write_whole
from ultraflash_cli.jobs.cluster.units import read_json

__all__ = ["BEAT_S", "SILENCE_S", "Holder", "Lease", "Watch", "claim", "holder_of", "revoke", "this_process"]

BEAT_S = 5.0
"""Interval at which the owner updates its lease."""
SILENCE_S = 60.0
"""Time without an update after which an owner is presumed dead."""


@dataclass(frozen=True, kw_only=True)
class Holder:
    """A process that computes units."""

    owner: str
    """A unique name for the process."""
    host: str
    machine: str
    """The machine, its boot and its PID namespace; empty if the system does not report
    them."""
    process: int
    started: str
    """Start time of the process as reported by the system, because process IDs are
    reused."""

    @property
    def is_gone(self) -> bool:
        """Whether the process has certainly ended; this can only be known on its own
        machine."""
        return self.is_local and _started(self.process) != self.started

    @property
    def is_local(self) -> bool:
        """Whether the process certainly runs, or ran, on this machine."""
        return bool(self.machine) and self.machine == _machine()


def this_process() -> Holder:
    """Return this process as a holder."""
    number = os.getpid()
    return Holder(
        owner=uuid.uuid4().hex[:16],
        host=socket.gethostname(),
        machine=_machine(),
        process=number,
        started=_started(number),
    )


class Lease:
    """The lease of a unit held by this process and kept alive by a thread. Use as a
    context manager."""

    def __init__(self, path: Path, holder: Holder, *, beat_s: float = BEAT_S) -> None:
        self._path = path
        self._holder = holder
        self._beat_s = beat_s
        self._beats = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)
        self.frames_done = 0
        """Number of finished frames of the unit, readable by others."""
        self.fps = 0.0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        if self.is_mine:
            with suppress(OSError):
                self._path.unlink()

    @property
    def is_mine(self) -> bool:
        """Whether no other process has taken over the lease."""
        found = read_json(self._path)
        return found is not None and found.get("owner") == self._holder.owner

    def _beat(self) -> None:
        while not self._ended.wait(self._beat_s):
            if not self.is_mine:
                return
            self._beats += 1
            with suppress(OSError):  # a file server that is temporarily unavailable
                write_whole(self._path, _content(self._holder, self._beats, self.frames_done, self.fps))


def claim(path: Path, holder: Holder, *, beat_s: float = BEAT_S) -> Lease | None:
    """Take the lease at `path` if it is free; returns None if it is not. Raises OSError."""
    draft = path.with_name(f".lease.{holder.owner}")
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft.write_bytes(_content(holder, 0, 0, 0.0))
    try:
        _link(draft, path)
    except FileExistsError:
        return None
    finally:
        draft.unlink(missing_ok=True)
    return Lease(path, holder, beat_s=beat_s)


class Watch:
    """Observations of this process about other processes' leases."""

    def __init__(self, *, silence_s: float = SILENCE_S) -> None:
        self._silence_s = silence_s
        self._seen: dict[Path, tuple[str, float]] = {}

    def take_away(self, path: Path, now_s: float) -> bool:
        """Remove the lease at `path` if its owner is dead; `now_s` is this process's own clock.

        Returns whether this process has removed it. Raises OSError.
        """
        try:
            content = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            self._seen.pop(path, None)
            return False
        before, since_s = self._seen.get(path, ("", now_s))
        if content != before:
            self._seen[path] = (content, now_s)
            since_s = now_s
        if now_s - since_s < self._silence_s and not _is_gone(content):
            return False
        self._seen.pop(path, None)
        return _remove(path, content)


def revoke(path: Path, owner: str) -> bool:
    """Remove the lease of an owner known to be dead; returns whether it had one. Raises
    OSError."""
    try:
        content = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return False
    found = read_json(path)
    return found is not None and found.get("owner") == owner and _remove(path, content)


def _remove(path: Path, content: str) -> bool:
    """Remove a lease with this content; if several processes try, one succeeds."""
    taken = path.with_name(f".lease.{uuid.uuid4().hex[:16]}.old")
    try:
        path.rename(taken)
    except FileNotFoundError:
        return False
    if taken.read_text(encoding="utf-8") != content:
        # Another process was faster, and this is a new lease.
        with suppress(OSError):
            _link(taken, path)
        taken.unlink(missing_ok=True)
        return False
    taken.unlink(missing_ok=True)
    return True


def _link(draft: Path, path: Path) -> None:
    """Give a file a name that is not taken. Raises FileExistsError."""
    try:
        os.link(draft, path)
    except FileExistsError:
        raise
    except OSError:
        # A file system without hard links.
        with path.open("xb") as file:
            file.write(draft.read_bytes())


def _content(holder: Holder, beats: int, frames_done: int, fps: float) -> bytes:
    told = {**asdict(holder), "beats": beats, "frames_done": frames_done, "fps": round(fps, 3)}
    return json.dumps(told).encode()


def holder_of(content: str) -> Holder | None:
    """Return the holder named in a lease; None if there is none."""
    try:
        told = json.loads(content)
        names = ("owner", "host", "machine", "process", "started")
        return Holder(**{name: told[name] for name in names})
    except (ValueError, KeyError, TypeError):
        return None


def _is_gone(content: str) -> bool:
    holder = holder_of(content)
    return holder is not None and holder.is_gone


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _started(process: int) -> str:
    """Return the start time of a process; empty if no process has this ID, or only a
    zombie."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]
