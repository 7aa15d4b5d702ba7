"""The `ultraflash` command: the list of commands, and the only place where errors are caught and shown."""

import errno
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Annotated

import typer

from ultraflash_cli.commands import bench, clean, compare, doctor, explain, generate, probe, train, upscale, weights
from ultraflash_cli.console import Console
from ultraflash_cli.errors import Interrupted, OutOfMemory, OutputError, UltraflashError, is_out_of_memory
from ultraflash_cli.help_page import HeadedCommand, HeadedGroup
from ultraflash_cli.jobs.stop import ending_on_signals
from ultraflash_cli.options import with_console
from ultraflash_cli.settings import Settings, keep_compiled_kernels, quieten_libraries, wait_passively
from ultraflash_cli.streams import hold_standard_descriptors

__all__ = ["HELP_WIDTH", "app", "main"]

HELP_WIDTH = 110
"""Columns that help may take on a wide terminal, and those of docs/cli.md."""

app = typer.Typer(
    name="ultraflash",
    cls=HeadedGroup,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": HELP_WIDTH},
)


def _show_version(context: typer.Context, wanted: bool) -> None:
    if wanted:
        console: Console = context.obj
        console.text(f"ultraflash {version('ultraflash')}")
        raise typer.Exit


@app.callback()
@with_console(hidden=False)
def ultraflash(
    _console: Console,
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and leave.")
    ] = False,
) -> None:
    """Upscale video to 1K and 2K, keeping its sound, subtitles and timing, or generate it from words.

    The options below may stand before or after the command; `ultraflash COMMAND --help` shows the command's own.
    """


app.command("upscale", cls=HeadedCommand)(upscale.upscale)
app.command("generate", cls=HeadedCommand)(generate.generate)
app.command("compare", cls=HeadedCommand)(compare.compare)
app.command("explain", cls=HeadedCommand)(explain.explain)
app.command("probe", cls=HeadedCommand)(probe.probe)
app.add_typer(weights.app, name="weights")
app.command("clean", cls=HeadedCommand)(clean.clean)
app.command("doctor", cls=HeadedCommand)(doctor.doctor)
app.command("bench", cls=HeadedCommand)(bench.bench)
app.add_typer(train.app, name="train")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (the process's own by default) and give the exit code."""
    hold_standard_descriptors()
    settings = Settings.from_environment()
    console = Console(settings)
    quieten_libraries()
    wait_passively()
    keep_compiled_kernels(settings.home)
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["help"]:
        arguments = [*arguments[1:], "--help"]
    try:
        with ending_on_signals():
            code = app(
                args=arguments,
                prog_name="ultraflash",
                standalone_mode=False,
                obj=console,
            )
        return code or 0
    except UltraflashError as error:
        return console.failure(error)
    except (KeyboardInterrupt, typer.Abort):
        return console.failure(Interrupted("interrupted"))
    except typer.TyperException as error:
        return _usage_failure(console, error)
    except Exception as error:
        return _failure(console, error)
    finally:
        console.close()


def _failure(console: Console, error: Exception) -> int:
    if is_out_of_memory(error):
        message = "out of memory; close other programs or choose a smaller size"
        if isinstance(error, ImportError):
            message = "out of memory while torch was loaded; allow this process more (ulimit -v, the container's limit)"
        return console.failure(error, message=message, exit_code=OutOfMemory.exit_code)
    if isinstance(error, OSError) and error.errno in (errno.EPIPE, errno.ENOSPC) and error.filename is None:
        # Only a stream has no name: stdout is full, or nobody reads it any more.
        message = f"not everything could be written: {error.strerror}"
        return console.failure(error, message=message, exit_code=OutputError.exit_code)
    message = f"unexpected {type(error).__name__}: {error}; please report it with what -v shows"
    return console.failure(error, message=message, exit_code=1)


def _usage_failure(console: Console, error: typer.TyperException) -> int:
    message = error.format_message()
    if "\n" in message:
        # No command was given: the message is the whole help.
        console.help(message)
        return error.exit_code
    message = message.replace("Value error, ", "").removesuffix(".")
    return console.failure(error, message=f"{message}; --help lists what there is", exit_code=error.exit_code)
