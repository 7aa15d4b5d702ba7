"""What commands over several clips share: each outcome shown as it comes, failures told together."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ultraflash_cli.console import Console, describe
from ultraflash_cli.errors import BatchError

if TYPE_CHECKING:
    from ultraflash_cli.jobs.batch import Outcome

__all__ = ["show_outcomes"]


def show_outcomes(
    console: Console, outcomes: "Iterable[Outcome]", *, count: int, is_batch: bool, keep_going: bool, json: bool
) -> None:
    """Show the outcomes of `count` clips, stopping at the first failure unless `keep_going`.

    Raises the failure itself where there is a single clip, else BatchError at the end.
    """
    failed: list[Outcome] = []
    tried = 0
    for outcome in outcomes:
        tried += 1
        _show(console, outcome, json=json)
        if outcome.failure is None:
            continue
        if not is_batch:
            raise outcome.failure
        failed.append(outcome)
        console.failure(outcome.failure, source=outcome.source)
        if not keep_going:
            break
    if failed:
        names = ", ".join(outcome.label for outcome in failed)
        left = count - tried
        rest = f"; {left} not tried, --keep-going goes on after a failure" if left else ""
        raise BatchError(f"{len(failed)} of {count} files failed: {names}{rest}")


def _show(console: Console, outcome: "Outcome", *, json: bool) -> None:
    from ultraflash_cli.jobs.memory import describe_memory

    if json:
        console.data(outcome.as_json())
    elif outcome.plan is not None:
        console.info(describe(outcome.plan))
        if outcome.memory is not None:
            for line in describe_memory(outcome.memory):
                console.info(f"  {line}")
    elif outcome.report is not None and outcome.report.skipped:
        console.info(f"{outcome.report.output} exists, {outcome.label} is skipped")
