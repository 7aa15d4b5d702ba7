"""A plan on a shared file system: its files, their units, and the folder layout.

    WORK_DIR/plan.jsonl                      one line per file, entered when its units are known
    WORK_DIR/files/000003/settings.json      settings that affect pixels, from the first worker
    WORK_DIR/files/000003/joined.json        the report, once the output is in place
    WORK_DIR/files/000003/units/0007/lease   who computes the unit
    WORK_DIR/files/000003/units/0007/try-ID  a journal with segments, as in the work folder of a local run
    WORK_DIR/files/000003/units/0007/done    the same, renamed when the unit is finished

Every file appears whole, by a rename; of two finished copies of a unit the first one counts.
"""

import json
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

from ultraflash_cli.errors import OutputError, UsageError
from ultraflash_cli.files import sync, write_whole
from ultraflash_cli.jobs.planning.spans import Span
from ultraflash_cli.jobs.resume.owned_files import open_existing, read_text

__all__ = ["DEATHS", "FAILURES", "PLAN", "Plan", "PlannedFile", "Unit", "read_json", "read_plan", "remove_folder"]

FORMAT = 1
PLAN = "plan.jsonl"
FAILURES = 2
"""Number of failures of a unit after which its file fails."""
DEATHS = 5
"""Number of consecutive workers that may die computing a unit, without finishing
another segment, before the unit counts as failed."""


@dataclass(frozen=True, kw_only=True)
class PlannedFile:
    """One output of a plan."""

    number: int
    asked: Mapping[str, Any]
    """The job as it was requested (`described.as_json`)."""
    job: Mapping[str, Any]
    """The job as it runs, with the path of the output."""
    model: str
    threads: int
    input: str
    label: str
    output: str
    inputs: Mapping[str, Any]
    """Facts that identify the input."""
    frames: int | None
    """Number of frames; None if only estimated."""
    estimate: int
    """Approximate number of frames, for ordering the work."""
    cuts: int | None
    """Number of scene cuts; None for a clip that was not searched, because it is one
    unit anyway."""
    spans: tuple[Span, ...]
    """Spans of the units; empty for a clip that is one unit."""
    note: str = ""
    """Reason why there is only one unit; empty if there are several."""
    warnings: tuple[str, ...] = ()

    @property
    def units(self) -> int:
        """Count the units."""
        return max(1, len(self.spans))


@dataclass(frozen=True, kw_only=True)
class Unit:
    """A part of a file that one worker computes."""

    file: PlannedFile
    number: int
    folder: Path

    @property
    def span(self) -> Span | None:
        """The frames of the unit; None for the whole clip."""
        return self.file.spans[self.number] if self.file.spans else None

    @property
    def name(self) -> str:
        """Name of the unit in messages."""
        if self.file.units == 1:
            return self.file.label
        return f"{self.file.label}, unit {self.number + 1} of {self.file.units}"

    @property
    def estimate(self) -> int:
        """Approximate number of frames."""
        return self.file.estimate if self.span is None else self.span.frames

    @property
    def done_folder(self) -> Path:
        """Folder of its segments once they are finished."""
        return self.folder / "done"

    @property
    def is_done(self) -> bool:
        """Whether a finished copy is in place."""
        return self.done_folder.is_dir()

    @property
    def failures(self) -> list[dict[str, Any]]:
        """The error message of each failure so far."""
        found = [read_json(self.folder / f"failure-{number}.json") for number in range(1, FAILURES + 1)]
        return [each for each in found if each is not None]

    @property
    def has_failed(self) -> bool:
        """Whether it has failed permanently."""
        return (self.folder / f"failure-{FAILURES}.json").exists()

    @property
    def tries(self) -> list[Path]:
        """The folders of unfinished work; a running worker owns at most one of them."""
        found = self.folder.glob("try-*")
        return sorted(path for path in found if path.is_dir() and not path.is_symlink())


class Plan:
    """The plan in a work folder."""

    def __init__(self, folder: Path, files: Mapping[int, PlannedFile]) -> None:
        self.folder = folder
        self.files = dict(files)

    def file_folder(self, file: PlannedFile) -> Path:
        """Return the folder of a file."""
        return self.folder / "files" / f"{file.number:06d}"

    def units_of(self, file: PlannedFile) -> list[Unit]:
        """Return the units of a file in the order of its frames."""
        units = self.file_folder(file) / "units"
        return [Unit(file=file, number=number, folder=units / f"{number:04d}") for number in range(file.units)]

    @property
    def units(self) -> list[Unit]:
        """All units, longest first; the order is the same on every machine."""
        found = [unit for file in self.files.values() for unit in self.units_of(file)]
        return sorted(found, key=lambda unit: (-unit.estimate, unit.file.number, unit.number))

    def settings_path(self, file: PlannedFile) -> Path:
        """Return the path of the settings that affect pixels, as the first worker found them."""
        return self.file_folder(file) / "settings.json"

    def joined_path(self, file: PlannedFile) -> Path:
        """Return the path of a file's report once it is joined."""
        return self.file_folder(file) / "joined.json"

    def joined(self, file: PlannedFile) -> dict[str, Any] | None:
        """Return the report of a file if it was joined; else None."""
        return read_json(self.joined_path(file))

    def is_settled(self, unit: Unit) -> bool:
        """Return whether a unit needs no more work: it is done, or its file has failed
        or is joined."""
        file = unit.file
        return unit.is_done or self.failed_path(file).exists() or self.joined_path(file).exists()

    def failed_path(self, file: PlannedFile) -> Path:
        """Return the path of the note that a unit of the file has failed
        permanently."""
        return self.file_folder(file) / "failed.json"

    def forget_failures(self, file: PlannedFile) -> bool:
        """Allow the units of a file to be tried again; returns whether any had failed.
        Raises OSError."""
        failed = self.failed_path(file).exists()
        for unit in self.units_of(file):
            for number in range(FAILURES, 0, -1):
                (unit.folder / f"failure-{number}.json").unlink(missing_ok=True)
            (unit.folder / "deaths.json").unlink(missing_ok=True)
        self.failed_path(file).unlink(missing_ok=True)
        return failed

    def begin(self) -> None:
        """Create the plan file, or rewrite it without the incomplete line of a killed
        run. Raises OSError."""
        path = self.folder / PLAN
        if not path.exists() or not path.read_bytes().endswith(b"\n"):
            head = _line({"format": FORMAT, "version": version("ultraflash")})
            write_whole(path, head + b"".join(_line({"file": asdict(file)}) for file in self.files.values()))

    def enter(self, file: PlannedFile) -> None:
        """Append a file to the plan, synced; it replaces an earlier one with the same
        number. Raises OSError."""
        with open(open_existing(self.folder / PLAN, os.O_WRONLY | os.O_APPEND), "ab") as lines:
            lines.write(_line({"file": asdict(file)}))
            sync(lines)
        self.files[file.number] = file


def read_plan(folder: Path, *, is_new: bool = False) -> Plan:
    """Read the plan in a work folder; with `is_new` there may be none yet.

    Raises UsageError if there is none, and OutputError for a plan written by another version.
    """
    try:
        lines = read_text(folder / PLAN).splitlines()
    except FileNotFoundError as error:
        if is_new:
            return Plan(folder, {})
        raise UsageError(f"{folder}: no plan found; write one with `ultraflash plan INPUT... --work-dir`") from error
    except (OSError, UnicodeDecodeError) as error:
        raise OutputError(f"{folder / PLAN}: cannot be read ({error}); check the folder") from error

    files: dict[int, PlannedFile] = {}
    for number, line in enumerate(lines):
        try:
            record = json.loads(line)
            if not number and record["format"] != FORMAT:
                raise OutputError(f"{folder} holds a plan of another version of ultraflash; use a new --work-dir")
            if number:
                file = _file_of(record["file"])
                files[file.number] = file
        except (ValueError, KeyError, TypeError):
            # A line that was being written when the power failed.
            break

    return Plan(folder, files)


def read_json(path: Path) -> dict[str, Any] | None:
    """Read a JSON object; None if the file is missing or incomplete."""
    try:
        found = json.loads(read_text(path))
    except (OSError, ValueError):
        return None
    return cast("dict[str, Any]", found) if isinstance(found, dict) else None


def remove_folder(folder: Path) -> None:
    """Delete one of our folders and its contents, even if another process has already
    deleted some of them. Raises OSError.

    A symlink is only unlinked.
    """
    if folder.is_symlink():
        folder.unlink(missing_ok=True)
        return
    with suppress(FileNotFoundError):
        shutil.rmtree(folder)


def _file_of(values: Mapping[str, Any]) -> PlannedFile:
    spans = tuple(Span(first=span["first"], end=span["end"], cuts=tuple(span["cuts"])) for span in values["spans"])
    read: dict[str, Any] = {**values, "spans": spans, "warnings": tuple(values["warnings"])}
    return PlannedFile(**read)


def _line(record: Mapping[str, object]) -> bytes:
    return json.dumps(record).encode() + b"\n"
