"""The `ultraflash` command: its subcommands, and the only place where errors are caught and shown."""

import errno
import sys
from collections.abc import Sequence
from functools import cache
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from ultraflash_cli.commands import (
    bench,
    clean,
    cluster,
    compare,
    doctor,
    explain,
    export,
    generate,
    probe,
    train,
    upscale,
    weights,
)
from ultraflash_cli.commands.sinks import is_stdout
from ultraflash_cli.console import Console
from ultraflash_cli.errors import Interrupted, OutOfMemory, OutputError, UltraflashError, is_out_of_memory
from ultraflash_cli.flags import meant
from ultraflash_cli.help_page import HeadedCommand, HeadedGroup
from ultraflash_cli.jobs.running.stop import ending_on_signals
from ultraflash_cli.options import with_console
from ultraflash_cli.settings import Settings, keep_compiled_kernels, quieten_libraries, wait_passively
from ultraflash_cli.spellings import modern
from ultraflash_cli.streams import hold_standard_descriptors

__all__ = ["HELP_WIDTH", "app", "main"]

HELP_WIDTH = 110
"""Width of help on a wide terminal and in docs/cli.md, in columns."""

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
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Upscale videos, keeping audio, subtitles and timing, or generate them from text prompts.

    The options below work before and after the command; `ultraflash COMMAND --help` shows those of a command.
    """


app.command("upscale", cls=HeadedCommand)(upscale.upscale)
app.command("generate", cls=HeadedCommand)(generate.generate)
app.command("plan", cls=HeadedCommand)(cluster.plan)
app.command("worker", cls=HeadedCommand)(cluster.worker)
app.command("join", cls=HeadedCommand)(cluster.join)
app.command("compare", cls=HeadedCommand)(compare.compare)
app.command("explain", cls=HeadedCommand)(explain.explain)
app.command("probe", cls=HeadedCommand)(probe.probe)
app.add_typer(weights.app, name="weights")
app.command("clean", cls=HeadedCommand)(clean.clean)
app.command("doctor", cls=HeadedCommand)(doctor.doctor)
app.command("bench", cls=HeadedCommand)(bench.bench)
app.add_typer(train.app, name="train")
app.add_typer(export.app, name="export")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (by default the process's own) and return the exit code."""
    hold_standard_descriptors()
    settings = Settings.from_environment()
    console = Console(settings)
    quieten_libraries()
    wait_passively()
    keep_compiled_kernels(settings.home)

    arguments, console.old_spellings = modern(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["help"]:
        arguments = [*arguments[1:], "--help"]

    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    console.failures_are_data = "--json" in options
    console.data_on_err = _fills_stdout(options)

    try:
        with ending_on_signals():
            code = _commands()(
                args=arguments,
                prog_name="ultraflash",
                standalone_mode=False,
                obj=console,
            )
        # Typer converts Ctrl-C to this, without a message.
        return console.failure(Interrupted("interrupted")) if code == Interrupted("").exit_code else code or 0
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


def _fills_stdout(arguments: Sequence[str]) -> bool:
    """Return whether the output is stdout, as far as that is known before parsing."""
    for option, value in pairwise([*arguments, ""]):
        name, equals, given = option.partition("=")
        if option == "-o-" or (name in ("-o", "--output") and is_stdout(Path(given if equals else value))):
            return True
    return False


@cache
def _commands() -> Any:
    """Return the parser of all commands; building it takes longer than parsing."""
    return typer.main.get_command(app)


def _failure(console: Console, error: Exception) -> int:
    if is_out_of_memory(error):
        message = "out of memory; close other programs or choose a smaller size"
        if isinstance(error, ImportError):
            message = (
                "out of memory while loading torch; raise the limit of this process (ulimit -v, the container's limit)"
            )
        return console.failure(error, message=message, exit_code=OutOfMemory.exit_code)
    if isinstance(error, OSError) and error.errno in (errno.EPIPE, errno.ENOSPC) and error.filename is None:
        # Only a stream has no name: stdout is full or no longer has a reader.
        message = f"the output could not be written completely: {error.strerror}"
        return console.failure(error, message=message, exit_code=OutputError.exit_code)
    message = f"unexpected {type(error).__name__}: {error}; please report it with the output of -v"
    return console.failure(error, message=message, exit_code=1)


def _usage_failure(console: Console, error: typer.TyperException) -> int:
    message = error.format_message()
    if "\n" in message:
        # No command was given: the message is the whole help.
        console.help(message)
        return error.exit_code
    message = message.replace("Value error, ", "").removesuffix(".")
    context: Any = getattr(error, "ctx", None)
    if context is not None and context.info_name == "generate" and "unexpected extra argument" in message:
        message += "; put a prompt of several words in quotes"
    message += _meant_choice(error)
    hint = "" if message.endswith("?") else "; see --help"
    return console.failure(error, message=f"{message}{hint}", exit_code=error.exit_code)


def _meant_choice(error: typer.TyperException) -> str:
    """Return `meant` for an unknown value of an option that lists its values, else
    nothing."""
    parameter: Any = getattr(error, "param", None)
    known = get_args(getattr(getattr(parameter, "type_descriptor", None), "annotation", None))
    refusals: Any = getattr(error.__cause__, "errors", None)  # of pydantic, which reads values for Typer
    if refusals is None or not all(isinstance(name, str) for name in known):
        return ""
    return meant(str(refusals()[0]["input"]), known)
