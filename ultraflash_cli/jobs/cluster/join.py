"""Join the finished units of each file into the work folder of a local run, whose last
step does the rest."""

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ultraflash_cli.buffers import SEGMENT_FRAMES
from ultraflash_cli.errors import Interrupted, OutputError, UltraflashError, UsageError
from ultraflash_cli.files import sync_file, write_whole
from ultraflash_cli.jobs.batch import Outcome
from ultraflash_cli.jobs.cluster.described import from_json
from ultraflash_cli.jobs.cluster.tasks import from_facts, prepared_again, task_of_join
from ultraflash_cli.jobs.cluster.units import Plan, PlannedFile, Unit, read_json, remove_folder
from ultraflash_cli.jobs.events import Listener
from ultraflash_cli.jobs.resume.entries import SegmentEntry, as_read, difference, read_journal
from ultraflash_cli.jobs.resume.fingerprint import versions_in
from ultraflash_cli.jobs.resume.journal import Journal, discard, empty
from ultraflash_cli.jobs.resume.owned_files import segment_name
from ultraflash_cli.jobs.resume.work_folder import OutputLock, is_work_folder, unfinished_work
from ultraflash_cli.jobs.running.generate import GenerateReport
from ultraflash_cli.jobs.running.report import Report
from ultraflash_cli.jobs.running.run import fingerprint, run
from ultraflash_cli.jobs.running.stop import Stop
from ultraflash_cli.jobs.running.upscale import UpscaleReport
from ultraflash_cli.jobs.running.work import Work
from ultraflash_cli.video.partial import output_errors
from ultraflash_cli.video.segment_file import SegmentFile

__all__ = ["join_units"]


def join_units(
    plan: Plan,
    on_event: Listener,
    *,
    stop: Stop,
    store: Path | None = None,
    numbers: Iterable[int] | None = None,
    segment_frames: int = SEGMENT_FRAMES,
) -> Iterator[Outcome]:
    """Check and join the files of a plan, all or those in `numbers`, and yield the
    outcome of each.

    A file with a failed or unfinished unit counts as a failure; a file that an earlier run joined keeps that run's
    report. Raises Interrupted; the same call resumes where it stopped.
    """
    for file in plan.files.values() if numbers is None else [plan.files[number] for number in numbers]:
        if stop.requested:
            raise stop.interruption(f"interrupted before {file.label}; run the same command to join the rest")
        try:
            yield _outcome(plan, file, on_event, stop, store, segment_frames)
        except Interrupted as interrupted:
            interrupted.source = file.input
            raise
        except UltraflashError as failure:
            failure.source = file.input
            yield Outcome(source=file.input, label=file.label, failure=failure)


def _outcome(
    plan: Plan, file: PlannedFile, on_event: Listener, stop: Stop, store: Path | None, segment_frames: int
) -> Outcome:
    told = plan.joined(file)
    if told is None:
        report = _join(plan, file, on_event, stop, store, segment_frames)
    else:
        kind: Any = UpscaleReport if file.job["kind"] == "upscale" else GenerateReport
        report = kind(**told | {"warnings": tuple(told["warnings"])})
    with output_errors(plan.folder):
        _tidy(plan, file)
    return Outcome(source=file.input, label=file.label, report=report)


def _join(
    plan: Plan, file: PlannedFile, on_event: Listener, stop: Stop, store: Path | None, segment_frames: int
) -> Report:
    _refuse_unfinished(plan, file)
    parts = [_Part(unit) for unit in plan.units_of(file)]
    built = from_facts([part.told["built"] for part in parts])
    job = replace(from_json(file.job, store=store), device=built.device)
    prepared = prepared_again(job, to_write=True, encodes_here=False)

    def adopt(work: Work) -> None:
        _adopt(parts, work, fingerprint(task, built))
        for message in dict.fromkeys(message for part in parts for message in part.told["warnings"]):
            work.warn(message)

    def keep(report: Report) -> None:
        with output_errors(plan.folder):
            write_whole(plan.joined_path(file), json.dumps(asdict(report)).encode())

    task = task_of_join(prepared, built, file, adopt=adopt, keep=keep, segment_frames=segment_frames)
    _check_settings(plan, file, fingerprint(task, built))
    task.recall([part.told["findings"] for part in parts])
    return run(task, on_event, stop=stop)


def _refuse_unfinished(plan: Plan, file: PlannedFile) -> None:
    """Raise the failure of a unit, or UsageError if units are unfinished."""
    failed = read_json(plan.failed_path(file))
    if failed is not None:
        number, reason = failed["unit"], failed["error"]
        which = f"unit {number + 1} of {file.units} failed" if file.units > 1 else "failed"
        failure = UltraflashError(f"{file.label}: {which} twice, last on {failed['host']}: {reason}")
        failure.exit_code = failed["exit_code"]
        raise failure
    unfinished = sum(not unit.is_done for unit in plan.units_of(file))
    if unfinished:
        count = f"{unfinished} of {file.units} units" if file.units > 1 else "its unit"
        are = "are" if unfinished > 1 else "is"
        raise UsageError(f"{file.label}: {count} {are} not finished; run `ultraflash worker {plan.folder}`")


class _Part:
    """A finished unit."""

    def __init__(self, unit: Unit) -> None:
        """Read the unit's files. Raises OutputError if they are damaged, after removing
        them."""
        self.unit = unit
        found, told = read_journal(unit.done_folder), read_json(unit.done_folder / "unit.json")
        first_frame = 0 if unit.span is None else unit.span.first
        if found is None or told is None or found.refused is not None:
            raise self._damaged()
        if not found.complete or found.first_frame != first_frame:
            raise self._damaged()
        self.told = told
        self.entries = found.segments

    def linked(self, entry: SegmentEntry, folder: Path, number: int) -> tuple[SegmentFile | None, ...]:
        """Link the files of a segment into a folder, as segment `number` there. Raises
        OutputError."""
        linked: list[SegmentFile | None] = []
        for output, file in enumerate(entry.files):
            if file is None:
                linked.append(None)
                continue
            if not file.path.is_file() or file.path.stat().st_size != file.size_bytes:
                raise self._damaged()
            path = folder / segment_name(number, output)
            _link(file.path, path)
            linked.append(replace(file, path=path))
        return tuple(linked)

    def _damaged(self) -> OutputError:
        with output_errors(self.unit.folder):
            remove_folder(self.unit.done_folder)
        return OutputError(
            f"{self.unit.name}: its segments are damaged and were removed; run `ultraflash worker` and `join` again"
        )


def _adopt(parts: Sequence[_Part], work: Work, settings: Mapping[str, object]) -> None:
    """Move the segments of all units to a work folder, with the journal that a local
    run would have written."""
    found = read_journal(work.folder)
    moved = found.placement.files if found is not None and found.placement is not None else ()
    if (
        found is not None
        and found.fingerprint == as_read(settings)
        and moved
        and all(each.is_there() for each in moved)
    ):
        return  # only the cleanup was interrupted
    with output_errors(work.output):
        empty(work.folder)
        journal = Journal(work.folder, settings)

        entries: list[SegmentEntry] = []
        for part in parts:
            before = entries[-1].guarded if entries else (0, 0)
            for entry in part.entries:
                work.check_stop()
                files = part.linked(entry, work.folder, len(entries))
                guarded = _sum(before, entry.guarded)
                entries.append(replace(entry, files=files, state=None, state_sha256=None, guarded=guarded))
        journal.adopt(entries)


def _sum(before: tuple[int, int] | None, counts: tuple[int, int] | None) -> tuple[int, int] | None:
    """Return the number of pixels blended back since the clip's start, and of all
    pixels; None without a guard."""
    return None if before is None or counts is None else (before[0] + counts[0], before[1] + counts[1])


def _link(path: Path, target: Path) -> None:
    """Hard-link a file, or copy it if the file system has no hard links. Raises
    OSError."""
    try:
        os.link(path, target)
    except OSError:
        shutil.copyfile(path, target)
        sync_file(target)


def _check_settings(plan: Plan, file: PlannedFile, found: Mapping[str, object]) -> None:
    """Raise UsageError if the settings on this machine differ from those of the
    workers; versions no longer matter."""
    kept = read_json(plan.settings_path(file)) or {}
    changed = difference(_without_versions(kept), _without_versions(as_read(found)))
    if changed is not None:
        raise UsageError(
            f"{file.label}: the units were computed with different settings ({changed} here); run `plan` again"
        )


def _without_versions(settings: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in settings.items() if name not in versions_in(settings)}


def _tidy(plan: Plan, file: PlannedFile) -> None:
    """Delete the units of a joined file, and leftovers of a killed join next to its
    output. Raises OSError."""
    remove_folder(plan.file_folder(file) / "units")
    temp = file.job.get("temp")
    folder = unfinished_work(Path(file.output), Path(temp) if temp is not None else None)
    if is_work_folder(folder):
        with suppress(OutputError), OutputLock(folder):
            discard(folder)
