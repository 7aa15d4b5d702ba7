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
    "ColorOption",
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
"""Rates of which NTSC's colour made 1000/1001: 24, 30, 60 and their like."""


def as_path(text: str) -> Path:
    """Read a path; the empty name of an unset variable is refused, it would mean the folder one is in."""
    if not text:
        raise typer.BadParameter("the name is empty")
    return Path(text)


def as_rate(text: str) -> Fraction:
    """Read `--fps`: a number or a fraction; decimals such as 23.976 stand for 24000/1001. Raises UsageError."""
    if not re.fullmatch(r"\d{1,6}(\.\d{1,6}|/[1-9]\d{0,5})?", text):
        raise UsageError(f"--fps is a number such as 25, 23.976 or 30000/1001, got {text!r}")
    _, _, decimals = text.partition(".")
    for whole in _SLOWED if decimals.strip("0") else ():
        slowed = Fraction(whole * 1000, 1001)
        if round(slowed, len(decimals)) == Fraction(text):
            return slowed
    return Fraction(text)


def as_pairs(options: list[str]) -> tuple[tuple[str, str], ...]:
    """Read `--enc-opt`. Raises UsageError for what is not KEY=VALUE."""
    for option in options:
        if not option.partition("=")[0] or "=" not in option:
            raise UsageError(f"--enc-opt is KEY=VALUE, got {option!r}")
    return tuple((option.partition("=")[0], option.partition("=")[2]) for option in options)


QuietOption = Annotated[bool, typer.Option("-q", "--quiet", help="Say only warnings and errors.")]
VerboseOption = Annotated[bool, typer.Option("-v", "--verbose", help="Say more; show tracebacks.")]
LogFileOption = Annotated[
    Path | None,
    typer.Option("--log-file", metavar="FILE", parser=as_path, help="Append everything that is said to FILE."),
]
ProgressOption = Annotated[
    ProgressMode,
    typer.Option(
        "--progress",
        help="How progress is shown on stderr; auto is a bar on a terminal and plain lines elsewhere, "
        "json one event a line.",
    ),
]
NoColorOption = Annotated[bool, typer.Option("--no-color", help="No colours on the terminal (as NO_COLOR does).")]

JsonOption = Annotated[bool, typer.Option("--json", help="Write the result as JSON on stdout.")]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Check everything, say what would be done, write nothing.")
]
KeepGoingOption = Annotated[bool, typer.Option("--keep-going", help="With several inputs: go on after a failure.")]
OverwriteOption = Annotated[bool, typer.Option("-y", "--overwrite", help="Replace an output that exists.")]
SkipExistingOption = Annotated[
    bool, typer.Option("-n", "--skip-existing", help="Leave an output that exists, and its input, alone.")
]
ServeOption = Annotated[
    str | None,
    typer.Option(
        "--serve",
        metavar="[HOST:]PORT",
        help="Show the running job in a browser, under a link that works once; without HOST on this machine only. "
        "Port 0 takes a free one.",
    ),
]
NoTagOption = Annotated[bool, typer.Option("--no-tag", help="Do not write into the file how it was made.")]
ResumeOption = Annotated[
    Literal["auto", "off"],
    typer.Option(
        "--resume", help="auto resumes when the same command was interrupted; off keeps nothing to resume from."
    ),
]
CodecOption = Annotated[
    Literal["auto", "h264", "hevc", "av1", "vp9", "prores", "ffv1", "png", "y4m"],
    typer.Option(
        "--codec",
        help="How the picture is coded; png makes numbered pictures, y4m plain frames for another program.",
    ),
]
TempDirOption = Annotated[
    Path | None,
    typer.Option(
        "--temp-dir",
        metavar="DIR",
        parser=as_path,
        help="Keep what is unfinished there instead of beside the output; give the same one to go on.",
    ),
]
PixFmtOption = Annotated[
    str, typer.Option("--pix-fmt", metavar="auto|FORMAT", help="Pixel format of the output, as FFmpeg names it.")
]
EncOptOption = Annotated[
    list[str] | None,
    typer.Option("--enc-opt", metavar="K=V", help="An option of the encoder, as FFmpeg names it; may be repeated."),
]
DecoderOption = Annotated[
    Literal["auto", "tiny", "ultra"],
    typer.Option("--decoder", help="What turns latents into frames; ultra is the larger one of ultraflash."),
]
MaxMemoryOption = Annotated[
    str | None,
    typer.Option("--max-memory", metavar="SIZE", help="Use no more memory of the device than this, such as 6G."),
]
ResOption = Annotated[
    str | None,
    typer.Option(
        "--res",
        metavar="SIZE",
        help="Target: 720p, 1k, 1080p, 2k, 4k or 8k (720 to 4320 on the short side), WxH, or 1x, 2x, 3x and so on. By "
        "default the first of 1k and 2k that enlarges by at least 1.2, else 2x.",
        show_default=False,
    ),
]
ModelOption = Annotated[
    str,
    typer.Option(
        "--model",
        metavar="auto|lite|ultraflash",
        help="lite is built in, ultraflash the published one; auto takes that where its weights are installed and a "
        "GPU is there.",
    ),
]
StrengthOption = Annotated[
    float,
    typer.Option("--strength", metavar="0..1", help="1 is the model, 0 the plain resample."),
]
DetailOption = Annotated[
    float | None,
    typer.Option(
        "--detail",
        metavar="0..1",
        help="How much detail lite adds to what the clip still shows: 1 draws most, 0 is faithful.  [default: 1]",
    ),
]
GuardOption = Annotated[
    str,
    typer.Option(
        "--guard",
        metavar="off|1..255",
        help="Where the result, made small again, strays from the source by more levels than this, the plain resample "
        "is blended back in.",
    ),
]
ColorOption = Annotated[
    Literal["match", "off"], typer.Option("--color", help="match keeps the input's colours in broad areas.")
]
SeedOption = Annotated[int, typer.Option("--seed", metavar="N", help="Seed of the model's noise.")]
CrfOption = Annotated[
    int | None,
    typer.Option("--crf", metavar="N", help="Quality of the encoder; lower is better and larger."),
]
DeviceOption = Annotated[str, typer.Option("--device", metavar="auto|cpu|cuda[:i]", help="Where the model runs.")]
PrecisionOption = Annotated[
    Literal["auto", "fp32", "bf16", "fp8"],
    typer.Option(
        "--precision",
        help="Arithmetic; auto takes the fastest good one. fp8 puts the transformers of a large model into 8 bits, "
        "which newer NVIDIA GPUs multiply faster and which changes pixels.",
    ),
]
CudaGraphsOption = Annotated[
    Literal["auto", "off"],
    typer.Option("--cuda-graphs", help="auto records the model's steps as CUDA graphs on a GPU with room for that."),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option("--threads", metavar="N", help="CPU threads; by default all usable cores.", show_default=False),
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
    """Give a command the global options and, as its first argument, the console that obeys them.

    `hidden` keeps them out of the command's help: they are listed once, in `ultraflash --help`, and work in both
    places.
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
            return command(console, **values)  # pyright: ignore[reportCallIssue]

        parameters = [context, *own, *extra]
        wrapper.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportAttributeAccessIssue]
        wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return wrapper

    return decorate


def _paths(values: Iterable[object]) -> list[Path]:
    """List the files that a command names."""
    found: list[Path] = []
    for value in values:
        if isinstance(value, Path):
            found.append(value)
        elif isinstance(value, list):
            found += _paths(cast(list[object], value))
    return [path for path in found if str(path) != "-"]


def _check_here() -> None:
    """Raise InputError where the working folder was deleted: libraries fail there in ways of their own."""
    try:
        os.getcwd()
    except OSError as error:
        raise InputError("the folder you are in does not exist any more; change to one that does") from error


def _hide(option: Any) -> Any:
    hidden = copy.copy(option.__metadata__[0])
    hidden.hidden = True
    return Annotated[option.__origin__, hidden]
