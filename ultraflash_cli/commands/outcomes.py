"""Shared by commands for several clips: show outcomes as they arrive, and a summary of
failures."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from ultraflash_cli.console import Console
from ultraflash_cli.errors import BatchError, OutputError, OutputExists, UltraflashError
from ultraflash_cli.jobs.events import GenerationPlanned, Planned
from ultraflash_cli.jobs.plan_lines import count_of, describe

if TYPE_CHECKING:
    from ultraflash_cli.jobs.batch import Outcome
    from ultraflash_cli.jobs.running.forecast import Forecast

__all__ = ["MOST_PLANNED", "rest_of_batch", "show_outcomes"]

MOST_PLANNED = 200
"""Maximum number of clips that a dry run for people plans; more can be generated with one
option than anyone can read."""

_PLANS_SHOWN = 10
"""Maximum number of plans that are printed of clips to generate."""

_NAMED = 20
"""Maximum number of failed files named in the last line."""


def show_outcomes(
    console: Console, outcomes: "Iterable[Outcome]", *, count: int, is_batch: bool, keep_going: bool, json: bool
) -> None:
    """Show the outcomes of `count` clips, stopping at the first failure unless `keep_going`.

    A batch ends with a table. A report that cannot be written does not end a batch; it is reported at the end. Raises
    the failure itself for a single clip, else BatchError, or OutputError for the report.
    """
    failed: list[str] = []
    failure: UltraflashError | None = None
    rows: list[_Row] = []
    plans = _Plans(count)
    tried = 0
    unreported: OutputError | None = None
    for outcome in outcomes:
        tried += 1
        try:
            if json or plans.shows(outcome):
                _show(console, outcome, json=json)
        except OutputError as error:
            if outcome.report is None:
                raise  # nothing was made, so there is nothing else to show
            if unreported is None and is_batch:
                console.warning(str(error))
            unreported = error
        if outcome.plan is None:
            rows.append(_row(outcome))
        if outcome.failure is None:
            continue
        if not is_batch:
            raise outcome.failure
        failure = outcome.failure
        failed.append(outcome.label)
        console.failure(outcome.failure, source=outcome.source)
        if not keep_going:
            break

    if is_batch and not json:
        for line in plans.ending(skipped=sum(row[0] == "skipped" for row in rows)):
            console.info(line)
    if is_batch and len(rows) == tried:  # a dry run makes nothing to list in a table
        for line in _table(rows):
            console.info(line)

    if failed:
        names = ", ".join(failed[:_NAMED]) + (f" and {len(failed) - _NAMED} more" if len(failed) > _NAMED else "")
        rest = rest_of_batch(count - tried, failure)
        raise BatchError(f"{len(failed)} of {count} files failed: {names}{rest}")
    if unreported is not None:
        raise OutputError(f"{unreported}; the output itself is complete")


def rest_of_batch(left: int, failure: UltraflashError | None) -> str:
    """Return what to do about the `left` files that a batch has not tried after its last
    failure, as the end of a message."""
    if not left:
        return ""
    if isinstance(failure, OutputExists):
        return f"; {left} not tried, use -n to skip what is done and resume the rest"
    return f"; {left} not tried, use --keep-going to continue after a failure"


class _Plans:
    """The plans of a dry run: which are printed, and what all of them take together."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._tried = 0
        self._hidden = 0
        self._planned: list[Planned] = []
        self._forecasts: list[Forecast] = []

    def shows(self, outcome: "Outcome") -> bool:
        """Count an outcome; return whether it is printed."""
        self._tried += 1
        if outcome.plan is None:
            return True
        self._planned.append(outcome.plan)
        if outcome.forecast is not None:
            self._forecasts.append(outcome.forecast)
        if isinstance(outcome.plan, GenerationPlanned) and len(self._planned) > _PLANS_SHOWN:
            self._hidden += 1
            return False
        return True

    def ending(self, *, skipped: int) -> list[str]:
        """Return the last lines: how many are not printed, and the total; none without
        plans."""
        from ultraflash_cli.jobs.running.forecast import duration_words, size_words

        if not self._planned:
            return []
        is_cut = isinstance(self._planned[0], GenerationPlanned) and self._tried == MOST_PLANNED
        unplanned = self._count - self._tried if is_cut else 0
        lines: list[str] = []
        if self._hidden:
            checked = f"; the first {MOST_PLANNED} were checked" if unplanned else ""
            lines.append(f"... and {self._hidden + unplanned:,} more{checked}")

        seconds = [each.seconds for each in self._forecasts if each.seconds is not None]
        sizes = [each.output_bytes for each in self._forecasts if each.output_bytes is not None]
        clips = len(self._planned) + unplanned
        parts = [f"{clips:,} clip{'' if clips == 1 else 's'}"]
        times = clips / len(self._planned)
        parts += [f"about {duration_words(times * sum(seconds))}"] if len(seconds) == len(self._planned) else []
        parts += [f"about {size_words(round(times * sum(sizes)))}"] if len(sizes) == len(self._planned) else []
        parts += [f"{skipped:,} skipped"] if skipped else []
        return [*lines, f"total: {', '.join(parts)}"]


_Row = tuple[str, str, str, str, str]


def _row(outcome: "Outcome") -> _Row:
    """Return a row of the table for a clip."""
    report = outcome.report
    if report is None:
        return "failed", "", "", "", outcome.label
    if report.skipped:
        return "skipped", "", "", "", report.output
    size = f"{report.width}x{report.height}"
    speed = f"{report.fps_wall:.2f} fps" if report.fps_wall else ""
    return "done", count_of(report.frames_out, "frame"), size, speed, report.output


def _table(rows: Sequence[_Row]) -> list[str]:
    """Return the lines of the table, and a last line with the counts. Skipped clips
    have been named already."""
    listed = [row for row in rows if row[0] != "skipped"]
    widths = [max((len(row[column]) for row in listed), default=0) for column in range(4)]
    lines = [
        "  ".join([cell.ljust(width) for cell, width in zip(row, widths, strict=False)] + [row[4]]) for row in listed
    ]
    counts = {state: sum(row[0] == state for row in rows) for state in ("done", "skipped", "failed")}
    return [*lines, ", ".join(f"{count} {state}" for state, count in counts.items())]


def _show(console: Console, outcome: "Outcome", *, json: bool) -> None:
    if json:
        console.data(outcome.as_json())
    elif outcome.plan is not None:
        from ultraflash_cli.jobs.running.forecast import describe_forecast
        from ultraflash_cli.models.memory import describe_memory

        if isinstance(outcome.plan, GenerationPlanned):
            console.notice(outcome.plan.notice)
        for line in describe(outcome.plan):
            console.info(line)
        if outcome.memory is not None:
            for line in describe_memory(outcome.memory):
                console.info(f"  {line}")
        if outcome.forecast is not None:
            for line in describe_forecast(outcome.forecast):
                console.info(f"  {line}")
        for message in outcome.warnings:
            console.warning(message)
    elif outcome.report is not None and outcome.report.skipped:
        console.info(f"{outcome.report.output} exists; skipping {outcome.label}")
