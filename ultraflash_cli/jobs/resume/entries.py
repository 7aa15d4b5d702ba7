"""Entries of a journal, checked on reading, because a work folder may come from anyone."""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, cast

from ultraflash_cli.errors import OutputError
from ultraflash_cli.jobs.resume.fingerprint import is_only_another_version, versions_in
from ultraflash_cli.jobs.resume.owned_files import (
    BEGUN,
    BEGUN_STATE,
    JOURNAL,
    SEGMENT_FILE,
    STATE,
    check_ours,
    is_plain,
    read_text,
)
from ultraflash_cli.video.segment_file import SegmentFile

__all__ = [
    "FORMAT",
    "BegunEntry",
    "Found",
    "MovedFile",
    "Placement",
    "SegmentEntry",
    "as_read",
    "count_frames",
    "difference",
    "moved_files",
    "read_journal",
    "version_change",
]

FORMAT = 3
_WITH_RECORDS = 2
"""The previous format: an entry named one file, and each file of the segment had a record next to it."""


@dataclass(frozen=True, kw_only=True)
class SegmentEntry:
    """One finished segment: frames `first_frame` to `end_frame` (exclusive) of the
    output."""

    files: tuple[SegmentFile | None, ...]
    """The segment's file for each output; None for an output that shows none of its frames."""
    first_frame: int
    end_frame: int
    scene_first: int
    """The first frame of the scene that the segment belongs to."""
    state: str | None
    """File with the cascade's state after the last frame; None if a new scene begins there."""
    state_sha256: str | None
    guarded: tuple[int, int] | None = None
    """Number of pixels of the clip so far that departed from the source and were
    blended back, and number of all compared; None without a guard."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "guarded", _counts(self.guarded))

    @property
    def names(self) -> list[str]:
        """Names of the files inside the work folder."""
        return [file.path.name for file in self.files if file is not None]

    def as_json(self) -> dict[str, object]:
        """Return the values to store in a journal."""
        files = [None if file is None else {**vars(file), "path": file.path.name} for file in self.files]
        return {**vars(self), "files": files}


@dataclass(frozen=True, kw_only=True)
class BegunEntry:
    """A segment that was unfinished when the run stopped: its pictures up to
    `end_frame`, unencoded."""

    file: str
    size_bytes: int
    """Number of valid bytes of the file; a later run appends to them."""
    end_frame: int
    scene_first: int
    groups: int
    """Number of groups in the segment so far."""
    state: str
    """File with the cascade's state after the last group."""
    state_sha256: str
    guarded: tuple[int, int] | None = None
    """See `SegmentEntry.guarded`."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "guarded", _counts(self.guarded))


@dataclass(frozen=True, kw_only=True)
class MovedFile:
    """A finished file being moved into place; size and modification time tell whether it has arrived."""

    path: str
    """Absolute destination path."""
    size_bytes: int
    changed_ns: int

    @classmethod
    def of(cls, made: Path, target: Path) -> Self:
        """Describe a file `made` that will be moved to `target`. Raises OSError."""
        stat = made.stat()
        return cls(path=os.path.abspath(target), size_bytes=stat.st_size, changed_ns=stat.st_mtime_ns)

    def is_there(self) -> bool:
        """Return whether the file is in place."""
        try:
            stat = os.lstat(self.path)
        except (OSError, ValueError):
            return False
        return (stat.st_size, stat.st_mtime_ns) == (self.size_bytes, self.changed_ns)


@dataclass(frozen=True, kw_only=True)
class Placement:
    """The last step of a run: the files that it moves."""

    frames: int
    """Number of frames of the output."""
    files: tuple[MovedFile, ...]
    """Every file of each output."""


@dataclass
class Found:
    """The content of a journal."""

    fingerprint: dict[str, object]
    segments: list[SegmentEntry]
    first_frame: int = 0
    """The first frame of the work."""
    begun: BegunEntry | None = None
    complete: bool = False
    placement: Placement | None = None
    refused: str | None = None
    """Reason why the journal cannot be used."""
    is_foreign: bool = False
    """Whether its format is unknown to this version."""
    has_records: bool = False
    """Whether it has the previous format, whose segments have records next to them."""


def count_frames(folder: Path) -> int:
    """Count the frames that the run in a work folder has permanently finished."""
    found = read_journal(folder)
    if found is None or found.refused is not None:
        return 0
    if found.begun is not None:
        return found.begun.end_frame - found.first_frame
    return found.segments[-1].end_frame - found.first_frame if found.segments else 0


def moved_files(folder: Path) -> list[Path]:
    """List the files that a killed run had already put in place."""
    found = read_journal(folder)
    if found is None or found.placement is None or found.refused is not None:
        return []
    return [Path(file.path) for file in found.placement.files if file.is_there()]


def read_journal(folder: Path) -> Found | None:
    """Read the journal in a folder; None if there is no readable one."""
    try:
        check_ours(folder)
        lines = read_text(folder / JOURNAL).splitlines()
    except (OSError, OutputError, UnicodeDecodeError):
        return None

    found: Found | None = None
    for line in lines:
        try:
            record = json.loads(line)
            if found is None:
                if record["format"] not in (FORMAT, _WITH_RECORDS):
                    reason = "the journal of the interrupted run was written by another version"
                    return Found({}, [], refused=reason, is_foreign=True)
                found = Found(dict(record["fingerprint"]), [], first_frame=int(record.get("first_frame", 0)))
                found.has_records = record["format"] == _WITH_RECORDS
            else:
                _enter(found, record, folder)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            # A line that was being written when the power failed.
            break
        except OutputError as error:
            assert found is not None, "entries follow the fingerprint"
            found.refused = str(error)
            break

    return found


def _enter(found: Found, record: dict[str, Any], folder: Path) -> None:
    if "segment" in record:
        said = dict(record["segment"])
        files = _files_with_records(said, folder) if found.has_records else said.pop("files")
        if not files:
            raise ValueError("a segment must have a file for each output")
        segment = SegmentEntry(
            files=tuple(None if file is None else _segment_file(file, folder) for file in files), **said
        )

        _check_name(segment.state, STATE)
        _check_numbers(segment.end_frame, segment.scene_first)

        last = found.segments[-1].end_frame if found.segments else found.first_frame
        if segment.first_frame != last:
            raise ValueError("segments must be consecutive")
        found.segments.append(segment)
        found.begun = None
    elif "begun" in record:
        begun = BegunEntry(**record["begun"])
        _check_name(begun.file, BEGUN)
        _check_name(begun.state, BEGUN_STATE)
        _check_numbers(begun.size_bytes, begun.end_frame, begun.scene_first)
        found.begun = begun
    elif "placement" in record:
        files = tuple(MovedFile(**file) for file in record["placement"]["files"])
        if not files or not all(os.path.isabs(file.path) for file in files):
            raise ValueError("a placement must name files")
        found.placement = Placement(frames=record["placement"]["frames"], files=files)
    else:
        found.complete = bool(record["complete"])


def _segment_file(said: dict[str, Any], folder: Path) -> SegmentFile:
    """Return a file of a segment in `folder`. Raises the errors of `_check_name` and
    `_check_numbers`, and TypeError."""
    _check_name(said["path"], SEGMENT_FILE)
    file = SegmentFile(**said | {"path": folder / said["path"]})
    _check_numbers(file.size_bytes, file.frames)
    if any(type(pts) is not int for pts in (file.first_pts, file.last_pts, file.last_duration)):
        raise ValueError("timestamps must be whole numbers")
    return file


def _files_with_records(said: dict[str, Any], folder: Path) -> list[dict[str, Any] | None]:
    """Convert the file of an entry in the previous format, with the records next to it.
    Also raises OSError."""
    name, size_bytes = said.pop("file"), said.pop("size_bytes")
    _check_name(name, SEGMENT_FILE)
    if not size_bytes:
        return [None]
    names = [name, f"{name}.480p"] if is_plain(folder / f"{name}.480p") else [name]
    return [json.loads(read_text(folder / f"{each}.json")) | {"path": each} for each in names]


def _check_name(name: str | None, pattern: re.Pattern[str]) -> None:
    """Raise OutputError for a name that no run writes."""
    if name is not None and pattern.fullmatch(name) is None:
        raise OutputError(
            f"the journal of the interrupted run names {_short(name)!r}, which is not a file of ultraflash"
        )


def _check_numbers(*numbers: int) -> None:
    if any(type(number) is not int or number < 0 for number in numbers):
        raise ValueError("numbers must be 0 or more")


def _counts(read: object) -> tuple[int, int] | None:
    """Return two counts, given as a tuple or a JSON list. Raises ValueError for
    anything else."""
    if read is None:
        return None
    counts = cast("tuple[object, ...]", tuple(read)) if isinstance(read, list | tuple) else ()
    if len(counts) != 2 or any(type(count) is not int or count < 0 for count in counts):
        raise ValueError("the blended-back value must be two counts")
    return cast("tuple[int, int]", counts)


def version_change(folder: Path, fingerprint: Mapping[str, object]) -> str | None:
    """Return the versions that have changed since the run in `folder`, if nothing else
    prevents the command from resuming. None if it can resume, if the command is a
    different one, or if nothing is finished.
    """
    found = read_journal(folder)
    if found is None or found.is_foreign:
        return found.refused if found is not None else None
    new = as_read(fingerprint)
    if found.refused is not None or not count_frames(folder) or not is_only_another_version(found.fingerprint, new):
        return None
    return difference(versions_in(found.fingerprint), versions_in(new))


def as_read(fingerprint: Mapping[str, object]) -> dict[str, object]:
    """Convert a fingerprint to JSON and back, so that it compares equal to one that was
    read."""
    return cast(dict[str, object], json.loads(json.dumps(dict(fingerprint))))


def difference(old: Mapping[str, object], new: Mapping[str, object]) -> str | None:
    """Describe briefly how two fingerprints differ; None if they do not."""
    for name in [*new, *(name for name in old if name not in new)]:
        if name not in old:
            return f"{name} was not recorded and is {_short(new[name])}"
        if old.get(name) != new.get(name):
            return f"{name} was {_short(old.get(name))} and is {_short(new.get(name))}"
    return None


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."
