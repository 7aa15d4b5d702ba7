"""`ultraflash plan`, `worker` and `join`: one job on many machines."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ultraflash_cli.commands import upscale
from ultraflash_cli.commands.outcomes import show_outcomes
from ultraflash_cli.commands.units import read_device
from ultraflash_cli.console import Console
from ultraflash_cli.errors import BatchError, UsageError
from ultraflash_cli.options import JsonOption, as_path, with_console

if TYPE_CHECKING:
    from ultraflash_cli.jobs.cluster.worker import UnitOutcome

__all__ = ["join", "plan", "worker"]

WorkDirArgument = Annotated[
    Path, typer.Argument(metavar="DIR", parser=as_path, help="The --work-dir of the plan, as this machine sees it.")
]
_NOT_PLANNED = {"executor", "address", "workers", "html", "serve", "dry_run"}
"""Options of `upscale` that `plan` lacks."""


def _planning() -> Callable[..., int | None]:
    """Return the command `plan`, which has the options of `upscale` and stops after
    planning the units."""
    signature = inspect.signature(upscale.upscale)
    kept = [each for name, each in signature.parameters.items() if name not in _NOT_PLANNED]

    def plan(ctx: typer.Context, **values: Any) -> int | None:
        """Divide an upscale into units for many machines.

        A unit begins at a scene cut, where the model resets in any case: the joined result is that of a single
        machine, byte for byte. A clip without cuts is one unit. `ultraflash worker` computes the units, `ultraflash
        join` puts the outputs in place; all three may be killed and run again at any time.
        """
        return upscale.upscale(ctx, **values, executor="workers", html=False, serve=None, dry_run=False)

    plan.__signature__ = signature.replace(parameters=kept)
    plan.__annotations__ = {each.name: each.annotation for each in kept}
    return plan


plan = _planning()


@with_console(hidden=True)
def worker(
    console: Console,
    folder: WorkDirArgument,
    index: Annotated[
        int | None,
        typer.Option("--index", metavar="N", help="Compute only unit N, counted from 0; with --of, a share of all."),
    ] = None,
    of: Annotated[
        int | None,
        typer.Option("--of", metavar="M", help="With --index: every M-th unit starting at N, as one of M workers."),
    ] = None,
    any_unit: Annotated[
        bool, typer.Option("--any", help="Claim units until none is left; the default without --index.")
    ] = False,
    device: Annotated[
        str | None,
        typer.Option(
            "--device", metavar="auto|cpu|cuda[:i]", help="Where the model runs here, if different from the plan."
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Compute units of a plan; run it on as many machines as you like.

    If a worker dies, the others notice and one of them resumes its unit. A unit that
    fails twice fails its file; the others go ahead.
    """
    from ultraflash_cli.jobs.cluster.presence import present_in
    from ultraflash_cli.jobs.cluster.units import read_plan
    from ultraflash_cli.jobs.running.stop import stopping_on_signals

    if any_unit and index is not None:
        raise UsageError("--any and --index exclude each other; choose one")
    read_device(device)
    found = read_plan(folder)

    # Imported late, since this imports torch.
    from ultraflash_cli.jobs.cluster.worker import Worker, share_of

    units = share_of(found.units, index=index, of=of)
    failed: list[UnitOutcome] = []
    stopping = stopping_on_signals(on_first=console.acknowledge_stop, on_second=console.leave_at_once)
    with stopping as stop, present_in(folder):
        here = Worker(found, console.on_event, stop=stop, store=console.settings.home, device=device)
        done = 0
        for outcome in here.run(units):
            if json:
                console.data(outcome.as_json())
            if outcome.failure is not None:
                console.warning(f"{outcome.unit.name}: {outcome.failure}{_what_next(outcome)}")
            if outcome.state == "failed":
                failed.append(outcome)
            done += outcome.state == "done"
    console.info(f"computed {done} of {len(units)} units, nothing is left to do")
    if failed and len(found.files) == 1 and failed[0].failure is not None:
        raise failed[0].failure
    if failed:
        names = ", ".join(dict.fromkeys(outcome.unit.file.label for outcome in failed))
        raise BatchError(f"{len(failed)} of {len(units)} units failed: {names}")


@with_console(hidden=True)
def join(console: Console, folder: WorkDirArgument, json: JsonOption = False) -> None:
    """Put the outputs of a plan in place once their units are done.

    Every output is checked as after a local run. Files with unfinished or failed units
    are listed: `ultraflash worker` finishes the former, and running `ultraflash plan`
    again allows another attempt at the latter.
    """
    from ultraflash_cli.jobs.cluster.presence import present_in
    from ultraflash_cli.jobs.cluster.units import read_plan
    from ultraflash_cli.jobs.running.stop import stopping_on_signals

    found = read_plan(folder)

    # Imported late, since this imports torch.
    from ultraflash_cli.jobs.cluster.join import join_units

    stopping = stopping_on_signals(on_first=console.acknowledge_stop, on_second=console.leave_at_once)
    with stopping as stop, present_in(folder):
        outcomes = join_units(found, console.on_event, stop=stop, store=console.settings.home)
        count = len(found.files)
        show_outcomes(console, outcomes, count=count, is_batch=count > 1, keep_going=True, json=json)


def _what_next(outcome: "UnitOutcome") -> str:
    return "; the unit will be tried once more" if outcome.state == "retried" else "; its file has failed"
