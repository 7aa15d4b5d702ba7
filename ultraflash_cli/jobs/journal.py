"""The journal of a running job: what is finished for good, kept beside the output until the output is whole."""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self, cast

from ultraflash_cli.errors import OutputError

__all__ = [
    "SPOOL",
    "BegunEntry",
    "Journal",
    "MovedFile",
    "OutputLock",
    "Placement",
    "SegmentEntry",
    "count_frames",
    "discard",
    "empty",
    "fitted",
    "is_work_folder",
    "moved_files",
    "remove",
    "temp_work_folder",
    "unfinished_work",
    "work_folder",
]

_FORMAT = 1
_PREFIX, _SUFFIX = ".", ".ultraflash"
_LONGEST_NAME = 220
"""Bytes of a name that every file system takes, with room for what we put around it."""
_JOURNAL, _LOCK = "journal.jsonl", "lock"
SPOOL = "stdin"
"""File in a work folder for what comes through a pipe."""


def work_folder(output: Path) -> Path:
    """Give the hidden folder beside `output` that holds its unfinished work."""
    return output.with_name(f"{_PREFIX}{fitted(output.name)}{_SUFFIX}")


def fitted(name: str) -> str:
    """Shorten a file name that leaves no room for what we put around it; two long names stay two."""
    if len(os.fsencode(name)) <= _LONGEST_NAME:
        return name
    path = Path(name)
    start = os.fsencode(path.stem)[: _LONGEST_NAME - 40].decode(errors="ignore")
    return f"{start}~{hashlib.sha256(os.fsencode(name)).hexdigest()[:12]}{path.suffix}"


def temp_work_folder(output: Path, temp: Path) -> Path:
    """Give the folder in `temp` that holds the unfinished work of `output`; outputs of one name have their own."""
    place = hashlib.sha256(os.fsencode(output.absolute())).hexdigest()[:8]
    return temp / f"{_PREFIX}{fitted(output.name)}.{place}{_SUFFIX}"


def unfinished_work(output: Path, temp: Path | None) -> Path:
    """Give the folder that holds the unfinished work of `output`, in `temp` where that is given."""
    return work_folder(output) if temp is None else temp_work_folder(output, temp)


def is_work_folder(path: Path) -> bool:
    """Tell whether `path` is a folder that an unfinished run has made."""
    named = path.name.startswith(_PREFIX) and path.name.endswith(_SUFFIX)
    return named and path.is_dir() and (path / _LOCK).is_file()


def count_frames(folder: Path) -> int:
    """Count the frames that the run in a work folder has finished for good."""
    found = _read(folder / _JOURNAL)
    if found is None:
        return 0
    if found.begun is not None:
        return found.begun.end_frame
    return found.segments[-1].end_frame if found.segments else 0


def moved_files(folder: Path) -> list[Path]:
    """List what the run in a work folder has brought to its place before it was killed."""
    found = _read(folder / _JOURNAL)
    if found is None or found.placement is None:
        return []
    return [Path(file.path) for file in found.placement.files if file.is_there()]


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


@dataclass(frozen=True, kw_only=True)
class BegunEntry:
    """A segment that a run had begun when it was asked to stop: its pictures up to `end_frame`, not encoded."""

    file: str
    size_bytes: int
    """How much of the file counts; a later run writes behind it."""
    end_frame: int
    scene_first: int
    groups: int
    """Groups of frames that the segment has so far."""
    state: str
    """File with the cascade's state after the last of them."""
    state_sha256: str


@dataclass(frozen=True, kw_only=True)
class MovedFile:
    """A finished file on its way to its place; size and time of change tell that it has come there."""

    path: str
    """Where it goes; absolute."""
    size_bytes: int
    changed_ns: int

    @classmethod
    def of(cls, made: Path, target: Path) -> Self:
        """Describe a file `made` that goes to `target`. Raises OSError."""
        stat = made.stat()
        return cls(path=os.path.abspath(target), size_bytes=stat.st_size, changed_ns=stat.st_mtime_ns)

    def is_there(self) -> bool:
        """Tell whether it has come to its place."""
        try:
            stat = os.stat(self.path)
        except OSError:
            return False
        return (stat.st_size, stat.st_mtime_ns) == (self.size_bytes, self.changed_ns)


@dataclass(frozen=True, kw_only=True)
class Placement:
    """The last step of a run: what it moves."""

    frames: int
    """Frames of the output."""
    files: tuple[MovedFile, ...]
    """The first and the last file of each output."""


@dataclass
class _Found:
    """What a journal file says."""

    fingerprint: dict[str, object]
    segments: list[SegmentEntry]
    begun: BegunEntry | None = None
    complete: bool = False
    placement: Placement | None = None


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
        self.begun: BegunEntry | None = None
        self.complete = False
        self.placement: Placement | None = None
        self.fresh_because: str | None = None
        self._path = folder / _JOURNAL
        # Through JSON and back, so that tuples and numbers compare as they will when read again.
        self._fingerprint = cast(dict[str, object], json.loads(json.dumps(dict(fingerprint))))
        found = _read(self._path)
        if found is None:
            self._clear()
            self._rewrite()
            return
        self.fresh_because = _difference(found.fingerprint, self._fingerprint)
        if self.fresh_because is not None:
            self._clear()
        elif found.placement is not None and all(file.is_there() for file in found.placement.files):
            # Of the segments some may be gone already, and nobody needs them.
            self.segments, self.complete, self.placement = found.segments, found.complete, found.placement
        else:
            self.placement = found.placement
            self.segments = self._usable(found.segments)
            whole = len(self.segments) == len(found.segments)
            self.complete = found.complete and whole
            self.begun = found.begun if whole and found.begun is not None and self._is_whole(found.begun) else None
            self._clear(keep=[entry.file for entry in self.segments])
        self._rewrite()

    @property
    def frames(self) -> int:
        """Frames of the output that are finished for good."""
        return self.segments[-1].end_frame if self.segments else 0

    @property
    def placed(self) -> bool:
        """Nothing is left to do: all outputs are in place."""
        return self.placement is not None and all(file.is_there() for file in self.placement.files)

    @property
    def safe_frames(self) -> int:
        """Frames that are never made again: those of the finished segments and of the one that is begun."""
        return self.begun.end_frame if self.begun is not None else self.frames

    @property
    def scene_first(self) -> int:
        """The first frame of the scene that the next frame belongs to, where there is a state to go on from."""
        last = self.begun or self.segments[-1]
        return last.scene_first

    @property
    def files(self) -> list[Path]:
        """The finished segments in order."""
        return [self.folder / entry.file for entry in self.segments]

    def segment_path(self) -> Path:
        """Give the path where the next segment is to be written."""
        return self.folder / f"segment-{len(self.segments):06d}.video"

    def begun_path(self) -> Path:
        """Give the path for the pictures of the segment in hand."""
        return self.folder / f"begun-{len(self.segments):06d}.frames"

    def state_bytes(self) -> bytes | None:
        """Read the state after the last frame that is safe; None where a new scene begins."""
        name = self.begun.state if self.begun is not None else self._last_state()
        return (self.folder / name).read_bytes() if name is not None else None

    def begin(self, size_bytes: int, *, end_frame: int, scene_first: int, groups: int, state: bytes) -> None:
        """Enter what is there of the segment in hand: the first bytes of `begun_path`, synced, and the state after it.

        Raises OSError as the file system gives it.
        """
        before = self.begun
        path = self.begun_path()
        state_name = f"begun-{len(self.segments):06d}-{end_frame}.safetensors"
        _write_synced(self.folder / state_name, state)
        entry = BegunEntry(
            file=path.name,
            size_bytes=size_bytes,
            end_frame=end_frame,
            scene_first=scene_first,
            groups=groups,
            state=state_name,
            state_sha256=hashlib.sha256(state).hexdigest(),
        )
        self._append({"begun": asdict(entry)})
        self.begun = entry
        if before is not None and before.state != state_name:
            (self.folder / before.state).unlink(missing_ok=True)

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
        begun, self.begun = self.begun, None
        self.segments.append(entry)
        for name in (before, begun.state if begun is not None else None, begun.file if begun is not None else None):
            if name is not None:
                (self.folder / name).unlink(missing_ok=True)

    def finish(self) -> None:
        """Note that the last segment ends the clip; only joining is left."""
        self._append({"complete": True})
        self.complete = True

    def place(self, placement: Placement) -> None:
        """Note what is going to be moved to its place. Raises OSError."""
        self._append({"placement": asdict(placement)})
        self.placement = placement

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

    def _has_state(self, entry: SegmentEntry | BegunEntry) -> bool:
        """Tell whether the work can go on after `entry`."""
        if entry.state is None:
            return True
        path = self.folder / entry.state
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == entry.state_sha256

    def _is_whole(self, begun: BegunEntry) -> bool:
        path = self.folder / begun.file
        return path.is_file() and path.stat().st_size >= begun.size_bytes and self._has_state(begun)

    def _rewrite(self) -> None:
        records: list[dict[str, object]] = [{"format": _FORMAT, "fingerprint": self._fingerprint}]
        records.extend({"segment": asdict(entry)} for entry in self.segments)
        if self.begun is not None:
            records.append({"begun": asdict(self.begun)})
        if self.complete:
            records.append({"complete": True})
        if self.placement is not None:
            records.append({"placement": asdict(self.placement)})
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
        begun = (self.begun.file, self.begun.state) if self.begun is not None else ()
        for path in self.folder.iterdir():
            if path.name not in (_LOCK, _JOURNAL, SPOOL, self._last_state(), *begun) and not path.name.startswith(
                tuple(keep)
            ):
                remove(path)


def empty(folder: Path) -> None:
    """Delete what runs have left in a work folder, but for its lock and a spool. Raises OSError."""
    for path in folder.iterdir():
        if path.name not in (_LOCK, SPOOL):
            remove(path)


def discard(folder: Path) -> None:
    """Delete a work folder with all that is in it, the journal last, so that until then it tells what is done."""
    with suppress(OSError):
        for path in folder.iterdir():
            if path.name not in (_LOCK, _JOURNAL):
                remove(path)
    shutil.rmtree(folder, ignore_errors=True)


def remove(path: Path) -> None:
    """Delete a file or a folder with all that is in it. Raises OSError."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _read(path: Path) -> _Found | None:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    found: _Found | None = None
    for line in lines:
        try:
            record = json.loads(line)
            if found is None:
                if record["format"] != _FORMAT:
                    return None
                found = _Found(record["fingerprint"], [])
            elif "segment" in record:
                found.segments.append(SegmentEntry(**record["segment"]))
                found.begun = None
            elif "begun" in record:
                found.begun = BegunEntry(**record["begun"])
            elif "placement" in record:
                files = tuple(MovedFile(**file) for file in record["placement"]["files"])
                found.placement = Placement(frames=record["placement"]["frames"], files=files)
            else:
                found.complete = bool(record["complete"])
        except (ValueError, KeyError, TypeError):
            # The line in hand when the power went.
            break
    return found


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
