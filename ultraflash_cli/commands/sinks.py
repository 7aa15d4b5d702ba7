"""Outputs that are streams: standard output under any of its names, named pipes, the
null device."""

import io
import os
import stat
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from ultraflash_cli.console import Console
from ultraflash_cli.errors import OutputError, UsageError
from ultraflash_cli.streams import standard_output

if TYPE_CHECKING:
    from ultraflash_cli.jobs.serving.show import Show

__all__ = ["is_stdout", "opened_show", "opened_sink", "sink_name", "takes_stream"]

_STDOUT = {"-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"}
_STDERR = {"/dev/stderr", "/dev/fd/2", "/proc/self/fd/2"}


def is_stdout(output: Path | None) -> bool:
    """Return whether an output is standard output."""
    return str(output) in _STDOUT


def sink_name(output: Path | None) -> str:
    """Return the name of a stream in reports."""
    return "-" if is_stdout(output) else str(output)


def takes_stream(output: Path | None) -> bool:
    """Return whether an output is streamed, instead of appearing as a whole file.

    Raises UsageError for a device that cannot take a clip.
    """
    if output is None or is_stdout(output):
        return output is not None
    if str(output) in _STDERR:
        raise UsageError(f"{output} is used for messages; write to - (stdout) instead")
    try:
        found = os.stat(output)
    except (OSError, ValueError):
        return False
    if stat.S_ISFIFO(found.st_mode):
        return True
    if stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode):
        return False
    if stat.S_ISCHR(found.st_mode) and found.st_rdev == os.stat(os.devnull).st_rdev:
        return True
    kind = "a socket" if stat.S_ISSOCK(found.st_mode) else "a device"
    raise UsageError(f"{output} is {kind}; expected a file, a named pipe or -")


@contextmanager
def opened_sink(output: Path | None, console: Console, *, dry_run: bool) -> Generator[BinaryIO | None]:
    """Open the stream of an output; None for a file.

    A named pipe is opened once it has a reader; a dry run does not wait for one. Raises OutputError.
    """
    if output is None or not takes_stream(output):
        yield None
    elif is_stdout(output):
        yield standard_output()
    elif dry_run:
        yield io.BytesIO()
    else:
        if output.is_fifo():
            console.detail(f"{output}: waiting for a reader")
        try:
            sink = open(output, "wb")  # noqa: SIM115 - closing must not fail because the reader has left
        except OSError as error:
            raise OutputError(f"{output}: {error.strerror}; choose another location with -o") from error
        try:
            yield sink
        finally:
            with suppress(OSError):
                sink.close()


@contextmanager
def opened_show(address: str | None, console: Console, *, dry_run: bool) -> "Generator[Show | None]":
    """Start serving the job to browsers at an address; None if not requested. Raises
    UsageError."""
    if address is None:
        yield None
        return
    from ultraflash_cli.jobs.serving.server import parse_address, serving

    if dry_run:
        parse_address(address)
        yield None
        return
    with serving(address, console.on_event) as show:
        yield show
