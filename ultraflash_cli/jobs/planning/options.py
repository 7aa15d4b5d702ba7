"""The options of `upscale` and `generate`: name, help and default of each in one
place, and checks of those they share."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO, Literal, get_args

from ultraflash_cli.errors import ConfigError, UsageError
from ultraflash_cli.flags import Flag, meant
from ultraflash_cli.host import parse_memory

if TYPE_CHECKING:
    from ultraflash_cli.jobs.serving.show import Show

__all__ = [
    "CODECS",
    "DECODERS",
    "ENCODERS",
    "MODELS",
    "MOST_THREADS",
    "ComputeOptions",
    "EncodingOptions",
    "GenerationOptions",
    "MachineOptions",
    "ModelName",
    "ModelOptions",
    "RunOptions",
    "SharedOptions",
    "SharedSettings",
    "TargetOptions",
    "UpscalingOptions",
    "as_pairs",
]

_InSoftware = Literal["auto", "h264", "hevc", "av1", "vp9", "prores", "ffv1", "png", "jpeg", "y4m"]
_OnGpu = Literal["h264_nvenc", "hevc_nvenc", "av1_nvenc"]
Codec = Literal[_InSoftware, _OnGpu]
CODECS: tuple[str, ...] = get_args(Codec)
Decoder = Literal["auto", "tiny", "ultra"]
Encoder = Literal["auto", "tiny", "wan-vae"]
ENCODERS: tuple[str, ...] = get_args(Encoder)
DECODERS: tuple[str, ...] = get_args(Decoder)
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


def _unknown(option: str, value: str, known: tuple[str, ...]) -> ConfigError:
    return ConfigError(f"{option} must be one of {', '.join(known)}, got {value!r}{meant(value, known)}")


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
            read=str.lower,
        ),
    ] = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.model not in (*MODELS, *_TRIAL_MODELS):
            raise _unknown("--model", self.model, MODELS)


@dataclass(frozen=True, kw_only=True)
class ModelOptions(ModelName):
    """The model to run, its parts and its noise."""

    decoder: Annotated[
        Decoder,
        Flag(names=("--decoder",), help="Decoder from latents to frames; ultra: the larger one of ultraflash."),
    ] = "auto"
    seed: Annotated[int, Flag(names=("--seed",), metavar="N", help="Seed of the model's noise.")] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.decoder not in DECODERS:
            raise _unknown("--decoder", self.decoder, DECODERS)
        if self.seed < 0:
            raise ConfigError(f"--seed must be at least 0, got {self.seed}")


@dataclass(frozen=True, kw_only=True)
class EncodingOptions(_Options):
    """Options for encoding the output."""

    codec: Annotated[
        Codec,
        Flag(
            names=("--codec",),
            metavar="|".join((*get_args(_InSoftware), "*_nvenc")),
            help="Video codec; png, jpeg: numbered images, y4m: raw frames for another program. h264_nvenc, "
            "hevc_nvenc, av1_nvenc: encoded by an NVIDIA GPU.",
        ),
    ] = "auto"
    crf: Annotated[
        int | None, Flag(names=("--crf",), metavar="N", help="Encoding quality; lower is better and larger.")
    ] = None
    pix_fmt: Annotated[
        str,
        Flag(
            names=("--pix-fmt",),
            metavar="auto|FORMAT",
            help="Pixel format of the output, as in FFmpeg.",
            read=str.lower,
        ),
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
            raise _unknown("--codec", self.codec, CODECS)
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
            read=str.lower,
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
        one = r"(cpu|cuda(:[0-9]+)?|mps|xpu(:[0-9]+)?)"
        if not re.fullmatch(rf"auto|{one}(,{one})*", self.device):
            raise ConfigError(
                "--device must be auto, cpu, cuda, cuda:N, mps or xpu, or several, such as "
                f"cuda:0,cuda:1, got {self.device!r}"
            )
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
        if self.max_memory is None:
            return
        sizes, devices = self.max_memory.split(","), self.device.split(",")
        for size in sizes:
            parse_memory(size)
        if len(sizes) not in (1, len(devices)):
            raise ConfigError(
                f"--max-memory takes one size, or one for each of {len(devices)} devices, got {len(sizes)}"
            )


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
class TargetOptions(_Options):
    """How large an upscaled clip becomes."""

    res: Annotated[
        str | None,
        Flag(
            names=("--res",),
            metavar="SIZE",
            help="Target: 1k, 2k, 4k or 8k (short side of 960 to 4320), any other short side such as 1080p, WxH, or a "
            "factor such as 1x, 1.5x or 2x. "
            "Default: the first of 1k and 2k that enlarges by at least 1.2, else 2x.",
            shows_default=False,
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class UpscalingOptions(SharedOptions, TargetOptions):
    """Options of `upscale` whose values on the command line are those of the job."""

    prompt: Annotated[
        str | None, Flag(names=("--prompt",), metavar="TEXT", help="What the clip shows; for ultraflash.")
    ] = None
    encoder: Annotated[
        Encoder,
        Flag(
            names=("--encoder",),
            help="Encoder from frames to latents; wan-vae: the larger, slower one of ultraflash.",
        ),
    ] = "auto"
    strength: Annotated[
        float,
        Flag(names=("--strength",), metavar="0..1", help="Blend between plain resampling (0) and the model (1)."),
    ] = 1.0
    detail: Annotated[
        float | None,
        Flag(
            names=("--detail",),
            metavar="0..1",
            help="How much detail lite adds: 0 is faithful, 1 is crisp.  [default: 1]",
        ),
    ] = None
    start: Annotated[
        str | None,
        Flag(names=("--start",), metavar="TIME", help="Start at this time: seconds, mm:ss.fff or N%."),
    ] = None
    end: Annotated[str | None, Flag(names=("--end",), metavar="TIME", help="Stop at this time (exclusive).")] = None
    preview: Annotated[
        str | None,
        Flag(
            names=("--preview",),
            metavar="LENGTH[@TIME]",
            help="Only a short excerpt: 3s@25%, or frame@25% as PNG.",
        ),
    ] = None
    side_by_side: Annotated[
        bool,
        Flag(names=("--side-by-side",), help="Plain resampling on the left, the result on the right."),
    ] = False
    deinterlace: Annotated[
        Literal["auto", "frame", "field", "off"],
        Flag(
            names=("--deinterlace",),
            help="auto: only interlaced video, restoring film frames if telecined; frame: always; field: always, "
            "one frame per field; off: never.",
        ),
    ] = "auto"
    crop: Annotated[
        str,
        Flag(
            names=("--crop",),
            read=str.lower,
            metavar="none|auto|L,T,R,B",
            help="Crop every frame by this many pixels; auto detects black borders and a tape's head-switching lines.",
        ),
    ] = "none"
    chroma_shift: Annotated[
        str,
        Flag(
            names=("--chroma-shift",),
            read=str.lower,
            metavar="none|auto|X,Y",
            help="Undo a shift of the colours by X pixels right and Y down, as on VHS; auto measures it.",
        ),
    ] = "none"
    grain: Annotated[
        Literal["none", "keep", "remove"],
        Flag(
            names=("--grain",),
            help="keep measures the grain, removes it before the model runs and adds matching grain; remove only "
            "removes it; none leaves the picture as it is.",
        ),
    ] = "none"
    images: Annotated[bool, Flag(names=("--images",), help="Treat a folder of numbered images as one clip.")] = False
    renumber: Annotated[
        bool,
        Flag(names=("--renumber",), help="Number output images from 1 instead of keeping the input's numbers."),
    ] = False
    strict: Annotated[bool, Flag(names=("--strict",), help="Refuse damaged or truncated inputs before any work.")] = (
        False
    )
    downscale: Annotated[
        bool, Flag(names=("--downscale",), help="Allow a target that is not larger than the source.")
    ] = False


@dataclass(frozen=True, kw_only=True)
class GenerationOptions(SharedOptions):
    """Options of `generate` whose values on the command line are those of the job."""

    device: Annotated[
        str,
        Flag(
            names=("--device",),
            metavar="auto|cpu|cuda[:i][,cuda:j]",
            help="Where the model runs. With two GPUs, the second refines what the first generates; several clips are "
            "shared out instead.",
            read=str.lower,
        ),
    ] = "auto"

    init_clip: Annotated[
        Path | None,
        Flag(
            names=("--init-clip",),
            metavar="FILE",
            help="Continue this clip, scaled and cropped to fit; only the continuation is written.",
        ),
    ] = None
    seconds: Annotated[
        float | None,
        Flag(
            names=("--seconds",),
            metavar="S",
            help="Length in seconds, rounded up to a multiple of 4 frames and one more, at 16 fps (1 s: 17 frames); by "
            "default 81 frames, about 5 s. Longer clips with ultraflash need the ultraflash-long weights.",
            shows_default=False,
        ),
    ] = None
    save_lr: Annotated[
        bool, Flag(names=("--save-lr",), help="Also write the 480p clip, as NAME_480p in the same folder.")
    ] = False
    cache_management: Annotated[
        str,
        Flag(
            names=("--cache-management",),
            read=str.lower,
            metavar="off|steps,refresh,kv",
            help="Shortcuts for speed, one or more: fewer denoising steps after the first chunk (steps=N), fewer "
            "context passes (refresh=THRESHOLD), a shorter cache (kv).",
        ),
    ] = "off"


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
