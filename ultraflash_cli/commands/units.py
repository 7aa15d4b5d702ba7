"""What `upscale`, `generate` and `plan` share where others compute: checks, and the plan in words."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ultraflash_cli.console import Console
from ultraflash_cli.errors import BatchError, UsageError

if TYPE_CHECKING:
    from ultraflash_cli.jobs.cluster.planner import PlanOutcome

__all__ = ["check_executor", "read_device", "show_planned"]


def read_device(device: str | None) -> None:
    """Raise UsageError for a device that there cannot be."""
    if device is not None and not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        raise UsageError(f"--device must be auto, cpu, cuda or cuda:N, got {device!r}")


def check_executor(
    executor: str,
    work_dir: Path | None,
    unit_frames: int,
    *,
    html: bool = False,
    serve: str | None,
    still: bool = False,
) -> Path | None:
    """Return the folder for the units; None where this process does all. Raises UsageError."""
    if unit_frames < 1:
        raise UsageError(f"--unit-frames must be at least 1, got {unit_frames}")
    if executor == "local":
        if work_dir is not None:
            raise UsageError("--work-dir holds the units of other workers; add --executor workers")
        return None
    if work_dir is None:
        raise UsageError("other workers need a folder that all of them share; name it with --work-dir")
    for flag, is_there in (("--html", html), ("--serve", serve is not None), ("--preview frame", still)):
        if is_there:
            raise UsageError(f"{flag} needs --executor local; remove one of them")
    return work_dir


def show_planned(
    console: Console,
    outcomes: "Iterable[PlanOutcome]",
    folder: Path,
    *,
    count: int,
    is_batch: bool,
    keep_going: bool,
    json: bool,
) -> None:
    """Show what was planned, and what to do with it; fails as `show_outcomes` does."""
    failed: list[str] = []
    tried = files = units = 0
    for outcome in outcomes:
        tried += 1
        if json:
            console.data(outcome.as_json())
        if outcome.file is not None:
            files, units = files + 1, units + outcome.file.units
        if outcome.failure is None:
            console.info(_line(outcome))
            continue
        if not is_batch:
            raise outcome.failure
        failed.append(outcome.label)
        console.failure(outcome.failure, source=outcome.source)
        if not keep_going:
            break
    if json:
        console.data({"work_dir": str(folder.absolute()), "files": files, "units": units})
    if units:
        console.info(
            f"{units} {'unit' if units == 1 else 'units'} in {folder}; run `ultraflash worker {folder}` on every "
            f"machine, then `ultraflash join {folder}`"
        )
    if failed:
        rest = f"; {count - tried} not tried, use --keep-going to continue after a failure" if count > tried else ""
        raise BatchError(f"{len(failed)} of {count} files failed: {', '.join(failed)}{rest}")


def _line(outcome: "PlanOutcome") -> str:
    file = outcome.file
    if file is None:
        return f"{outcome.label}: the output exists; skipping it"
    facts = [f"{file.units} units" if file.units > 1 else file.note]
    if file.cuts:
        facts.append(f"{file.cuts} scene {'cut' if file.cuts == 1 else 'cuts'}")
    if file.frames is not None:
        facts.append(f"{file.frames} frames")
    known = (
        "; failed units will be tried again" if outcome.retried else " (in the plan already)" if outcome.known else ""
    )
    return f"{outcome.label} -> {file.output}: {', '.join(facts)}{known}"
