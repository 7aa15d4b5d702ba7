"""The journal of a running job: what is finished for good, kept beside the output until the output is whole."""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self, cast

from ultraflash_cli.errors import OutputError

__all__ = ["Journal", "OutputLock", "SegmentEntry", "count_frames", "is_work_folder", "work_folder"]

_FORMAT = 1
_PREFIX, _SUFFIX = ".", ".ultraflash"
_JOURNAL, _LOCK = "journal.jsonl", "lock"


def work_folder(output: Path) -> Path:
    """Give the hidden folder beside `output` that holds its unfinished work."""
    return output.with_name(f"{_PREFIX}{output.name}{_SUFFIX}")


def is_work_folder(path: Path) -> bool:
    """Tell whether `path` is a folder that an unfinished run has made."""
    named = path.name.startswith(_PREFIX) and path.name.endswith(_SUFFIX)
    return named and path.is_dir() and (path / _LOCK).is_file()


def count_frames(folder: Path) -> int:
    """Count the frames that the run in a work folder has finished for good."""
    found = _read(folder / _JOURNAL)
    return found[1][-1].end_frame if found is not None and found[1] else 0


@dataclass(frozen=True, kw_only=True)
class SegmentEntry:
    """One finished segment: frames `first_frame` to `end_frame` (not included) of the output."""

    file: str
    """Name inside the work folder; the writer of segments may keep more files whose names begin with it."""
    size_bytes: int
    first_frame: int
    end_frame: int
    scene_first: int
    """The first frame of the scene that the segment belongs to."""
    state: str | None
    """File with the cascade's state after the last frame; None where a new scene begins there."""
    state_sha256: str | None


class OutputLock:
    """An exclusive lock on a work folder for as long as the object is open; the system frees it if we die."""

    def __init__(self, folder: Path) -> None:
        """Create `folder` if need be and lock it; raises OutputError when another process has it."""
        self.folder = folder
        path = folder / _LOCK
        while True:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            except OSError as error:
                raise OutputError(f"cannot write in {folder.parent}: {error.strerror}") from error
            if not _lock(self._descriptor):
                os.close(self._descriptor)
                raise OutputError(
                    f"another run is writing {_output_name(folder)} in {folder.parent}; wait for it or stop it"
                )
            # The run that had the lock before us may have deleted the folder while we were opening it.
            if path.exists() and path.stat().st_ino == os.fstat(self._descriptor).st_ino:
                return
            os.close(self._descriptor)

    def close(self) -> None:
        """Free the lock."""
        os.close(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Journal:
    """What is finished, in the order of the output; every change is on disk before the call returns."""

    def __init__(self, folder: Path, fingerprint: Mapping[str, object]) -> None:
        """Open the journal in `folder` (locked by the caller); what was made under another fingerprint is deleted.

        `fresh_because` then says in a few words what has changed. Raises OutputError when the folder cannot be written.
        """
        self.folder = folder
        self.segments: list[SegmentEntry] = []
        self.complete = False
        self.fresh_because: str | None = None
        self._path = folder / _JOURNAL
        # Through JSON and back, so that tuples and numbers compare as they will when read again.
        self._fingerprint = cast(dict[str, object], json.loads(json.dumps(dict(fingerprint))))
        found = _read(self._path)
        if found is None:
            self._clear()
            self._rewrite()
            return
        old, entries, complete = found
        self.fresh_because = _difference(old, self._fingerprint)
        if self.fresh_because is not None:
            self._clear()
        else:
            self.segments = self._usable(entries)
            self.complete = complete and len(self.segments) == len(entries)
            self._clear(keep=[entry.file for entry in self.segments])
        self._rewrite()

    @property
    def frames(self) -> int:
        """Frames of the output that are finished for good."""
        return self.segments[-1].end_frame if self.segments else 0

    @property
    def files(self) -> list[Path]:
        """The finished segments in order."""
        return [self.folder / entry.file for entry in self.segments]

    def segment_path(self) -> Path:
        """Give the path where the next segment is to be written."""
        return self.folder / f"segment-{len(self.segments):06d}.video"

    def state_bytes(self) -> bytes | None:
        """Read the state after the last segment; None where a new scene begins."""
        name = self._last_state()
        return (self.folder / name).read_bytes() if name is not None else None

    def add(self, path: Path, *, first_frame: int, end_frame: int, scene_first: int, state: bytes | None) -> None:
        """Enter a finished, synced segment together with the state after it; the state before it is deleted.

        Raises OSError as the file system gives it.
        """
        before = self._last_state()
        state_name = state_sha256 = None
        if state is not None:
            state_sha256 = hashlib.sha256(state).hexdigest()
            state_name = f"state-{len(self.segments):06d}.safetensors"
            _write_synced(self.folder / state_name, state)
        entry = SegmentEntry(
            file=path.name,
            size_bytes=path.stat().st_size,
            first_frame=first_frame,
            end_frame=end_frame,
            scene_first=scene_first,
            state=state_name,
            state_sha256=state_sha256,
        )
        self._append({"segment": asdict(entry)})
        self.segments.append(entry)
        if before is not None:
            (self.folder / before).unlink(missing_ok=True)

    def finish(self) -> None:
        """Note that the last segment ends the clip; only joining is left."""
        self._append({"complete": True})
        self.complete = True

    def delete(self) -> None:
        """Delete the work folder with all that is in it."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _last_state(self) -> str | None:
        return self.segments[-1].state if self.segments else None

    def _usable(self, entries: list[SegmentEntry]) -> list[SegmentEntry]:
        """Give the longest run of segments that are whole and can be continued from."""
        whole = 0
        for entry in entries:
            path = self.folder / entry.file
            if not path.is_file() or path.stat().st_size != entry.size_bytes:
                break
            whole += 1
        usable = entries[:whole]
        while usable and not self._has_state(usable[-1]):
            usable.pop()
        return usable

    def _has_state(self, entry: SegmentEntry) -> bool:
        """Tell whether the work can go on after `entry`."""
        if entry.state is None:
            return True
        path = self.folder / entry.state
        return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == entry.state_sha256

    def _rewrite(self) -> None:
        records: list[dict[str, object]] = [{"format": _FORMAT, "fingerprint": self._fingerprint}]
        records.extend({"segment": asdict(entry)} for entry in self.segments)
        if self.complete:
            records.append({"complete": True})
        text = "".join(json.dumps(record) + "\n" for record in records)
        scratch = self._path.with_suffix(".new")
        try:
            _write_synced(scratch, text.encode())
            scratch.replace(self._path)
            _sync_folder(self.folder)
        except OSError as error:
            raise OutputError(f"cannot write in {self.folder}: {error.strerror}") from error

    def _append(self, record: dict[str, object]) -> None:
        with self._path.open("ab") as file:
            file.write(json.dumps(record).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        _sync_folder(self.folder)

    def _clear(self, keep: Sequence[str] = ()) -> None:
        """Delete all but the journal, the last state and the segments to `keep` with what lies beside them."""
        for path in self.folder.iterdir():
            if path.name not in (_LOCK, _JOURNAL, self._last_state()) and not path.name.startswith(tuple(keep)):
                path.unlink(missing_ok=True)


def _read(path: Path) -> tuple[dict[str, object], list[SegmentEntry], bool] | None:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    entries: list[SegmentEntry] = []
    fingerprint: dict[str, object] | None = None
    complete = False
    for line in lines:
        try:
            record = json.loads(line)
            if fingerprint is None:
                if record["format"] != _FORMAT:
                    return None
                fingerprint = record["fingerprint"]
            elif "segment" in record:
                entries.append(SegmentEntry(**record["segment"]))
            else:
                complete = bool(record["complete"])
        except (ValueError, KeyError, TypeError):
            # The line in hand when the power went.
            break
    return None if fingerprint is None else (fingerprint, entries, complete)


def _difference(old: Mapping[str, object], new: Mapping[str, object]) -> str | None:
    for name in [*new, *(name for name in old if name not in new)]:
        if old.get(name) != new.get(name):
            return f"{name} was {_short(old.get(name))} and is {_short(new.get(name))}"
    return None


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _output_name(folder: Path) -> str:
    return folder.name.removeprefix(_PREFIX).removesuffix(_SUFFIX)


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    try:
        import fcntl
    except ImportError:
        import msvcrt

        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # pyright: ignore[reportAttributeAccessIssue]
        except OSError:
            return False
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
