"""Everything people and scripts see: data on stdout, everything else on stderr, a copy in the log file."""

import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TextIO

from ultraflash_cli.errors import OutputError
from ultraflash_cli.jobs.events import (
    Chunk,
    Done,
    Event,
    Failed,
    GenerationPlanned,
    Planned,
    Retrying,
    Started,
    Transfer,
    Warned,
    as_json,
)
from ultraflash_cli.settings import Settings

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

__all__ = ["PLAIN_INTERVAL_S", "Console", "GlobalOptions", "ProgressMode", "describe"]

ProgressMode = Literal["auto", "plain", "json", "none"]

PLAIN_INTERVAL_S = 5.0
"""Plain progress lines come no more often than this."""


_PROMPT_COLUMNS = 60
"""What a line shows of a prompt."""


@dataclass(frozen=True, kw_only=True)
class GlobalOptions:
    """The options that every command takes."""

    quiet: bool = False
    verbose: bool = False
    log_file: Path | None = None
    progress: ProgressMode = "auto"
    no_color: bool = False

    def merged(self, other: "GlobalOptions") -> "GlobalOptions":
        """Combine what stands before the command with what stands after it; the latter wins."""
        return GlobalOptions(
            quiet=self.quiet or other.quiet,
            verbose=self.verbose or other.verbose,
            log_file=other.log_file or self.log_file,
            progress=other.progress if other.progress != "auto" else self.progress,
            no_color=self.no_color or other.no_color,
        )


class Console:
    """The terminal's side of a run.

    `out` takes data only, `err` everything for people. `clock` gives seconds and only paces plain progress lines.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        out: TextIO | None = None,
        err: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.options = GlobalOptions()
        self.settings = settings
        self._out = out if out is not None else sys.stdout
        self._err = err if err is not None else sys.stderr
        self.data_on_err = False
        """stdout is taken by a file that is written there; data for scripts goes to stderr."""
        self._clock = clock
        self._log: TextIO | None = None
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._label = ""
        self._last_line_s: float | None = None
        self._lock = threading.RLock()
        self._notice = ""
        self._said = {""}

    def configure(self, options: GlobalOptions) -> None:
        """Apply further global options; raises OutputError when the log file cannot be written."""
        options = self.options.merged(options)
        if options.log_file is not None and options.log_file != self.options.log_file:
            try:
                log = options.log_file.open("a", encoding="utf-8")
            except OSError as error:
                raise OutputError(
                    f"log file {options.log_file}: {error.strerror}; name a file that can be written"
                ) from error
            self._close_log()
            self._log = log
        self.options = options

    def close(self) -> None:
        """Take the bar off the screen and close the log."""
        with self._lock:
            self._drop_bar()
            self._close_log()

    def data(self, value: object) -> None:
        """Write one JSON value as one line on stdout, or on stderr where stdout is taken."""
        line = json.dumps(value, ensure_ascii=False, allow_nan=False)
        if self.data_on_err:
            with self._lock:
                self._drop_bar()
                self._write_err(line)
        else:
            self.text(line)

    def text(self, line: str) -> None:
        """Write one line of the result on stdout; raises OutputError when nobody reads it any more."""
        try:
            self._out.write(line + "\n")
            self._out.flush()
        except BrokenPipeError as error:
            # Python flushes what is left at exit and would complain once more.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._out.fileno())
            raise OutputError("stdout was closed before everything was written") from error

    def info(self, message: str) -> None:
        """Say something that `-q` silences."""
        self._say(message, shown=not self.options.quiet and self._mode() != "json")

    def notice(self, message: str) -> None:
        """Say something that holds for all clips of a command, once; nothing where it is empty."""
        if message not in self._said:
            self._said.add(message)
            self.info(message)

    def detail(self, message: str) -> None:
        """Say something that only `-v` and the log show."""
        self._say(message, shown=self.options.verbose and self._mode() != "json")

    def warning(self, message: str) -> None:
        """Say something the user should know."""
        self._say(f"warning: {message}", shown=self._mode() != "json", style="yellow")

    def failure(
        self, error: BaseException, *, message: str | None = None, exit_code: int | None = None, source: str = ""
    ) -> int:
        """Say in one line why it ended; with `-v` and in the log also where. Gives the exit code."""
        text = " ".join((message if message is not None else str(error)).split())
        code = exit_code if exit_code is not None else getattr(error, "exit_code", 1)
        trace = "".join(traceback.format_exception(error)).rstrip()
        with self._lock:
            self._drop_bar()
            self.on_event(Failed(input=source, message=text, exit_code=code))
            self._say(trace, shown=self.options.verbose)
            self._say(f"error: {text}", shown=self._mode() != "json", style="bold red")
        return code

    def on_event(self, event: Event) -> None:
        """Show a job's event the way `--progress` asks for; safe to call from any thread."""
        with self._lock:
            if self._mode() == "json":
                line = json.dumps(as_json(event), ensure_ascii=False)
                self._write_err(line)
                self._log_line(line)
                return
            match event:
                case Planned():
                    self._notice = event.notice if isinstance(event, GenerationPlanned) else ""
                    self.detail(describe(event))
                case Started():
                    self.notice(self._notice)
                    if event.note:
                        self.info(event.note)
                    self.detail(f"{event.model} on {event.device}, {event.precision}, {event.threads} threads")
                    self._label = event.label or Path(event.input).name
                    self._start_bar(self._label, event.frames_total, event.frames_resumed)
                case Chunk():
                    self._show_chunk(event)
                case Transfer():
                    self._show_transfer(event)
                case Warned() | Retrying():
                    self.warning(event.message)
                case Done():
                    self._drop_bar()
                    self.info(
                        f"{event.output}: {event.frames} frames in {_duration(event.seconds)} ({event.fps:.2f} fps)"
                    )
                case Failed() | Event():
                    pass

    def _mode(self) -> str:
        mode = self.options.progress
        if mode == "auto":
            return "bar" if self._err.isatty() else "plain"
        return mode

    def _colored(self) -> bool:
        return self._err.isatty() and not (self.options.no_color or self.settings.no_color)

    def _say(self, message: str, *, shown: bool, style: str | None = None) -> None:
        with self._lock:
            self._log_line(message)
            if not shown:
                return
            if self._bar is not None:
                self._bar.console.print(message, style=style, markup=False, highlight=False, soft_wrap=True)
                return
            if style is not None and self._colored():
                code = {"yellow": "33", "bold red": "1;31"}[style]
                message = f"\x1b[{code}m{message}\x1b[0m"
            self._write_err(message)

    def _write_err(self, line: str) -> None:
        # The work goes on when nobody reads stderr any more.
        with suppress(BrokenPipeError):
            self._err.write(line + "\n")
            self._err.flush()

    def _start_bar(self, name: str, total: int | None, completed: int) -> None:
        self._drop_bar()
        self._last_line_s = None
        if self._mode() != "bar" or self.options.quiet:
            return
        from rich.console import Console as RichConsole
        from rich.progress import BarColumn, Progress, TextColumn

        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[counts]}", markup=False),
            console=RichConsole(file=self._err, no_color=not self._colored(), highlight=False),
            transient=True,
        )
        self._task = self._bar.add_task(name, total=total or None, completed=completed, counts="")
        self._bar.start()

    def _show_chunk(self, event: Chunk) -> None:
        self._show_counts(self._label, _counts(event), event.frames_done, event.frames_total)

    def _show_transfer(self, event: Transfer) -> None:
        if event.bytes_done == event.bytes_total:
            self._drop_bar()
            return
        if self._bar is None and self._mode() == "bar":
            self._start_bar(event.input, event.bytes_total, event.bytes_done)
        counts = f"{event.bytes_done / 1e6:.0f} of {event.bytes_total / 1e6:.0f} MB, {event.bytes_per_s / 1e6:.1f} MB/s"
        if event.bytes_per_s > 0:
            self._show_counts(event.input, counts, event.bytes_done, event.bytes_total)

    def _show_counts(self, name: str, counts: str, done: int, total: int | None) -> None:
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, total=total, counts=counts)
            return
        if self._mode() != "plain" or self.options.quiet:
            return
        now_s = self._clock()
        if self._last_line_s is not None and now_s - self._last_line_s < PLAIN_INTERVAL_S:
            return
        self._last_line_s = now_s
        self.info(f"{name}: {counts}")

    def _drop_bar(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
            self._task = None

    def _log_line(self, message: str) -> None:
        if self._log is not None:
            self._log.write(message + "\n")
            self._log.flush()

    def _close_log(self) -> None:
        if self._log is not None:
            self._log.close()
            self._log = None


def describe(plan: Planned) -> str:
    """Say in a few lines what a plan is going to do."""
    if isinstance(plan, GenerationPlanned):
        return _describe_generation(plan)
    size = f"{plan.source_width}x{plan.source_height} -> {plan.width}x{plan.height}"
    lines = [
        f"{plan.input} -> {plan.output}",
        f"  {size}, model {plan.model} x{plan.scale}, {plan.codec} {plan.pix_fmt}",
    ]
    lines += [f"  kept: {', '.join(plan.kept)}"] if plan.kept else []
    lines += [f"  left out: {reason}" for reason in plan.dropped]
    return "\n".join(lines)


def _describe_generation(plan: GenerationPlanned) -> str:
    prompt = plan.input if len(plan.input) <= _PROMPT_COLUMNS else f"{plan.input[: _PROMPT_COLUMNS - 3]}..."
    variant = ", long variant" if plan.long else ""
    lines = [
        f"{prompt} -> {plan.output}",
        f"  {plan.width}x{plan.height}, {plan.seconds:.2f} s, {plan.frames_total} frames in groups of "
        f"{', '.join(map(str, plan.groups))}",
        f"  model {plan.model} x{plan.scale}{variant}, seed {plan.seed}, {plan.codec} {plan.pix_fmt}",
    ]
    lines += [f"  cache management: {plan.cache_management}"] if plan.cache_management != "off" else []
    lines += [f"  and {plan.source_width}x{plan.source_height} -> {plan.low_output}"] if plan.low_output else []
    return "\n".join(lines)


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds))) if seconds >= 60 else f"{seconds:.1f} s"


def _counts(event: Chunk) -> str:
    total = f"/{event.frames_total}" if event.frames_total else ""
    parts = [f"{event.frames_done}{total} frames", f"{event.fps:.2f} fps"]
    if event.eta_s is not None:
        parts.append(f"{timedelta(seconds=round(event.eta_s))} left")
    if event.first_frame_s is not None:
        parts.append(f"first after {_duration(event.first_frame_s)}")
    return ", ".join(parts) + f" (limit: {event.limit})"
