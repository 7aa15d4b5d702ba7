"""Shared by `upscale`, `generate` and `plan` for several workers: checks, description
of the plan, and the run."""

import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from ultraflash_cli.commands.outcomes import rest_of_batch, show_outcomes
from ultraflash_cli.console import Console
from ultraflash_cli.errors import BatchError, UsageError
from ultraflash_cli.host import check_pair, usable_cores
from ultraflash_cli.jobs.planning.options import SharedOptions
from ultraflash_cli.jobs.planning.spans import UNIT_FRAMES

if TYPE_CHECKING:
    from ultraflash_cli.jobs.batch import Job, Outcome
    from ultraflash_cli.jobs.cluster.planner import PlanOutcome
    from ultraflash_cli.jobs.cluster.units import PlannedFile
    from ultraflash_cli.jobs.running.stop import Stop

__all__ = ["Crew", "choose_crew", "read_device", "run_by_crew"]

OptionsT = TypeVar("OptionsT", bound=SharedOptions)


def read_device(device: str | None) -> None:
    """Raise UsageError for an invalid device name."""
    if device is not None and not re.fullmatch(r"auto|cpu|mps|(cuda|xpu)(:\d+)?", device):
        raise UsageError(f"--device must be auto, cpu, cuda, cuda:N, mps or xpu, got {device!r}")


@dataclass(frozen=True, kw_only=True)
class Crew:
    """Workers that compute a job in units, and their work folder."""

    executor: str
    """`local`, `ray`, or `workers` for workers that are started separately."""
    folder: Path
    """Folder of the plan and its units."""
    is_temporary: bool
    """Whether the folder has a default name and is deleted at the end."""
    unit_frames: int
    devices: tuple[str, ...]
    """Device of each process on this machine, or with Ray of each actor's machine."""
    address: str | None
    workers: int | None


def choose_crew(
    executor: str,
    shared: OptionsT,
    *,
    work_dir: Path | None,
    address: str | None,
    workers: int | None,
    near: Path,
    unit_frames: int = UNIT_FRAMES,
    impossible: Sequence[tuple[str, bool]] = (),
    pairs: bool = False,
) -> tuple[Crew | None, OptionsT]:
    """Return the workers that compute a job in units, or None if this process computes
    it as a whole, and the options for each worker.

    Args:
        executor: `--executor`.
        shared: shared options; `--device` may list several devices.
        work_dir: `--work-dir`.
        address: `--address`.
        workers: `--workers`.
        near: an output or input next to which the folder is created if it need not be shared.
        unit_frames: `--unit-frames`.
        impossible: options that need a single process, with whether they were given.
        pairs: whether the job is a single clip that one process generates on two devices.

    Raises UsageError.
    """
    devices = tuple(shared.device.split(","))
    for name, value in (("--unit-frames", unit_frames), ("--workers", workers)):
        if value is not None and value < 1:
            raise UsageError(f"{name} must be at least 1, got {value}")
    if address is not None and executor != "ray":
        raise UsageError("--address names a Ray cluster; add --executor ray")
    if executor == "local" and work_dir is None and len(devices) == 1 and workers in (None, 1):
        return None, shared
    if pairs and executor == "local" and work_dir is None and len(devices) == 2 and workers in (None, 1):
        check_pair(shared.device)
        return None, shared
    if executor == "workers" and (workers is not None or len(devices) > 1):
        raise UsageError(
            "--executor workers does not start workers; start each with `ultraflash worker DIR --device DEVICE`"
        )
    if executor != "local" and work_dir is None:
        raise UsageError("workers need a folder that all of them share; name it with --work-dir")
    if executor == "ray" and len(devices) > 1:
        raise UsageError("Ray assigns the devices itself; use --device cuda or --device cpu")
    for flag, is_there in impossible:
        if is_there:
            raise UsageError(f"{flag} needs --executor local with a single worker; remove one of them")

    crew = Crew(
        executor=executor,
        folder=work_dir if work_dir is not None else _units_beside(near),
        is_temporary=work_dir is None,
        unit_frames=unit_frames,
        devices=tuple(islice(cycle(devices), workers or len(devices))),
        address=address,
        workers=workers,
    )
    threads = shared.threads
    if threads is None and executor == "local":
        threads = max(1, usable_cores() // len(crew.devices))
    kinds = {device.partition(":")[0] for device in devices}
    if len(kinds) > 1:
        raise UsageError(
            f"--device {shared.device}: different kinds of device produce different pixels; name only one kind"
        )
    return crew, replace(shared, device=devices[0] if len(devices) == 1 else kinds.pop(), threads=threads)


def _units_beside(place: Path) -> Path:
    """Return the default folder of the units of an output or input."""
    named = place if place.name not in ("", "..") else Path(os.path.abspath(place))
    return named.with_name(f".{named.name}.units") if named.name else named / ".units"


def run_by_crew(
    console: Console,
    crew: Crew,
    jobs: "Iterable[Job]",
    *,
    unreadable: "Iterable[Outcome]" = (),
    sources: Iterable[Path] = (),
    stop: "Stop",
    count: int,
    is_batch: bool,
    keep_going: bool,
    json: bool,
) -> None:
    """Plan the jobs and, unless separate workers do so, compute and join them; raises
    the errors of `show_outcomes`."""
    from ultraflash_cli.jobs.cluster.planner import PlanOutcome, plan_units
    from ultraflash_cli.jobs.cluster.presence import present_in

    planned = list(
        _until_failure(
            plan_units(jobs, crew.folder, console.on_event, stop=stop, sources=sources, least_frames=crew.unit_frames),
            keep_going=keep_going,
        )
    )
    planned += [PlanOutcome(source=each.source, label=each.label, failure=each.failure) for each in unreadable]
    if crew.executor == "workers":
        _show_planned(console, planned, crew.folder, count=count, is_batch=is_batch, json=json)
        return
    failed = [each for each in planned if each.failure is not None]
    if failed and not keep_going:
        show_outcomes(
            console, map(_as_outcome, failed), count=count, is_batch=is_batch, keep_going=keep_going, json=json
        )
    files = [each.file for each in planned if each.file is not None]
    with present_in(crew.folder):
        summary = _compute(console, crew, files, stop)
        outcomes = _joined(console, crew, planned, stop)
        show_outcomes(console, outcomes, count=count, is_batch=is_batch, keep_going=True, json=json)
    if json:
        console.data(summary)
    if crew.is_temporary and not failed:
        shutil.rmtree(crew.folder, ignore_errors=True)


def _compute(console: Console, crew: Crew, files: "Sequence[PlannedFile]", stop: "Stop") -> dict[str, object]:
    """Make the workers compute the files; return the report's section on machines."""
    from ultraflash_cli.jobs.cluster.crew import compute_by_processes
    from ultraflash_cli.jobs.cluster.overview import Overview
    from ultraflash_cli.jobs.cluster.units import read_plan

    name = files[0].input if len(files) == 1 else f"{len(files)} files"
    overview = Overview(read_plan(crew.folder), files, console.on_event, name=name)
    workers = len(crew.devices)
    if overview.left:
        if crew.executor == "ray":
            from ultraflash_cli.jobs.cluster.on_ray import compute_on_ray

            workers = compute_on_ray(
                overview,
                address=crew.address,
                workers=crew.workers,
                device=crew.devices[0],
                store=console.settings.home,
                stop=stop,
            )
        else:
            compute_by_processes(overview, crew.devices, stop=stop)
    return overview.as_json(executor=crew.executor, workers=workers)


def _joined(console: Console, crew: Crew, planned: "Sequence[PlanOutcome]", stop: "Stop") -> "Iterator[Outcome]":
    """Join the computed units, and yield the outcomes of all jobs."""
    from ultraflash_cli.jobs.cluster.join import join_units
    from ultraflash_cli.jobs.cluster.units import read_plan

    yield from (_as_outcome(each) for each in planned if each.file is None)
    wanted = [each.file.number for each in planned if each.file is not None]
    yield from join_units(
        read_plan(crew.folder), console.on_event, stop=stop, store=console.settings.home, numbers=wanted
    )


def _as_outcome(planned: "PlanOutcome") -> "Outcome":
    from ultraflash_cli.jobs.batch import Outcome
    from ultraflash_cli.jobs.running.report import Report

    if planned.failure is not None:
        return Outcome(source=planned.source, label=planned.label, failure=planned.failure)
    report = Report(input=planned.source, output=planned.output, skipped=True, model=planned.model)
    return Outcome(source=planned.source, label=planned.label, report=report)


def _until_failure(outcomes: "Iterable[PlanOutcome]", *, keep_going: bool) -> "Iterator[PlanOutcome]":
    for outcome in outcomes:
        yield outcome
        if outcome.failure is not None and not keep_going:
            return


def _show_planned(
    console: Console, outcomes: "Sequence[PlanOutcome]", folder: Path, *, count: int, is_batch: bool, json: bool
) -> None:
    """Show the plan and the next steps; raises the errors of `show_outcomes`."""
    failed: list[str] = []
    files = [outcome.file for outcome in outcomes if outcome.file is not None]
    units = sum(file.units for file in files)
    for outcome in outcomes:
        if json:
            console.data(outcome.as_json())
        if outcome.failure is None:
            console.info(_line(outcome))
        elif not is_batch:
            raise outcome.failure
        else:
            failed.append(outcome.label)
            console.failure(outcome.failure, source=outcome.source)

    if json:
        console.data({"work_dir": str(folder.absolute()), "files": len(files), "units": units})
    if units:
        console.info(
            f"{units} {'unit' if units == 1 else 'units'} in {folder}; run `ultraflash worker {folder}` on every "
            f"machine, then `ultraflash join {folder}`"
        )

    if failed:
        rest = rest_of_batch(count - len(outcomes), outcomes[-1].failure)
        raise BatchError(f"{len(failed)} of {count} files failed: {', '.join(failed)}{rest}")


def _line(outcome: "PlanOutcome") -> str:
    file = outcome.file
    if file is None:
        return f"{outcome.label}: {outcome.output} exists; skipping it"
    facts = [f"{file.units} units" if file.units > 1 else file.note]
    if file.cuts:
        facts.append(f"{file.cuts} scene {'cut' if file.cuts == 1 else 'cuts'}")
    if file.frames is not None:
        facts.append(f"{file.frames} frames")
    known = (
        "; failed units will be tried again" if outcome.retried else " (in the plan already)" if outcome.known else ""
    )
    return f"{outcome.label} -> {file.output}: {', '.join(facts)}{known}"
