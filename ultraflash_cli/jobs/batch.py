"""Run several jobs in one command, one after another, and collect their outcomes."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ultraflash_cli.errors import Interrupted, UltraflashError, UsageError
from ultraflash_cli.jobs.events import Listener, Planned
from ultraflash_cli.jobs.planning.generate import GenerateJob, PreparedGeneration
from ultraflash_cli.jobs.planning.inputs import find_input, made_place
from ultraflash_cli.jobs.planning.upscale import Prepared, UpscaleJob
from ultraflash_cli.jobs.running.forecast import Forecast, Forecaster
from ultraflash_cli.jobs.running.prepare import foreseen, prepare, prepare_generation
from ultraflash_cli.jobs.running.stop import Stop

if TYPE_CHECKING:
    from ultraflash_cli.engine.footprint.plan import MemoryPlan, PairedPlan
    from ultraflash_cli.jobs.running.loader import Models
    from ultraflash_cli.jobs.running.report import Report
    from ultraflash_cli.jobs.running.run import Task

__all__ = ["Claims", "Job", "Outcome", "names_of", "plan_batch", "run_batch"]

Job = UpscaleJob | GenerateJob

_RESUMES = "; run the same command with -n to resume"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The outcome of one clip: a report, a failure or, in a dry run, a plan; a dry run
    has reports of skipped clips."""

    source: str
    """Name of the input in events: a file, or a prompt."""
    label: str
    """Name of the input in messages."""
    report: "Report | None" = None
    failure: UltraflashError | None = None
    plan: Planned | None = None
    memory: "MemoryPlan | PairedPlan | None" = None
    """The memory plan of a dry run."""
    forecast: Forecast | None = None
    """Predicted run time and output size."""
    warnings: tuple[str, ...] = ()
    """The warnings of a dry run."""
    page: str | None = None
    """The page next to the output, if one was requested."""

    def as_json(self) -> dict[str, object]:
        """Return the one JSON object that `--json` writes for this clip."""
        if self.report is not None:
            page: dict[str, object] = {} if self.page is None else {"html": self.page}
            return asdict(self.report) | page
        if self.plan is not None:
            needs: dict[str, object] = {} if self.memory is None else {"memory": self.memory.as_json()}
            foretold = {} if self.forecast is None else {"forecast": self.forecast.as_json()}
            return asdict(self.plan) | needs | foretold | {"warnings": list(self.warnings)}
        assert self.failure is not None, "a clip has a report, a plan or a failure"
        return {
            "input": self.source,
            "output": None,
            "error": str(self.failure),
            "exit_code": self.failure.exit_code,
        }


def run_batch(
    jobs: Iterable[Job],
    on_event: Listener,
    *,
    stop: Stop,
    build: Callable[[Any], Any] | None = None,
    sources: Sequence[Path] = (),
) -> Iterator[Outcome]:
    """Run the jobs in order and yield each outcome as it comes; networks are loaded once for all of them.

    No output may replace one of the `sources`, and two of them with one output are the
    first outcome, before any work. Interrupted and unexpected errors are raised; all
    other failures are outcomes. `build` replaces `Models` for loading the model. Torch
    is imported once a job has passed its checks.
    """

    @cache
    def models() -> "Models":
        from ultraflash_cli.jobs.running.loader import Models

        return Models()

    def act(prepared: Prepared | PreparedGeneration) -> dict[str, Any]:
        from ultraflash_cli.jobs.running.run import run

        return {"report": run(_task_of(prepared, models(), build), on_event, stop=stop)}

    return _each(jobs, act, stop=stop, sources=sources, rest=_RESUMES)


def plan_batch(jobs: Iterable[Job], *, stop: Stop, sources: Sequence[Path] = ()) -> Iterator[Outcome]:
    """Check the jobs in order and yield the plan or the failure of each.

    Nothing is written; the built-in model is loaded to time it on a small picture. An
    output that exists and is skipped has the report of a real run.
    """

    @cache
    def tools() -> "tuple[Models, Forecaster]":
        from ultraflash_cli.jobs.running.loader import Models

        models = Models(times_short=True)
        return models, Forecaster(models)

    def act(prepared: Prepared | PreparedGeneration) -> dict[str, Any]:
        from ultraflash_cli.jobs.running.run import run

        models, forecaster = tools()
        task = _task_of(prepared, models, None)
        if prepared.exists:
            return {"report": run(task, lambda event: None, stop=stop)}
        memory = models.plan_memory(prepared)
        return {
            "plan": task.planned(),
            "memory": memory,
            "forecast": forecaster.forecast(prepared),
            "warnings": (*prepared.warnings, *foreseen(prepared), *memory.warnings),
        }

    return _each(jobs, act, stop=stop, sources=sources)


def _task_of(
    prepared: Prepared | PreparedGeneration, models: "Models", build: Callable[[Any], Any] | None
) -> "Task[Any, Any, Any]":
    """Return the task for a prepared job."""
    from ultraflash_cli.jobs.running.generate import Generation
    from ultraflash_cli.jobs.running.upscale import Upscaling

    if isinstance(prepared, Prepared):
        return Upscaling(prepared, build or models.upscaler)
    return Generation(prepared, build or models.generator)


def _each(
    jobs: Iterable[Job],
    act: Callable[[Prepared | PreparedGeneration], dict[str, Any]],
    *,
    stop: Stop,
    sources: Sequence[Path],
    rest: str = "",
) -> Iterator[Outcome]:
    """Yield the outcome of `act` for each job; `rest` describes the jobs that a stop
    leaves undone. With `sources`, jobs that share an output with an earlier one come
    first."""
    named = list(jobs) if sources else []
    clashes = _clashes(named, sources, stop)
    for number, clash in clashes.items():
        source, label = names_of(named[number])
        clash.source = source
        yield Outcome(source=source, label=label, failure=clash)

    claims, is_begun = Claims(sources), False
    for number, job in enumerate(named or jobs):
        if number in clashes:
            continue
        source, label = names_of(job)
        if stop.requested:
            raise stop.interruption(f"interrupted before {label}{rest}")

        try:
            if isinstance(job, UpscaleJob):
                prepared = prepare(job)
                # If two inputs share a name, the first being finished does not mean
                # that the second is.
                claims.check(label, prepared.output, is_skipped=prepared.exists)
            else:
                prepared = prepare_generation(job)
            done = act(prepared)
        except Interrupted as interrupted:
            interrupted.source = source
            if is_begun and not job.skip_existing:
                # Without -n, the same command would stop at the outputs that exist.
                same = "the same command with -n" + (" instead of -y" if job.overwrite else "")
                interrupted.args = (str(interrupted).replace("the same command", same),)
            raise
        except UltraflashError as failure:
            failure.source = source
            yield Outcome(source=source, label=label, failure=_named_as_typed(failure, job))
        else:
            is_begun = True
            yield Outcome(source=source, label=label, **done)


def _clashes(jobs: Sequence[Job], sources: Sequence[Path], stop: Stop) -> dict[int, UsageError]:
    """Return the jobs, by position, that would write to the output of an earlier one."""
    alike: dict[tuple[str, str], list[int]] = {}
    for number, job in enumerate(jobs):
        if isinstance(job, UpscaleJob) and (place := _place(job)) is not None:
            alike.setdefault(place, []).append(number)

    claims = Claims(sources)
    clashes: dict[int, UsageError] = {}
    for number in sorted(each for numbers in alike.values() if len(numbers) > 1 for each in numbers):
        job = jobs[number]
        assert isinstance(job, UpscaleJob), "only these were collected"
        if stop.requested:
            break
        try:
            prepared = prepare(job, to_write=False)
        except UltraflashError:
            continue  # reported when its turn comes
        try:
            claims.check(names_of(job)[1], prepared.output, is_skipped=True)
        except UsageError as clash:
            clashes[number] = clash
    return clashes


def _place(job: UpscaleJob) -> tuple[str, str] | None:
    """Return folder and stem of a job's default output; None if a message about its
    input comes later. Outputs of different places differ."""
    try:
        beside, stem = made_place(find_input(job.source, job.pipe, images=job.images, rate=job.fps))
    except UltraflashError:
        return None
    return os.path.realpath(job.folder or beside), stem


def _named_as_typed(failure: UltraflashError, job: Job) -> UltraflashError:
    """Return a failure whose message names a photo from stdin as the pipe, not as the
    file that keeps it."""
    pipe = job.pipe if isinstance(job, UpscaleJob) else None
    if pipe is not None and pipe.whole_file is not None:
        failure.args = (str(failure).replace(str(pipe.whole_file), pipe.name),)
    return failure


def names_of(job: Job) -> tuple[str, str]:
    """Return the names of a job's input in events and in messages."""
    if isinstance(job, UpscaleJob):
        return str(job.source), str(job.source)
    return job.line, job.output.name if job.output is not None else job.made_name


class Claims:
    """Maps outputs of a batch to their inputs."""

    def __init__(self, sources: Iterable[Path]) -> None:
        self._sources = {os.path.realpath(source) for source in sources}
        self._taken: dict[str, str] = {}

    def check(self, label: str, output: Path, *, is_skipped: bool) -> None:
        """Raise UsageError for an output that belongs to another input, or that is
        itself an input and not skipped."""
        place = os.path.realpath(output)
        other = os.path.realpath(self._taken.get(place, ""))
        if place in self._taken and other in self._sources and other == os.path.realpath(label):
            raise UsageError(f"{label} is among the inputs twice; name it once")
        if place in self._taken:
            raise UsageError(f"{label} and {self._taken[place]} would both be written to {output}; rename one")
        if place in self._sources and not is_skipped:
            raise UsageError(
                f"{label} would be written to {output}, which is also an input; choose another location with -o"
            )
        self._taken[place] = label
