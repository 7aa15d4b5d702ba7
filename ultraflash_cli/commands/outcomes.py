"""What commands over several clips share: each outcome shown as it comes, failures told together."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from ultraflash_cli.console import Console, describe
from ultraflash_cli.errors import BatchError
from ultraflash_cli.jobs.events import GenerationPlanned

if TYPE_CHECKING:
    from ultraflash_cli.jobs.batch import Outcome

__all__ = ["show_outcomes"]


def show_outcomes(
    console: Console, outcomes: "Iterable[Outcome]", *, count: int, is_batch: bool, keep_going: bool, json: bool
) -> None:
    """Show the outcomes of `count` clips, stopping at the first failure unless `keep_going`.

    A batch ends with a table. Raises the failure itself where there is a single clip, else BatchError at the end.
    """
    failed: list[Outcome] = []
    shown: list[Outcome] = []
    for outcome in outcomes:
        shown.append(outcome)
        _show(console, outcome, json=json)
        if outcome.failure is None:
            continue
        if not is_batch:
            raise outcome.failure
        failed.append(outcome)
        console.failure(outcome.failure, source=outcome.source)
        if not keep_going:
            break
    if is_batch and not any(outcome.plan is not None for outcome in shown):
        for line in _table(shown):
            console.info(line)
    if failed:
        names = ", ".join(outcome.label for outcome in failed)
        left = count - len(shown)
        rest = f"; {left} not tried, --keep-going goes on after a failure" if left else ""
        raise BatchError(f"{len(failed)} of {count} files failed: {names}{rest}")


def _table(outcomes: "Sequence[Outcome]") -> list[str]:
    """Say in a line for each clip what became of it, and in one what became of all."""
    rows: list[tuple[str, str, str, str, str]] = []
    for outcome in outcomes:
        report = outcome.report
        if report is None:
            rows.append(("failed", "", "", "", outcome.label))
        elif report.skipped:
            rows.append(("skipped", "", "", "", report.output))
        else:
            size, speed = f"{report.width}x{report.height}", f"{report.fps_wall or 0:.2f} fps"
            rows.append(("done", f"{report.frames_out} frames", size, speed, report.output))
    widths = [max(len(row[column]) for row in rows) for column in range(4)] if rows else []
    lines = [
        "  ".join([cell.ljust(width) for cell, width in zip(row, widths, strict=False)] + [row[4]]) for row in rows
    ]
    counts = {state: sum(row[0] == state for row in rows) for state in ("done", "skipped", "failed")}
    return [*lines, ", ".join(f"{count} {state}" for state, count in counts.items())]


def _show(console: Console, outcome: "Outcome", *, json: bool) -> None:
    from ultraflash_cli.jobs.memory import describe_memory

    if json:
        console.data(outcome.as_json())
    elif outcome.plan is not None:
        if isinstance(outcome.plan, GenerationPlanned):
            console.notice(outcome.plan.notice)
        console.info(describe(outcome.plan))
        if outcome.memory is not None:
            for line in describe_memory(outcome.memory):
                console.info(f"  {line}")
    elif outcome.report is not None and outcome.report.skipped:
        console.info(f"{outcome.report.output} exists, {outcome.label} is skipped")
