"""Tasks for a unit, and for joining all units."""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

from ultraflash_cli.buffers import SEGMENT_FRAMES
from ultraflash_cli.errors import InputError
from ultraflash_cli.jobs.batch import Job
from ultraflash_cli.jobs.cluster.units import PlannedFile, Unit
from ultraflash_cli.jobs.planning.generate import PreparedGeneration
from ultraflash_cli.jobs.planning.upscale import Prepared, UpscaleJob
from ultraflash_cli.jobs.running.generate import GenerateReport, Generation
from ultraflash_cli.jobs.running.prepare import prepare, prepare_generation
from ultraflash_cli.jobs.running.report import Report
from ultraflash_cli.jobs.running.run import Task
from ultraflash_cli.jobs.running.upscale import UpscaleReport, Upscaling
from ultraflash_cli.jobs.running.work import Work
from ultraflash_cli.models.built import Built

__all__ = ["Build", "as_facts", "from_facts", "prepared_again", "task_of", "task_of_join"]

Build = Callable[[Any], Built[Any]]
"""Loads the model of a prepared job."""

_FACTS = ("device", "precision", "weights", "memory_plan", "planned_bytes", "state_bytes", "settings", "warnings")


def prepared_again(job: Job, *, to_write: bool, encodes_here: bool) -> Prepared | PreparedGeneration:
    """Prepare a job of a plan again on this machine. Raises the same errors as
    `prepare`."""
    if isinstance(job, UpscaleJob):
        return prepare(job, to_write=to_write, encodes_here=encodes_here)
    return prepare_generation(job, to_write=to_write, encodes_here=encodes_here)


def task_of(
    prepared: Prepared | PreparedGeneration, build: Build, unit: Unit, *, segment_frames: int = SEGMENT_FRAMES
) -> Task[Any, Any, Any]:
    """Return the task of a unit. Raises InputError if the input has changed since the
    plan."""
    task: Task[Any, Any, Any]
    if isinstance(prepared, Prepared):
        task = Upscaling(prepared, build, span=unit.span, segment_frames=segment_frames)
    else:
        task = Generation(prepared, build, segment_frames=segment_frames)
    task.numbers_devices = False
    check_inputs(task, unit.file)
    return task


def task_of_join(
    prepared: Prepared | PreparedGeneration,
    built: Built[Any],
    file: PlannedFile,
    *,
    adopt: Callable[[Work], None],
    keep: Callable[[Report], None],
    segment_frames: int = SEGMENT_FRAMES,
) -> Task[Any, Any, Any]:
    """Return the task that joins finished units. `adopt` moves them to its work folder,
    and `keep` records that the output is in place before the work folder is deleted.
    Raises InputError if the input has changed since the plan.
    """
    task: _JoinedUpscaling | _JoinedGeneration
    if isinstance(prepared, Prepared):
        task = _JoinedUpscaling(prepared, lambda _: built, segment_frames=segment_frames)
    else:
        task = _JoinedGeneration(prepared, lambda _: built, segment_frames=segment_frames)
    task.adopt, task.keep = adopt, keep
    task.numbers_devices = False
    check_inputs(task, file)
    return task


class _Joining:
    """Overrides for a task whose frames are all computed already."""

    adopt: Callable[[Work], None]
    keep: Callable[[Report], None]

    @contextmanager
    def reading(self, work: Work) -> Generator[None]:
        self.adopt(work)
        yield

    def note(self, work: Work) -> str | None:
        return work.note if work.journal.placed else None


class _JoinedUpscaling(_Joining, Upscaling):
    """Joins the units of an upscaled clip."""

    def report(self, work: Work | None, built: Built[Any] | None, **common: Any) -> UpscaleReport:
        report = super().report(work, built, **common)
        self.keep(report)
        return report


class _JoinedGeneration(_Joining, Generation):
    """Puts the unit of a generated clip in place."""

    def report(self, work: Work | None, built: Built[Any] | None, **common: Any) -> GenerateReport:
        report = super().report(work, built, **common)
        self.keep(report)
        return report


def check_inputs(task: Task[Any, Any, Any], file: PlannedFile) -> None:
    """Raise InputError if the input has changed since the plan."""
    if task.inputs() != dict(file.inputs):
        raise InputError(f"{file.input} has changed since the plan was written; run `plan` again")


def as_facts(built: Built[Any]) -> dict[str, object]:
    """Return the facts about the model that a join needs, as JSON."""
    facts = asdict(replace(built, model=None))
    return {name: facts[name] for name in _FACTS}


def from_facts(facts: Sequence[Mapping[str, Any]]) -> Built[Any]:
    """Return a placeholder for the units' model, with these facts and nothing
    loaded."""
    devices = {each["device"] for each in facts}
    device = devices.pop() if len(devices) == 1 else facts[0]["device"].partition(":")[0]
    known: dict[str, Any] = {**facts[0], "device": device, "warnings": ()}
    return Built(model=_NoModel(), **known)


class _NoModel:
    """Placeholder for a model that is no longer needed."""

    stage_seconds: Mapping[str, float] = {}
