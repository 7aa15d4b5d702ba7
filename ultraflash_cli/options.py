"""Options shared by commands, and the decorator that adds the global ones to every
command."""

import copy
import dataclasses
import functools
import inspect
import os
import re
from collections.abc import Callable, Iterable
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Concatenate, Literal, ParamSpec, TypeVar, cast, get_args, get_type_hints

import typer

from ultraflash_cli.console import Console, GlobalOptions, ProgressMode
from ultraflash_cli.errors import InputError, UsageError
from ultraflash_cli.files import names_folder
from ultraflash_cli.flags import Flag

__all__ = [
    "AddressOption",
    "Destination",
    "DryRunOption",
    "ExecutorOption",
    "GuardOption",
    "JsonOption",
    "KeepGoingOption",
    "LogFileOption",
    "MatchColorsOption",
    "NoColorOption",
    "NoTagOption",
    "OverwriteOption",
    "ProgressOption",
    "QuietOption",
    "ServeOption",
    "ThreadsOption",
    "UnitFramesOption",
    "VerboseOption",
    "WorkDirOption",
    "WorkersOption",
    "as_destination",
    "as_path",
    "as_rate",
    "takes",
    "with_console",
]

P = ParamSpec("P")
GroupT = TypeVar("GroupT")

_SLOWED = range(1, 241)
"""Frame rates with an NTSC variant slowed by 1000/1001: 24, 30, 60 and so on."""


def as_path(text: str) -> Path:
    """Read a path, rejecting an empty string (as from an unset variable), which would
    mean the current folder."""
    if not text:
        raise typer.BadParameter("the name is empty; is a variable unset?")
    return Path(text)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Destination:
    """An output as given with `-o`."""

    path: Path
    is_folder: bool
    """Whether it is a folder: an existing one, or a name that ends in a slash."""


def as_destination(text: str) -> Destination:
    """Read `-o`, in the same way as `as_path`."""
    return Destination(path=as_path(text), is_folder=names_folder(text))


def as_rate(text: str) -> Fraction:
    """Read `--fps`: a number or a fraction; decimals such as 23.976 mean 24000/1001. Raises UsageError."""
    if not re.fullmatch(r"\d{1,6}(\.\d{1,6}|/[1-9]\d{0,5})?", text):
        raise UsageError(f"--fps must be a number such as 25, 23.976 or 30000/1001, got {text!r}")
    _, _, decimals = text.partition(".")
    for whole in _SLOWED if decimals.strip("0") else ():
        slowed = Fraction(whole * 1000, 1001)
        if round(slowed, len(decimals)) == Fraction(text):
            return slowed
    return Fraction(text)


QuietOption = Annotated[bool, typer.Option("-q", "--quiet", help="Only print warnings and errors.")]
VerboseOption = Annotated[bool, typer.Option("-v", "--verbose", help="Print more, including tracebacks.")]
LogFileOption = Annotated[
    Path | None,
    typer.Option("--log-file", metavar="FILE", parser=as_path, help="Append all messages to FILE."),
]
ProgressOption = Annotated[
    ProgressMode,
    typer.Option(
        "--progress",
        help="Progress on stderr; auto: a bar on a terminal, plain lines elsewhere; json: one event per line.",
    ),
]
NoColorOption = Annotated[bool, typer.Option("--no-color", help="No colours on the terminal (like NO_COLOR).")]

JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Check everything and print the plan, but write nothing.")
]
NoTagOption = Annotated[bool, typer.Option("--no-tag", help="Do not record in the file how it was made.")]
KeepGoingOption = Annotated[bool, typer.Option("--keep-going", help="With several inputs, continue after a failure.")]
OverwriteOption = Annotated[bool, typer.Option("-y", "--overwrite", help="Replace existing outputs.")]
ExecutorOption = Annotated[
    Literal["local", "ray", "workers"],
    typer.Option(
        "--executor",
        case_sensitive=False,
        help="local: this machine. ray: a Ray cluster. workers: only divide the job into units in --work-dir, for "
        "`ultraflash worker` on any number of machines.",
    ),
]
AddressOption = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="HOST:PORT",
        help="Ray cluster, or auto; defaults to RAY_ADDRESS if set, else this machine.",
    ),
]
WorkersOption = Annotated[
    int | None,
    typer.Option(
        "--workers",
        metavar="N",
        help="Processes that share the work; with ray by default one per GPU, else one per --threads processors.",
    ),
]
WorkDirOption = Annotated[
    Path | None,
    typer.Option(
        "--work-dir",
        metavar="DIR",
        parser=as_path,
        help="Folder for the plan and its units, on a file system that all workers share; local defaults to a folder "
        "next to the output.",
    ),
]
UnitFramesOption = Annotated[
    int,
    typer.Option(
        "--unit-frames", metavar="N", help="Approximate minimum of frames per unit; units begin at scene cuts."
    ),
]
ServeOption = Annotated[
    str | None,
    typer.Option(
        "--serve",
        metavar="[HOST:]PORT",
        help="Show the running job in a browser, under a one-time link; without HOST on this machine only. Port 0: any "
        "free one.",
    ),
]
GuardOption = Annotated[
    str,
    typer.Option(
        "--guard",
        metavar="off|1..255",
        help="Blend plain resampling back in where the downscaled result departs from the source by more than this "
        "many levels.",
    ),
]
MatchColorsOption = Annotated[
    bool, typer.Option("--match-colors/--no-match-colors", help="Keep the input's colours in broad areas.")
]


def _option_of(field: dataclasses.Field[Any], hint: Any) -> Any:
    """Return the option annotated on a field of a group."""
    kind, flag = get_args(hint)
    assert isinstance(flag, Flag), f"{field.name} is no option"
    return Annotated[
        flag.given or kind,
        typer.Option(
            *flag.names,
            help=flag.help,
            metavar=flag.metavar,
            show_default=flag.shows_default,
            case_sensitive=False,
            parser=as_path if kind == Path | None else None,
        ),
    ]


def _options_of(group: type[Any]) -> dict[str, Any]:
    hints = get_type_hints(group, include_extras=True)
    return {field.name: _option_of(field, hints[field.name]) for field in dataclasses.fields(group)}


def takes(group: type[GroupT]) -> Callable[[Callable[..., int | None]], Callable[..., int | None]]:
    """Add the options of a group to a command, which receives their values as its
    second argument, after the console."""
    kind_of_group: Any = group
    options = _options_of(group)
    fields = {field.name: field for field in dataclasses.fields(kind_of_group)}
    flags: dict[str, Flag] = {
        name: get_args(hint)[1] for name, hint in get_type_hints(group, include_extras=True).items() if name in fields
    }

    def decorate(command: Callable[..., int | None]) -> Callable[..., int | None]:
        console, _, *own = inspect.signature(command).parameters.values()
        kind = inspect.Parameter.KEYWORD_ONLY
        extra = [
            inspect.Parameter(
                name, kind, default=None if flags[name].given else fields[name].default, annotation=option
            )
            for name, option in options.items()
        ]

        @functools.wraps(command)
        def wrapper(console: Console, **values: Any) -> int | None:
            said = {name: values.pop(name) for name in options}
            for name, value in said.items():
                if (read := flags[name].read) is not None:
                    said[name] = read(value)
            return command(console, group(**said), **values)

        parameters = [console, *extra, *(each.replace(kind=kind) for each in own)]
        wrapper.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportAttributeAccessIssue]
        wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return wrapper

    return decorate


ThreadsOption = Annotated[
    int | None,
    typer.Option("--threads", metavar="N", help="CPU threads.  [default: all available cores]", show_default=False),
]

_GLOBALS: dict[str, tuple[Any, object]] = {
    "quiet": (QuietOption, False),
    "verbose": (VerboseOption, False),
    "log_file": (LogFileOption, None),
    "progress": (ProgressOption, "auto"),
    "no_color": (NoColorOption, False),
}


def with_console(
    *, hidden: bool
) -> Callable[[Callable[Concatenate[Console, P], int | None]], Callable[..., int | None]]:
    """Add the global options to a command; its first argument is the console configured
    by them.

    `hidden` keeps them out of the command's help: `ultraflash --help` lists them once, and they work in both places.
    """

    def decorate(command: Callable[Concatenate[Console, P], int | None]) -> Callable[..., int | None]:
        own = list(inspect.signature(command).parameters.values())[1:]
        kind = inspect.Parameter.KEYWORD_ONLY
        context = inspect.Parameter("ctx", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
        extra = [
            inspect.Parameter(name, kind, default=default, annotation=_hide(option) if hidden else option)
            for name, (option, default) in _GLOBALS.items()
        ]

        @functools.wraps(command)
        def wrapper(ctx: typer.Context, **values: Any) -> int | None:
            console: Console = ctx.obj
            if hidden:
                _check_here()
            options = GlobalOptions(**{name: values.pop(name) for name in _GLOBALS})
            console.configure(options, named=_paths(values.values()) if hidden else None)
            if hidden:
                console.warn_of_old_spellings()
            return command(console, **values)  # pyright: ignore[reportCallIssue]

        parameters = [context, *own, *extra]
        wrapper.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportAttributeAccessIssue]
        wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return wrapper

    return decorate


def _paths(values: Iterable[object]) -> list[Path]:
    """List the files named on the command line."""
    found: list[Path] = []
    for value in values:
        if isinstance(value, Path | Destination):
            found.append(value.path if isinstance(value, Destination) else value)
        elif isinstance(value, list):
            found += _paths(cast(list[object], value))
    return [path for path in found if str(path) != "-"]


def _check_here() -> None:
    """Raise InputError if the working directory was deleted, in which libraries fail in
    odd ways."""
    try:
        os.getcwd()
    except OSError as error:
        raise InputError("the current folder no longer exists; change to another one") from error


def _hide(option: Any) -> Any:
    hidden = copy.copy(option.__metadata__[0])
    hidden.hidden = True
    return Annotated[option.__origin__, hidden]
