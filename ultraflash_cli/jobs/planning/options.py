"""The options shared by `upscale` and `generate`, with name, help, default and check in
one place."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO, Literal

from ultraflash_cli.errors import ConfigError, UsageError
from ultraflash_cli.flags import Flag
from ultraflash_cli.host import parse_memory

if TYPE_CHECKING:
    from ultraflash_cli.jobs.serving.show import Show

__all__ = [
    "CODECS",
    "DECODERS",
    "MODELS",
    "MOST_THREADS",
    "ComputeOptions",
    "EncodingOptions",
    "MachineOptions",
    "ModelName",
    "ModelOptions",
    "RunOptions",
    "SharedOptions",
    "SharedSettings",
    "as_pairs",
]

Codec = Literal["auto", "h264", "hevc", "av1", "vp9", "prores", "ffv1", "png", "y4m"]
CODECS = ("auto", "h264", "hevc", "av1", "vp9", "prores", "ffv1", "png", "y4m")
DECODERS = ("auto", "tiny", "ultra")
MODELS = ("auto", "lite", "ultraflash")
"""Values of `--model`; trial models are not listed."""
MOST_THREADS = 1024
_TRIAL_MODELS = ("tiny-random", "tiny-lite")


def as_pairs(options: list[str] | None) -> tuple[tuple[str, str], ...]:
    """Read `--enc-opt`. Raises UsageError for anything but KEY=VALUE."""
    pairs = [option.partition("=") for option in options or ()]
    for key, equals, value in pairs:
        if not key or not equals:
            raise UsageError(f"--enc-opt must be KEY=VALUE, got {key + equals + value!r}")
    return tuple((key, value) for key, _, value in pairs)


class _Options:
    """End of the chain of checks."""

    def __post_init__(self) -> None:
        return


@dataclass(frozen=True, kw_only=True)
class ModelName(_Options):
    """The model to run."""

    model: Annotated[
        str,
        Flag(
            names=("--model",),
            metavar="auto|lite|ultraflash",
            help="lite: built in. ultraflash: the published model. auto: ultraflash if its weights and a GPU are "
            "there, else lite.",
        ),
    ] = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.model not in (*MODELS, *_TRIAL_MODELS):
            raise ConfigError(f"--model must be one of {', '.join(MODELS)}, got {self.model!r}")


@dataclass(frozen=True, kw_only=True)
class ModelOptions(ModelName):
    """The model to run, its parts and its noise."""

    decoder: Annotated[
        Literal["auto", "tiny", "ultra"],
        Flag(names=("--decoder",), help="Decoder from latents to frames; ultra: the larger one of ultraflash."),
    ] = "auto"
    seed: Annotated[int, Flag(names=("--seed",), metavar="N", help="Seed of the model's noise.")] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.decoder not in DECODERS:
            raise ConfigError(f"--decoder must be one of {', '.join(DECODERS)}, got {self.decoder!r}")
        if self.seed < 0:
            raise ConfigError(f"--seed must be at least 0, got {self.seed}")


@dataclass(frozen=True, kw_only=True)
class EncodingOptions(_Options):
    """Options for encoding the output."""

    codec: Annotated[
        Codec,
        Flag(names=("--codec",), help="Video codec; png: numbered images, y4m: raw frames for another program."),
    ] = "auto"
    crf: Annotated[
        int | None, Flag(names=("--crf",), metavar="N", help="Encoding quality; lower is better and larger.")
    ] = None
    pix_fmt: Annotated[
        str,
        Flag(names=("--pix-fmt",), metavar="auto|FORMAT", help="Pixel format of the output, as in FFmpeg."),
    ] = "auto"
    enc_options: Annotated[
        tuple[tuple[str, str], ...],
        Flag(
            names=("--enc-opt",),
            metavar="K=V",
            help="Encoder option, as in FFmpeg; repeatable.",
            given=list[str] | None,
            read=as_pairs,
        ),
    ] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.codec not in CODECS:
            raise ConfigError(f"--codec must be one of {', '.join(CODECS)}, got {self.codec!r}")
        if self.crf is not None and not 0 <= self.crf <= 63:
            raise ConfigError(f"--crf must be between 0 and 63, got {self.crf}")


@dataclass(frozen=True, kw_only=True)
class MachineOptions(_Options):
    """The device of the model, and the precision."""

    device: Annotated[
        str,
        Flag(
            names=("--device",),
            metavar="auto|cpu|cuda[:i][,cuda:j]|mps|xpu",
            help="Where the model runs; several devices share the scenes.",
        ),
    ] = "auto"
    precision: Annotated[
        Literal["auto", "fp32", "bf16", "fp8"],
        Flag(
            names=("--precision",),
            help="Precision; auto: the fastest good one. fp8: 8-bit transformers of ultraflash, faster on newer "
            "NVIDIA GPUs; changes pixels.",
        ),
    ] = "auto"
    cuda_graphs: Annotated[
        bool,
        Flag(
            names=("--cuda-graphs/--no-cuda-graphs",),
            help="Record the model's steps as CUDA graphs if memory allows.",
        ),
    ] = True
    threads: Annotated[
        int | None,
        Flag(
            names=("--threads",),
            metavar="N",
            help="CPU threads.  [default: all available cores]",
            shows_default=False,
        ),
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        one = r"(cpu|cuda(:\d+)?|mps|xpu(:\d+)?)"
        if not re.fullmatch(rf"auto|{one}(,{one})*", self.device):
            raise ConfigError(f"--device must be auto, cpu, cuda, cuda:N, mps or xpu, got {self.device!r}")
        if self.threads is not None and not 1 <= self.threads <= MOST_THREADS:
            raise ConfigError(f"--threads must be between 1 and {MOST_THREADS}, got {self.threads}")


@dataclass(frozen=True, kw_only=True)
class ComputeOptions(MachineOptions):
    """The device of the model, the precision and the memory limit."""

    max_memory: Annotated[
        str | None,
        Flag(names=("--max-memory",), metavar="SIZE", help="Limit for the memory of the device, such as 6G."),
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_memory is not None:
            parse_memory(self.max_memory)


@dataclass(frozen=True, kw_only=True)
class RunOptions(_Options):
    """Options about replacing outputs and resuming runs."""

    resume: Annotated[
        bool,
        Flag(names=("--resume/--no-resume",), help="Resume an interrupted run of the same command, or start over."),
    ] = True
    overwrite: Annotated[bool, Flag(names=("-y", "--overwrite"), help="Replace existing outputs.")] = False
    skip_existing: Annotated[bool, Flag(names=("-n", "--skip-existing"), help="Skip inputs whose output exists.")] = (
        False
    )
    temp: Annotated[
        Path | None,
        Flag(
            names=("--temp-dir",),
            metavar="DIR",
            help="Folder for work in progress, by default next to the output. Use the same one to resume.",
        ),
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.overwrite and self.skip_existing:
            raise ConfigError("--overwrite and --skip-existing exclude each other; choose one")


@dataclass(frozen=True, kw_only=True)
class SharedOptions(ModelOptions, EncodingOptions, ComputeOptions, RunOptions):
    """All options shared by both commands."""


@dataclass(frozen=True, kw_only=True)
class SharedSettings(SharedOptions):
    """Settings of both commands' jobs besides options: paths, and the display of the
    job."""

    output: Path | None = None
    """Output file; None for a default name in `folder`."""
    folder: Path | None = None
    """Folder for outputs with a default name; None for the input's folder, or the
    current one."""
    stdout: BinaryIO | None = None
    """Stream to write the finished file to, instead of a path."""
    stdout_name: str = "-"
    """Name of that stream in reports."""
    store: Path | None = None
    """Folder of the downloaded weights; None to use only built-in ones."""
    show: "Show | None" = None
    """Display of the running job, which does not affect the output."""
    tag: bool = True
    """Whether to record in the output how it was made."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if sum(each is not None for each in (self.output, self.folder, self.stdout)) > 1:
            raise ConfigError("an output file, an output folder and stdout exclude each other; choose one")
