"""Options that commands share, and the decorator that gives every command the global ones."""

import copy
import functools
import inspect
import os
import re
from collections.abc import Callable, Iterable
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Concatenate, Literal, ParamSpec, cast

import typer

from ultraflash_cli.console import Console, GlobalOptions, ProgressMode
from ultraflash_cli.errors import InputError, UsageError

__all__ = [
    "CodecOption",
    "CrfOption",
    "CudaGraphsOption",
    "DecoderOption",
    "DetailOption",
    "DeviceOption",
    "DryRunOption",
    "EncOptOption",
    "GuardOption",
    "JsonOption",
    "KeepGoingOption",
    "LogFileOption",
    "MatchColorsOption",
    "MaxMemoryOption",
    "ModelOption",
    "NoColorOption",
    "NoTagOption",
    "OverwriteOption",
    "PixFmtOption",
    "PrecisionOption",
    "ProgressOption",
    "QuietOption",
    "ResOption",
    "ResumeOption",
    "SeedOption",
    "ServeOption",
    "SkipExistingOption",
    "StrengthOption",
    "TempDirOption",
    "ThreadsOption",
    "VerboseOption",
    "as_pairs",
    "as_path",
    "as_rate",
    "with_console",
]

P = ParamSpec("P")

_SLOWED = range(1, 241)
"""Frame rates that NTSC slowed down by 1000/1001: 24, 30, 60 and so on."""


def as_path(text: str) -> Path:
    """Read a path, refusing the empty name of an unset variable, which would mean the current folder."""
    if not text:
        raise typer.BadParameter("the name is empty; is a variable unset?")
    return Path(text)


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


def as_pairs(options: list[str]) -> tuple[tuple[str, str], ...]:
    """Read `--enc-opt`. Raises UsageError for anything but KEY=VALUE."""
    for option in options:
        if not option.partition("=")[0] or "=" not in option:
            raise UsageError(f"--enc-opt must be KEY=VALUE, got {option!r}")
    return tuple((option.partition("=")[0], option.partition("=")[2]) for option in options)


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
SkipExistingOption = Annotated[bool, typer.Option("-n", "--skip-existing", help="Skip inputs whose output exists.")]
ServeOption = Annotated[
    str | None,
    typer.Option(
        "--serve",
        metavar="[HOST:]PORT",
        help="Show the running job in a browser, under a one-time link; without HOST on this machine only. Port 0: any "
        "free one.",
    ),
]
ResumeOption = Annotated[
    bool, typer.Option("--resume/--no-resume", help="Resume an interrupted run of the same command, or start over.")
]
CodecOption = Annotated[
    Literal["auto", "h264", "hevc", "av1", "vp9", "prores", "ffv1", "png", "y4m"],
    typer.Option(
        "--codec",
        help="Video codec; png: numbered images, y4m: raw frames for another program.",
    ),
]
TempDirOption = Annotated[
    Path | None,
    typer.Option(
        "--temp-dir",
        metavar="DIR",
        parser=as_path,
        help="Folder for work in progress, by default next to the output. Use the same one to resume.",
    ),
]
PixFmtOption = Annotated[
    str, typer.Option("--pix-fmt", metavar="auto|FORMAT", help="Pixel format of the output, as in FFmpeg.")
]
EncOptOption = Annotated[
    list[str] | None,
    typer.Option("--enc-opt", metavar="K=V", help="Encoder option, as in FFmpeg; repeatable."),
]
DecoderOption = Annotated[
    Literal["auto", "tiny", "ultra"],
    typer.Option("--decoder", help="Decoder from latents to frames; ultra: the larger one of ultraflash."),
]
MaxMemoryOption = Annotated[
    str | None,
    typer.Option("--max-memory", metavar="SIZE", help="Limit for the memory of the device, such as 6G."),
]
ResOption = Annotated[
    str | None,
    typer.Option(
        "--res",
        metavar="SIZE",
        help="Target: 720p, 1k, 1080p, 2k, 4k or 8k (short side of 720 to 4320), WxH, or 1x, 2x, 3x and so on. "
        "Default: the first of 1k and 2k that enlarges by at least 1.2, else 2x.",
        show_default=False,
    ),
]
ModelOption = Annotated[
    str,
    typer.Option(
        "--model",
        metavar="auto|lite|ultraflash",
        help="lite: built in. ultraflash: the published model. auto: ultraflash if its weights and a GPU are there, "
        "else lite.",
    ),
]
StrengthOption = Annotated[
    float,
    typer.Option("--strength", metavar="0..1", help="Blend between plain resampling (0) and the model (1)."),
]
DetailOption = Annotated[
    float | None,
    typer.Option(
        "--detail",
        metavar="0..1",
        help="How much detail lite adds: 0 is faithful, 1 is crisp.  [default: 1]",
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
SeedOption = Annotated[int, typer.Option("--seed", metavar="N", help="Seed of the model's noise.")]
CrfOption = Annotated[
    int | None,
    typer.Option("--crf", metavar="N", help="Encoding quality; lower is better and larger."),
]
DeviceOption = Annotated[str, typer.Option("--device", metavar="auto|cpu|cuda[:i]", help="Where the model runs.")]
PrecisionOption = Annotated[
    Literal["auto", "fp32", "bf16", "fp8"],
    typer.Option(
        "--precision",
        help="Arithmetic; auto: the fastest good one. fp8: 8-bit transformers of ultraflash, faster on newer NVIDIA "
        "GPUs; changes pixels.",
    ),
]
CudaGraphsOption = Annotated[
    bool,
    typer.Option("--cuda-graphs/--no-cuda-graphs", help="Record the model's steps as CUDA graphs if memory allows."),
]
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
    """Add the global options to a command; its first argument is the console that obeys them.

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
    """List the files that are named on the command line."""
    found: list[Path] = []
    for value in values:
        if isinstance(value, Path):
            found.append(value)
        elif isinstance(value, list):
            found += _paths(cast(list[object], value))
    return [path for path in found if str(path) != "-"]


def _check_here() -> None:
    """Raise InputError if the working folder was deleted: libraries fail there in odd ways."""
    try:
        os.getcwd()
    except OSError as error:
        raise InputError("the current folder no longer exists; change to another one") from error


def _hide(option: Any) -> Any:
    hidden = copy.copy(option.__metadata__[0])
    hidden.hidden = True
    return Annotated[option.__origin__, hidden]
