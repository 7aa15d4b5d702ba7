"""All output for users and scripts: data on stdout, everything else on stderr, a copy
in the log file."""

import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Literal, TextIO, cast

from ultraflash_cli.bar import Bar, Step, clock_time
from ultraflash_cli.errors import BatchError, Interrupted, OutputError, Remark, UltraflashError, UsageError
from ultraflash_cli.jobs.events import (
    Chunk,
    Done,
    Event,
    Failed,
    GenerationPlanned,
    Planned,
    Retrying,
    Serving,
    Started,
    Transfer,
    Warned,
    as_json,
)
from ultraflash_cli.jobs.plan_lines import count_of, describe, headline
from ultraflash_cli.jobs.provenance.words import corrected
from ultraflash_cli.settings import Settings
from ultraflash_cli.streams import TextOutput, is_same_file, open_log, printable

__all__ = ["PLAIN_INTERVAL_S", "Console", "GlobalOptions", "ProgressMode"]

ProgressMode = Literal["auto", "plain", "json", "none"]

PLAIN_INTERVAL_S = 5.0
"""Minimum interval between plain progress lines."""

WORTH_TELLING_S = 5.0
"""Minimum predicted time worth showing."""


@dataclass(frozen=True, kw_only=True)
class GlobalOptions:
    """The options that every command accepts."""

    quiet: bool = False
    verbose: bool = False
    log_file: Path | None = None
    progress: ProgressMode = "auto"
    no_color: bool = False

    def merged(self, other: "GlobalOptions") -> "GlobalOptions":
        """Combine options before the command with those after it, which take
        precedence."""
        return GlobalOptions(
            quiet=self.quiet or other.quiet,
            verbose=self.verbose or other.verbose,
            log_file=other.log_file or self.log_file,
            progress=other.progress if other.progress != "auto" else self.progress,
            no_color=self.no_color or other.no_color,
        )


class Console:
    """The terminal output of a run. `out` receives only data, `err` everything for
    users. `clock` returns seconds and only paces plain progress lines.
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
        self._out = TextOutput(out if out is not None else sys.stdout)
        self._err = TextOutput(err if err is not None else sys.stderr)
        self.data_on_err = False
        """Whether stdout is occupied by an output file, so that data for scripts go to
        stderr."""
        self.failures_are_data = False
        """Whether each failure is an object for scripts (`--json`)."""
        self._told: set[str] = set()
        self._clock = clock
        self._log: TextOutput | None = None
        self._log_path: Path | None = None
        self._bar: Bar | None = None
        self._label = ""
        self._last_line_s: float | None = None
        self._lock = threading.RLock()
        self._notice = ""
        self._said = {""}
        self.old_spellings: list[str] = []
        """Warnings about old spellings on the command line, shown once the destination
        of messages is known."""

    def configure(self, options: GlobalOptions, *, named: Iterable[Path] | None = ()) -> None:
        """Apply further global options; raises OutputError when the log file cannot be written.

        `named` are the files that the command names; the log may not be one of them
        (UsageError). While they are unknown (None), the log is not opened.
        """
        self.options = self.options.merged(options)
        if named is None:
            return
        log_file = self.options.log_file
        if log_file is not None and any(is_same_file(log_file, each) for each in named):
            self.options = replace(self.options, log_file=None)
            raise UsageError(f"--log-file {log_file} is used by the command itself; choose another file")
        self._open_log()

    def warn_of_old_spellings(self) -> None:
        """Warn of the old spellings on the command line, once."""
        for each in self.old_spellings:
            self.warning(each)
        self.old_spellings = []

    def _open_log(self) -> None:
        path = self.options.log_file
        if path is not None and path != self._log_path:
            self.options = replace(self.options, log_file=None)
            log = TextOutput(open_log(path))
            # A full disk is reported now; if it fills up later, only the log is lost.
            if not log.write_line(f"ultraflash {version('ultraflash')}"):
                raise OutputError(f"log file {path}: {log.failure}; choose a writable file")
            self._close_log()
            self._log, self._log_path = log, path
            self.options = replace(self.options, log_file=path)

    def close(self) -> None:
        """Remove the bar from the screen and close the log."""
        with self._lock:
            self._drop_bar()
            self._close_log()

    def data(self, value: object) -> None:
        """Write a JSON value as one line on stdout, or on stderr if stdout is occupied.
        It is ASCII, so that it is valid in every encoding and preserves names that are
        not UTF-8. Raises OutputError like `text`, but not for a failure, which is also
        shown on stderr and decides the exit code.
        """
        failure = cast("dict[str, object]", value).get("error") if isinstance(value, dict) else None
        with suppress(OutputError) if isinstance(failure, str) else nullcontext():
            self._write_data(self._discreet(json.dumps(value, allow_nan=False)))
        self._told |= {failure} if isinstance(failure, str) else set()

    def _write_data(self, line: str) -> None:
        if not self.data_on_err:
            self._write_out(line)
            return
        with self._lock:
            self._drop_bar()
            if not self._err.write_line(line):
                raise OutputError(f"the result cannot be written on stderr: {self._err.failure}")

    def text(self, line: str) -> None:
        """Write one line of the result on stdout; raises OutputError if that fails."""
        self._write_out(self._discreet(printable(line)))

    def help(self, page: str) -> None:
        """Write help that nobody requested, on stderr."""
        self._err.write_line(page)

    def _write_out(self, line: str) -> None:
        if self._out.write_line(line):
            return
        if self._out.failure == "it was closed":
            raise OutputError("stdout was closed before everything was written")
        raise OutputError(f"the result cannot be written to stdout: {self._out.failure}")

    def info(self, message: str) -> None:
        """Print a message that `-q` silences."""
        self._say(message, shown=not self.options.quiet and self._mode() != "json")

    def notice(self, message: str) -> None:
        """Print a message that applies to all clips of a command, once; nothing if it is empty."""
        if message not in self._said:
            self._said.add(message)
            self.info(message)

    def detail(self, message: str) -> None:
        """Print a message that only `-v` and the log show."""
        self._say(message, shown=self.options.verbose and self._mode() != "json")

    def warning(self, message: str) -> None:
        """Print a warning; `-q` silences a `Remark`."""
        shown = self._mode() != "json" and not (self.options.quiet and isinstance(message, Remark))
        self._say(f"warning: {message.removesuffix('.')}", shown=shown, style="yellow")

    def failure(
        self, error: BaseException, *, message: str | None = None, exit_code: int | None = None, source: str = ""
    ) -> int:
        """Print the error in one line, with a traceback under `-v` and in the log.
        Returns the exit code."""
        text = " ".join((message if message is not None else str(error)).split()).removesuffix(".")
        code = exit_code if exit_code is not None else getattr(error, "exit_code", 1)
        with suppress(UltraflashError):
            self._open_log()  # also for errors from before the command was known
        trace = "".join(traceback.format_exception(error)).rstrip()
        with self._lock:
            self._drop_bar()
            self.on_event(Failed(input=source or getattr(error, "source", ""), message=text, exit_code=code))
            for line in trace.split("\n"):
                self._say(line, shown=self.options.verbose)
            self._say(f"error: {text}", shown=self._mode() != "json", style="bold red")
        if self.failures_are_data:
            self._tell(error, text, code)
        return code

    def _tell(self, error: BaseException, text: str, exit_code: int) -> None:
        """Write a failure as an object for scripts, unless the command has done so. The
        files of a batch have their own ones."""
        if str(error) in self._told or (isinstance(error, BatchError) and self._told):
            return
        source = getattr(error, "source", "")
        about = {"input": source, "output": None} if source else {}
        self.data({**about, "error": text, "exit_code": exit_code})

    @contextmanager
    def working(self, name: str, doing: str) -> Generator[None]:
        """Show an activity while the block runs, with a clock on a terminal."""
        with self._lock:
            self._start_bar(name, doing)
            if self._bar is None:
                self.info(f"{name}: {doing}")
        try:
            yield
        finally:
            with self._lock:
                self._drop_bar()

    def acknowledge_stop(self) -> None:
        """Print what will happen after the first signal; a signal handler may call it."""
        message = "finishing the current group of frames; press again to stop now"
        # The interrupted thread may be in the middle of a line.
        threading.Thread(target=self.info, args=(message,), daemon=True).start()

    def leave_at_once(self, exit_code: int) -> None:
        """Print that a second signal ends the process, past all locks; a signal handler may call it."""
        gone = Interrupted("stopped; the current group is lost, the same command resumes before it")
        if self._mode() == "json":
            line = json.dumps(as_json(Failed(input="", message=str(gone), exit_code=exit_code)))
        else:
            line = f"error: {gone}"
        # The bar's line is cleared and the cursor, which it hides, shown again.
        clear = "\r\x1b[2K\x1b[?25h" if self._bar is not None else ""
        try:
            os.write(self._err.fileno(), f"{clear}{line}\n".encode())
        except (OSError, ValueError):
            return

    def on_event(self, event: Event) -> None:
        """Show a job's event in the form selected by `--progress`; may be called from
        any thread."""
        with self._lock:
            if self._mode() == "json":
                line = self._discreet(json.dumps(as_json(event)))
                self._err.write_line(line)
                self._log_line(line)
                return

            match event:
                case Planned():
                    self._show_plan(event)
                case Started():
                    self._show_start(event)
                case Chunk():
                    self._show_chunk(event)
                case Transfer():
                    self._show_transfer(event)
                case Warned() | Retrying():
                    self.warning(event.message)
                case Serving():
                    self._say(f"watch the job at {event.url}", shown=True)
                case Done():
                    self._drop_bar()
                    # Where other processes computed the frames, the speed is unknown.
                    speed = f" ({event.fps:.2f} fps)" if event.fps else ""
                    self.info(
                        f"{event.output}: {count_of(event.frames, 'frame')} in {_duration(event.seconds)}"
                        f"{speed}{_guarded(event.guarded_share)}"
                    )
                case Failed() | Event():
                    pass

    def _discreet(self, text: str) -> str:
        """Remove tokens and passwords from messages of any library."""
        for secret in self.settings.secrets:
            text = text.replace(secret, "***")
        return text

    def _mode(self) -> str:
        mode = self.options.progress
        if mode == "auto":
            return "bar" if self._err.isatty() else "plain"
        return mode

    def _colored(self) -> bool:
        return self._err.isatty() and not (self.options.no_color or self.settings.no_color)

    def _say(self, message: str, *, shown: bool, style: str | None = None) -> None:
        message = self._discreet(printable(message))
        with self._lock:
            self._log_line(message)
            if not shown:
                return
            if self._bar is not None:
                self._bar.print(message, style)
                return
            if style is not None and self._colored():
                code = {"yellow": "33", "bold red": "1;31"}[style]
                message = f"\x1b[{code}m{message}\x1b[0m"
            # The run continues even if stderr no longer has a reader.
            self._err.write_line(message)

    def _show_plan(self, event: Planned) -> None:
        generated = isinstance(event, GenerationPlanned)
        self._notice = event.notice if generated else ""
        first, *more = describe(event)
        self.info(f"{first}: {headline(event)}")
        for line in more:
            self.detail(line)
        self._label = Path(event.output if generated else event.input).name
        self._start_bar(self._label, "loading the model")

    def _show_start(self, event: Started) -> None:
        self.notice(self._notice)
        if event.note:
            self.info(event.note)
        self.notice(f"{event.model} on {event.device}, {event.precision}, {count_of(event.threads, 'thread')}")
        if event.predicted_s is not None and event.predicted_s >= WORTH_TELLING_S:
            self.info(f"{event.label or Path(event.input).name}: takes about {_roughly(event.predicted_s)}")
        self._label = event.label or Path(event.input).name
        self._last_line_s = None
        if self._bar is None:
            self._start_bar(self._label, "loading the model")
        if self._bar is not None:
            self._bar.tell("waiting for the first frames")

    def _start_bar(self, name: str, doing: str) -> None:
        self._drop_bar()
        self._last_line_s = None
        if self._mode() == "bar" and not self.options.quiet:
            self._bar = Bar(self._err, printable(name), doing, colored=self._colored(), clock=self._clock)

    def _show_chunk(self, event: Chunk) -> None:
        total = f"/{event.frames_total}" if event.frames_total else ""
        if self._bar is not None:
            self._bar.show(
                Step(
                    done=event.frames_done,
                    total=event.frames_total,
                    count=f"{event.frames_done}{total} frames",
                    speed=f"{event.fps:.2f} fps",
                    eta_s=event.eta_s,
                    extra=_verbose_facts(event) if self.options.verbose else "",
                )
            )
            return
        count = f"{event.frames_done}{total} frames" if total else count_of(event.frames_done, "frame")
        parts = [count, f"{event.fps:.2f} fps"]
        if event.eta_s is not None:
            parts.append(f"{clock_time(event.eta_s)} left")
        if self.options.verbose:
            parts.append(_verbose_facts(event))
        self._show_plain_line(self._label, ", ".join(parts))

    def _show_transfer(self, event: Transfer) -> None:
        if event.bytes_done == event.bytes_total:
            self._drop_bar()
            return
        if self._bar is None:
            self._start_bar(event.input, "connecting")
        if event.bytes_per_s <= 0:
            return
        done, total = event.bytes_done / 1e6, event.bytes_total / 1e6
        count, speed = f"{done:.0f} of {total:.0f} MB", f"{event.bytes_per_s / 1e6:.1f} MB/s"
        if self._bar is not None:
            eta_s = (event.bytes_total - event.bytes_done) / event.bytes_per_s
            self._bar.show(Step(done=event.bytes_done, total=event.bytes_total, count=count, speed=speed, eta_s=eta_s))
        else:
            self._show_plain_line(event.input, f"{count}, {speed}")

    def _show_plain_line(self, name: str, facts: str) -> None:
        if self._mode() != "plain" or self.options.quiet:
            return
        now_s = self._clock()
        if self._last_line_s is not None and now_s - self._last_line_s < PLAIN_INTERVAL_S:
            return
        self._last_line_s = now_s
        self.info(f"{name}: {facts}")

    def _drop_bar(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _log_line(self, message: str) -> None:
        if self._log is None or self._log.write_line(message):
            return
        log, self._log = self._log, None
        log.close()
        self.warning(f"log file {self.options.log_file}: {log.failure}; the log ends here, the run continues")

    def _close_log(self) -> None:
        if self._log is not None:
            self._log.close()
            self._log = None


def _guarded(share: float | None) -> str:
    """Return what the guard has corrected as text; empty if that is nothing."""
    return f", {corrected(share)} (--guard)" if share else ""


def _duration(seconds: float) -> str:
    return clock_time(seconds) if seconds >= 60 else f"{seconds:.1f} s"


def _roughly(seconds: float) -> str:
    return clock_time(seconds) if seconds >= 60 else f"{seconds:.0f} s"


def _verbose_facts(event: Chunk) -> str:
    first = f", first after {_duration(event.first_frame_s)}" if event.first_frame_s is not None else ""
    return f"limit: {event.limit}{first}"
