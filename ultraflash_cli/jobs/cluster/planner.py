"""Divide jobs into units and enter them in the plan of a shared work folder."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ultraflash_cli.errors import Interrupted, UltraflashError, UsageError
from ultraflash_cli.jobs.batch import Claims, Job, names_of
from ultraflash_cli.jobs.cluster.described import as_json
from ultraflash_cli.jobs.cluster.tasks import prepared_again
from ultraflash_cli.jobs.cluster.units import PLAN, Plan, PlannedFile, read_plan, remove_folder
from ultraflash_cli.jobs.events import Listener, Warned
from ultraflash_cli.jobs.planning.generate import PreparedGeneration
from ultraflash_cli.jobs.planning.spans import UNIT_FRAMES, Span, divide
from ultraflash_cli.jobs.planning.upscale import Prepared, estimate_frames
from ultraflash_cli.jobs.resume.entries import as_read
from ultraflash_cli.jobs.resume.work_folder import OutputLock
from ultraflash_cli.jobs.running.generate import Generation
from ultraflash_cli.jobs.running.source import source_frames
from ultraflash_cli.jobs.running.stop import Stop
from ultraflash_cli.jobs.running.upscale import Upscaling
from ultraflash_cli.video.partial import output_errors

__all__ = ["PlanOutcome", "plan_units"]

_NO_CUTS = "no scene cuts to divide it at: one unit"
_SHORT = "short: one unit"
_GENERATED = "generated as a whole: one unit"
_UNCUT = "--no-cuts: one unit"
_WISHES = ("overwrite", "skip_existing")


@dataclass(frozen=True, kw_only=True)
class PlanOutcome:
    """The entry of the plan for one job."""

    source: str
    label: str
    file: PlannedFile | None = None
    """None if it failed, or was skipped because the output exists."""
    failure: UltraflashError | None = None
    output: str = ""
    """The existing output of a skipped job."""
    model: str = ""
    skipped: bool = False
    """Whether the output exists and existing outputs are skipped."""
    known: bool = False
    """Whether an earlier run has entered it."""
    retried: bool = False
    """Whether failed units of it will be tried again."""

    def as_json(self) -> dict[str, object]:
        """Return the JSON object that `--json` writes for this job."""
        if self.file is None:
            told: dict[str, object] = {"input": self.source, "output": None, "units": 0, "skipped": self.skipped}
            if self.failure is not None:
                told |= {"error": str(self.failure), "exit_code": self.failure.exit_code}
            return told
        file = self.file
        return {
            "input": file.input,
            "output": file.output,
            "model": file.model,
            "threads": file.threads,
            "frames": file.frames,
            "cuts": file.cuts,
            "units": file.units,
            "note": file.note,
            "warnings": list(file.warnings),
        }


def plan_units(
    jobs: Iterable[Job],
    folder: Path,
    on_event: Listener,
    *,
    stop: Stop,
    sources: Iterable[Path] = (),
    least_frames: int = UNIT_FRAMES,
) -> Iterator[PlanOutcome]:
    """Enter the jobs in the plan of a work folder and yield each outcome as it comes.

    Entries of an earlier run are kept while job and input are the same; failed ones are
    tried again. Raises OutputError if the folder cannot be written or another process
    is planning there; Interrupted.
    """
    with output_errors(folder):
        lock = OutputLock(folder)
    with lock:
        plan = read_plan(folder, is_new=True)
        with output_errors(folder / PLAN):
            plan.begin()
        planner = _Planner(plan, on_event, stop, least_frames, Claims(sources))
        for job in jobs:
            source, label = names_of(job)
            planner.check_stop()
            try:
                yield planner.enter(job, source, label)
            except Interrupted as interrupted:
                interrupted.source = source
                raise
            except UltraflashError as failure:
                failure.source = source
                yield PlanOutcome(source=source, label=label, failure=failure)


class _Planner:
    def __init__(self, plan: Plan, on_event: Listener, stop: Stop, least_frames: int, claims: Claims) -> None:
        self._plan = plan
        self._on_event = on_event
        self._stop = stop
        self._least = least_frames
        self._claims = claims
        self._asked = {_key(file.asked): file for file in plan.files.values()}
        self._outputs = {file.output: file for file in plan.files.values()}

    def check_stop(self) -> None:
        """Raise Interrupted once a stop was requested."""
        if self._stop.requested:
            raise self._stop.interruption("interrupted; the same command resumes the plan")

    def enter(self, job: Job, source: str, label: str) -> PlanOutcome:
        """Enter a job, or find its existing entry. Raises the same errors as
        `prepare`."""
        asked = as_json(job)
        known = self._asked.get(_key(asked))
        if known is not None and self._is_current(known, job):
            self._claims.check(label, Path(known.output), is_skipped=False)
            with output_errors(self._plan.folder):
                retried = self._plan.forget_failures(known)
            return PlanOutcome(source=source, label=label, file=known, known=True, retried=retried)

        warnings: list[str] = []

        def warn(message: str) -> None:
            warnings.append(message.removesuffix("."))
            self._on_event(Warned(input=source, message=warnings[-1]))

        prepared = prepared_again(job, to_write=True, encodes_here=False)
        self._claims.check(label, prepared.output, is_skipped=prepared.exists)
        if prepared.exists:
            return PlanOutcome(
                source=source, label=label, skipped=True, output=prepared.shown_output, model=prepared.model
            )
        for message in prepared.warnings:
            warn(message)
        # Settle choices that would differ between workers' machines.
        fixed = replace(
            job,
            output=job.output or prepared.output.absolute(),
            folder=None,
            model=prepared.model,
            threads=prepared.threads,
            # Otherwise no states would be kept, and a dead worker's unit would resume
            # with a wrong one.
            resume=True,
        )
        frames, estimate, cuts, spans, note = self._divide(prepared)
        output = str((job.output or prepared.output).absolute())
        replaced = self._outputs.get(output)
        file = PlannedFile(
            number=max(self._plan.files, default=-1) + 1 if replaced is None else replaced.number,
            asked=asked,
            job=as_json(fixed),
            model=prepared.model,
            threads=prepared.threads,
            input=source,
            label=label,
            output=output,
            inputs=as_read(_inputs(prepared)),
            frames=frames,
            estimate=estimate,
            cuts=cuts,
            spans=tuple(spans) if len(spans) > 1 else (),
            note=note,
            warnings=tuple(warnings),
        )
        with output_errors(self._plan.folder):
            if replaced is not None:
                remove_folder(self._plan.file_folder(file))
            self._plan.enter(file)
        self._outputs[output] = file
        return PlanOutcome(source=source, label=label, file=file)

    def _is_current(self, file: PlannedFile, job: Job) -> bool:
        """Return whether the input is unchanged since the plan, and a joined output
        still exists."""
        if self._plan.joined(file) is not None and not _is_there(Path(file.output)):
            return False
        prepared = prepared_again(job, to_write=False, encodes_here=False)
        return as_read(_inputs(prepared)) == dict(file.inputs)

    def _divide(self, prepared: Prepared | PreparedGeneration) -> tuple[int | None, int, int | None, list[Span], str]:
        """Return the number of frames, an estimate of it, cuts, spans, and the reason
        if there is only one unit."""
        if isinstance(prepared, PreparedGeneration):
            return prepared.frames, prepared.frames, None, [], _GENERATED
        estimate = estimate_frames(prepared.info, prepared.window)
        if prepared.job.cuts == "off":
            return None, estimate or 0, None, [], _UNCUT
        if estimate is not None and estimate < 2 * self._least:
            return None, estimate, None, [], _SHORT
        cuts, total = self._find_cuts(prepared)
        spans = divide(cuts, total, least=self._least)
        note = "" if len(spans) > 1 else _NO_CUTS if not cuts else _SHORT
        return total, total, len(cuts), spans, note

    def _find_cuts(self, prepared: Prepared) -> tuple[list[int], int]:
        """Read the clip once to find its scene cuts and number of frames; warnings are
        left to the workers."""
        cuts: list[int] = []
        total = 0
        for frame in source_frames(prepared, lambda message: None):
            self.check_stop()
            if frame.starts_scene:
                cuts.append(frame.number)
            total += 1
        if not total:
            raise UsageError(f"{prepared.job.source}: no frames in the selected range")
        return cuts, total


def _key(asked: Mapping[str, object]) -> str:
    """Return a key that distinguishes jobs, regardless of how they treat existing
    outputs."""
    return json.dumps({name: value for name, value in asked.items() if name not in _WISHES}, sort_keys=True)


def _is_there(output: Path) -> bool:
    return output.exists() or "%" in output.name


def _inputs(prepared: Prepared | PreparedGeneration) -> dict[str, object]:
    def build(_: object) -> None:
        raise AssertionError("a plan needs no model")

    if isinstance(prepared, Prepared):
        return Upscaling(prepared, build).inputs()  # pyright: ignore[reportArgumentType]
    return Generation(prepared, build).inputs()  # pyright: ignore[reportArgumentType]
