"""The progress bar: a line at the bottom of a terminal with the current activity,
progress and remaining time."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ultraflash_cli.streams import TextOutput

if TYPE_CHECKING:
    from rich.text import Text

__all__ = ["Bar", "Step", "clock_time", "lay_out"]

_NAME_COLUMNS = 20
_LEAST_NAME_COLUMNS = 6
_BAR_COLUMNS = 10
"""Minimum useful width of the bar."""
_WIDEST_BAR_COLUMNS = 40
_REFRESHES_A_SECOND = 4


@dataclass(frozen=True, kw_only=True)
class Step:
    """Progress of the work."""

    done: int
    total: int | None
    count: str
    """Count, such as `5/24`."""
    speed: str
    eta_s: float | None = None
    extra: str = ""
    """Text shown after everything else if there is room."""


class Bar:
    """Draws a line and redraws it four times per second until it is stopped. `clock`
    returns seconds.
    """

    def __init__(self, err: TextOutput, name: str, doing: str, *, colored: bool, clock: Callable[[], float]) -> None:
        from rich.console import Console
        from rich.live import Live

        self._name = name
        self._doing = doing
        self._clock = clock
        self._colored = colored
        self._fancy = err.can_show("━╸⠋…")
        self._started_s = clock()
        self._step: Step | None = None
        self._stepped_s = 0.0
        self._console = Console(file=err, no_color=not colored, highlight=False)  # pyright: ignore[reportArgumentType]
        self._live = Live(
            get_renderable=self._draw,
            console=self._console,
            refresh_per_second=_REFRESHES_A_SECOND,
            transient=True,
            redirect_stdout=False,
        )
        self._live.start(refresh=True)

    def tell(self, doing: str) -> None:
        """Show an activity until the first step is shown."""
        self._doing = doing

    def show(self, step: Step) -> None:
        """Show this progress from now on."""
        self._step = step
        self._stepped_s = self._clock()

    def print(self, message: str, style: str | None) -> None:
        """Print a message above the line."""
        from rich.text import Text

        self._console.print(Text(message, style=style or ""), soft_wrap=True)

    def stop(self) -> None:
        """Remove the line from the screen and restore the cursor."""
        self._live.stop()

    def _draw(self) -> "Text":
        now_s = self._clock()
        step = self._step
        if step is None:
            facts = [self._doing, clock_time(now_s - self._started_s)]
            short = facts[1:]
            share = None
        else:
            share = min(1.0, step.done / step.total) if step.total else None
            left = clock_time(now_s - self._started_s)
            if step.total and step.done >= step.total:
                left = "finishing"
            elif step.eta_s is not None:
                left = f"{clock_time(max(0.0, step.eta_s - (now_s - self._stepped_s)))} left"
            facts = [step.count, step.speed, left, *([step.extra] if step.extra else [])]
            short = [step.count.removesuffix(" frames"), step.speed, left.removesuffix(" left")]

        return lay_out(
            self._name,
            share,
            facts,
            short,
            columns=max(1, self._console.width),
            turn=int(_REFRESHES_A_SECOND * (now_s - self._started_s)),
            fancy=self._fancy,
            colored=self._colored,
        )


def lay_out(
    name: str,
    share: float | None,
    facts: list[str],
    short: list[str],
    *,
    columns: int,
    turn: int = 0,
    fancy: bool = True,
    colored: bool = True,
) -> "Text":
    """Return the line for a terminal of this many columns: name, bar, facts.

    If it is too narrow, the `short` facts are used, then the name is truncated, then
    bar and name are omitted.

    Args:
        name: of the clip; its middle is cut.
        share: of the work that is done; None draws a spinner instead of a bar.
        facts: what follows the bar.
        short: the same in fewer columns.
        columns: of the terminal.
        turn: of the spinner.
        fancy: whether the terminal has characters to draw with.
        colored: whether colours tell the done part from the rest.
    """
    from rich.cells import cell_len
    from rich.text import Text

    least = _BAR_COLUMNS if share is not None else 1
    for words in (facts, facts[:3], short):
        behind = "  ".join(words) if words is not short else " ".join(words)
        room = columns - 1 - cell_len(behind) - least - 2
        if room >= min(cell_len(name), _NAME_COLUMNS):
            break
    gap = " " if share is None or words is short else "  "
    line = Text(no_wrap=True, overflow="crop", end="")
    if room >= _LEAST_NAME_COLUMNS:
        shown = _cut(name, min(room, _NAME_COLUMNS), "…" if fancy else "~")
        line.append(shown + " ")
        room -= cell_len(shown)
    elif room + 1 < 0:
        return Text(behind[:columns], no_wrap=True, overflow="crop", end="")
    if share is None:
        line.append(("⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏" if fancy else "|/-\\")[turn % (10 if fancy else 4)])
    else:
        width = min(_WIDEST_BAR_COLUMNS, least + max(0, room - len(gap) + 1))
        done = int(share * width)
        line.append(("━" if fancy else "#") * done, "bar.complete")
        line.append(("━" if fancy and colored else " " if fancy else ".") * (width - done), "bar.back")
    return line.append(gap + behind)


def _cut(name: str, columns: int, mark: str) -> str:
    """Cut the middle out of a name that is too long, because its end distinguishes the
    files of a series."""
    from rich.cells import cell_len, set_cell_size

    if cell_len(name) <= columns:
        return name
    tail = ""
    for character in reversed(name):
        if cell_len(tail) + cell_len(character) > (columns - 1) // 2:
            break
        tail = character + tail
    return set_cell_size(name, columns - 1 - cell_len(tail)).rstrip() + mark + tail


def clock_time(seconds: float) -> str:
    """Return a duration as `m:ss` or `h:mm:ss`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
