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
from ultraflash_cli.jobs.resume.owned_files import BEGUN, BEGUN_STATE, JOURNAL, SEGMENT, STATE, check_ours, read_text

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

FORMAT = 2


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
    """File with the cascade's state after the last frame; None if a new scene begins there."""
    state_sha256: str | None
    guarded: tuple[int, int] | None = None
    """Pixels of the clip so far that strayed from the source and were blended back, and all that were compared; None
    without a guard."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "guarded", _counts(self.guarded))


@dataclass(frozen=True, kw_only=True)
class BegunEntry:
    """A segment that a run had begun when it was asked to stop: its pictures up to `end_frame`, not encoded."""

    file: str
    size_bytes: int
    """How much of the file counts; a later run writes after it."""
    end_frame: int
    scene_first: int
    groups: int
    """Groups of frames that the segment has so far."""
    state: str
    """File with the cascade's state after the last of them."""
    state_sha256: str
    guarded: tuple[int, int] | None = None
    """As in a segment."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "guarded", _counts(self.guarded))


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
        """Return whether it has come to its place."""
        try:
            stat = os.lstat(self.path)
        except (OSError, ValueError):
            return False
        return (stat.st_size, stat.st_mtime_ns) == (self.size_bytes, self.changed_ns)


@dataclass(frozen=True, kw_only=True)
class Placement:
    """The last step of a run: what it moves."""

    frames: int
    """Frames of the output."""
    files: tuple[MovedFile, ...]
    """Every file of each output."""


@dataclass
class Found:
    """The content of a journal."""

    fingerprint: dict[str, object]
    segments: list[SegmentEntry]
    first_frame: int = 0
    """The frame that the work begins with."""
    begun: BegunEntry | None = None
    complete: bool = False
    placement: Placement | None = None
    refused: str | None = None
    """Why none of it may be used."""
    is_foreign: bool = False
    """Its format is not the one of this version."""


def count_frames(folder: Path) -> int:
    """Count the frames that the run in a work folder has finished for good."""
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
    """Read the journal in a folder; None if there is none, or none that can be read."""
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
                if record["format"] != FORMAT:
                    reason = "the journal of the interrupted run was written by another version"
                    return Found({}, [], refused=reason, is_foreign=True)
                found = Found(dict(record["fingerprint"]), [], first_frame=int(record.get("first_frame", 0)))
            else:
                _enter(found, record)
        except (ValueError, KeyError, TypeError, AttributeError):
            # The line being written when the power failed.
            break
        except OutputError as error:
            assert found is not None, "entries follow the fingerprint"
            found.refused = str(error)
            break

    return found


def _enter(found: Found, record: dict[str, Any]) -> None:
    if "segment" in record:
        segment = SegmentEntry(**record["segment"])
        last = found.segments[-1].end_frame if found.segments else found.first_frame
        _check_entry(segment, SEGMENT, STATE, first_frame=last)
        found.segments.append(segment)
        found.begun = None
    elif "begun" in record:
        begun = BegunEntry(**record["begun"])
        _check_entry(begun, BEGUN, BEGUN_STATE)
        found.begun = begun
    elif "placement" in record:
        files = tuple(MovedFile(**file) for file in record["placement"]["files"])
        if not files or not all(os.path.isabs(file.path) for file in files):
            raise ValueError("a placement must name files")
        found.placement = Placement(frames=record["placement"]["frames"], files=files)
    else:
        found.complete = bool(record["complete"])


def _check_entry(
    entry: SegmentEntry | BegunEntry, file: re.Pattern[str], state: re.Pattern[str], *, first_frame: int | None = None
) -> None:
    """Raise OutputError for names that no run writes, ValueError for other values that none does."""
    for name, pattern in ((entry.file, file), (entry.state, state)):
        if name is not None and pattern.fullmatch(name) is None:
            raise OutputError(
                f"the journal of the interrupted run names {_short(name)!r}, which is not a file of ultraflash"
            )
    numbers = (entry.size_bytes, entry.end_frame, entry.scene_first)
    if any(type(number) is not int or number < 0 for number in numbers):
        raise ValueError("numbers must be 0 or more")
    if isinstance(entry, SegmentEntry) and entry.first_frame != first_frame:
        raise ValueError("segments must be consecutive")


def _counts(read: object) -> tuple[int, int] | None:
    """Return two counts as they are or as JSON gives them. Raises ValueError for anything else."""
    if read is None:
        return None
    counts = cast("tuple[object, ...]", tuple(read)) if isinstance(read, list | tuple) else ()
    if len(counts) != 2 or any(type(count) is not int or count < 0 for count in counts):
        raise ValueError("what was blended back must be two counts")
    return cast("tuple[int, int]", counts)


def version_change(folder: Path, fingerprint: Mapping[str, object]) -> str | None:
    """Return which versions have changed since the run in `folder` where nothing else keeps the command from going on.

    None if it can go on, where the command is another one, and if nothing is finished.
    """
    found = read_journal(folder)
    if found is None or found.is_foreign:
        return found.refused if found is not None else None
    new = as_read(fingerprint)
    if found.refused is not None or not count_frames(folder) or not is_only_another_version(found.fingerprint, new):
        return None
    return difference(versions_in(found.fingerprint), versions_in(new))


def as_read(fingerprint: Mapping[str, object]) -> dict[str, object]:
    """Pass a fingerprint through JSON and back, so that it compares like one that was read."""
    return cast(dict[str, object], json.loads(json.dumps(dict(fingerprint))))


def difference(old: Mapping[str, object], new: Mapping[str, object]) -> str | None:
    """Return in a few words how two fingerprints differ; None if they do not."""
    for name in [*new, *(name for name in old if name not in new)]:
        if old.get(name) != new.get(name):
            return f"{name} was {_short(old.get(name))} and is {_short(new.get(name))}"
    return None


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."
