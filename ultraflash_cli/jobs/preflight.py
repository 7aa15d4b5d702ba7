"""Everything that can be refused or decided before a model is loaded, the cheapest first."""

import math
import re
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ultraflash_cli.engine.plan import SHORT_SIDES, WORTHWHILE, UpscalePlan, plan_upscale
from ultraflash_cli.errors import ConfigError, InputError
from ultraflash_cli.jobs.host import usable_cores
from ultraflash_cli.jobs.target import check_space, check_target, encoded_bytes
from ultraflash_cli.jobs.window import Window, choose_window

if TYPE_CHECKING:
    from ultraflash_cli.video.encode import EncodeSpec
    from ultraflash_cli.video.passthrough import StreamPlan
    from ultraflash_cli.video.probe import ClipInfo

__all__ = [
    "CODECS",
    "DECODERS",
    "ENCODERS",
    "MODELS",
    "Prepared",
    "UpscaleJob",
    "check_model",
    "choose_model",
    "default_res",
    "estimate_frames",
    "prepare",
]

MODELS = ("auto", "lite", "ultraflash")
"""What `--model` takes; the trial model is not shown."""
_TRIAL_MODEL = "tiny-random"
ENCODERS = ("auto", "tiny", "wan-vae")
_PARTS = ("encoder", "upsampler", "sr_dit", "decoder", "text_encoder")
DECODERS = ("auto", "tiny", "ultra")
_STRETCH = Fraction(102, 100)
"""How much more one side may grow than the other before it is said; rounding to even sides is less."""
CODECS = ("auto", "h264", "hevc", "av1", "prores", "ffv1")


@dataclass(frozen=True, kw_only=True)
class UpscaleJob:
    """One clip to upscale, as asked for."""

    source: Path
    output: Path | None = None
    """The file to write; None for a name made from the source's, in `folder`."""
    folder: Path | None = None
    """Where a made name goes; None for beside the source."""
    res: str | None = None
    """`1k`, `2k`, `WxH` (as shown, after rotation), `2x`, `3x`; None for the default rule."""
    model: str = "auto"
    prompt: str | None = None
    """What the clip shows, for a model that takes words; None for the model's own default."""
    encoder: str = "auto"
    """Which of the model's encoders turns frames into latents."""
    decoder: str = "auto"
    """Which of the model's decoders turns latents into frames."""
    store: Path | None = None
    """Folder of the downloaded weights; None where only built-in ones may be used."""
    strength: float = 1.0
    color: Literal["match", "off"] = "match"
    seed: int = 0
    cuts: Literal["auto", "off"] = "auto"
    codec: str = "auto"
    crf: int | None = None
    pix_fmt: str = "auto"
    enc_options: tuple[tuple[str, str], ...] = ()
    audio: Literal["copy", "none"] = "copy"
    subs: Literal["copy", "none"] = "copy"
    device: str = "auto"
    precision: str = "auto"
    max_memory: str | None = None
    """The most memory of the device to use, such as `6G`; None for what is free."""
    threads: int | None = None
    """CPU threads of the model and of the encoder; None for all usable cores."""
    start: str | None = None
    """As `jobs.window` reads it; None for the clip's first frame."""
    end: str | None = None
    preview: str | None = None
    """A length, or `LENGTH@PLACE`."""
    side_by_side: bool = False
    """Show the plain resample on the left and the result on the right."""
    resume: bool = True
    overwrite: bool = False
    skip_existing: bool = False
    downscale: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.strength) and 0 <= self.strength <= 1):
            raise ConfigError(f"--strength is between 0 and 1, got {self.strength}")
        if self.res is not None and not re.fullmatch(r"1k|2k|2x|3x|[1-9]\d*x[1-9]\d*", self.res):
            raise ConfigError(f"--res is 1k, 2k, WxH, 2x or 3x, got {self.res!r}")
        check_model(self.model)
        if self.encoder not in ENCODERS:
            raise ConfigError(f"--encoder is one of {', '.join(ENCODERS)}, got {self.encoder!r}")
        if self.decoder not in DECODERS:
            raise ConfigError(f"--decoder is one of {', '.join(DECODERS)}, got {self.decoder!r}")
        if self.codec not in CODECS:
            raise ConfigError(f"--codec is one of {', '.join(CODECS)}, got {self.codec!r}")
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            raise ConfigError(f"--device is auto, cpu, cuda or cuda:N, got {self.device!r}")
        if self.crf is not None and not 0 <= self.crf <= 63:
            raise ConfigError(f"--crf is between 0 and 63, got {self.crf}")
        if self.seed < 0:
            raise ConfigError(f"--seed is 0 or more, got {self.seed}")
        if self.threads is not None and self.threads < 1:
            raise ConfigError(f"--threads is 1 or more, got {self.threads}")
        if self.output is not None and self.folder is not None:
            raise ConfigError("an output file and an output folder exclude each other; give one of them")
        if self.overwrite and self.skip_existing:
            raise ConfigError("--overwrite and --skip-existing exclude each other; give one of them")


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A job with everything decided that needs no model."""

    job: UpscaleJob
    info: "ClipInfo"
    output: Path
    exists: bool
    """The output is there already and the job says to skip it then."""
    plan: UpscalePlan
    res: str
    """The target as a word for names: the one asked for, or what the default rule gave."""
    model: str
    window: Window | None
    """The part of the clip to do; None for all of it."""
    streams: "StreamPlan"
    spec: "EncodeSpec"
    threads: int
    warnings: tuple[str, ...]


def check_model(model: str) -> None:
    """Raise ConfigError for a model that there is not."""
    if model not in (*MODELS, _TRIAL_MODEL):
        raise ConfigError(f"--model is one of {', '.join(MODELS)}, got {model!r}")


def choose_model(model: str, store: Path | None, device: str, *, scale: int, parts: tuple[str, ...]) -> str:
    """Turn ``auto`` into the published model where the weights of its ``parts`` lie in ``store`` and a GPU is there.

    Else it is ``lite``.
    """
    if model != "auto":
        return model
    if store is None or device == "cpu" or not (store / "weights").is_dir():
        return "lite"
    import torch

    from ultraflash_cli.engine.profiles import ULTRAFLASH
    from ultraflash_cli.weights.manifest import read_manifest
    from ultraflash_cli.weights.store import WeightStore

    found, manifest, profile = WeightStore(store), read_manifest(), ULTRAFLASH.at_scale(scale)
    installed = all(found.installed(manifest[profile.weight_of(part)]) for part in parts)
    return ULTRAFLASH.name if installed and torch.cuda.is_available() else "lite"


def estimate_frames(info: "ClipInfo", window: Window | None) -> int | None:
    """Guess how many frames there are to do, where the container says how many there are."""
    total = info.frame_count_estimate
    if window is None or total is None:
        return total
    return min(total, round((window[1] - window[0]) * info.average_rate))


def default_res(width_px: int, height_px: int) -> str:
    """Name the target that is taken where none is asked for: the first worthwhile one of `1k`, `2k`, else `2x`."""
    short_px = min(width_px, height_px)
    for res, target_px in SHORT_SIDES.items():
        if Fraction(target_px, short_px) >= WORTHWHILE:
            return res
    return "2x"


def prepare(job: UpscaleJob, *, to_write: bool = True) -> Prepared:
    """Check and decide, writing nothing; without `to_write` the output's place is not looked at.

    Raises UsageError (a target that makes no sense, options the encoder refuses, an output that exists), InputError,
    OutputError.
    """
    source = job.source
    _check_source(source)
    if to_write and job.output is not None:
        _check_target(source, job.output, job)

    from ultraflash_cli.video.encode import check_encoder, choose_spec
    from ultraflash_cli.video.passthrough import plan_streams
    from ultraflash_cli.video.probe import probe

    info = probe(source)
    window = choose_window(
        start=job.start,
        end=job.end,
        preview=job.preview,
        clip_start_s=info.start_s,
        duration_s=info.duration_s,
    )
    res = job.res or default_res(info.display_width_px, info.display_height_px)
    plan = plan_upscale(
        info.width_px,
        info.height_px,
        res=res,
        downscale=job.downscale,
        quarter_turn=info.rotation_deg in (90, 270),
    )
    turned = info.rotation_deg in (90, 270)
    height_px, width_px = plan.target
    if job.side_by_side:
        height_px, width_px = (2 * height_px, width_px) if turned else (height_px, 2 * width_px)

    threads = job.threads or usable_cores()
    spec = choose_spec(
        info,
        width_px=width_px,
        height_px=height_px,
        codec=job.codec,
        crf=job.crf,
        pix_fmt=job.pix_fmt,
        enc_options=job.enc_options,
        threads=threads,
    )
    part = "_preview" if job.preview is not None else "_part" if window is not None else ""
    part += "_side_by_side" if job.side_by_side else ""
    suffix = job.output.suffix if job.output is not None else None
    streams = plan_streams(info, suffix, audio=job.audio, subs=job.subs, codec=spec.codec)
    output = job.output or (job.folder or source.parent) / f"{source.stem}_{res}{part}{streams.suffix}"
    exists = to_write and _check_target(source, output, job)
    if to_write and not exists:
        check_space(output, _needed_bytes(info, spec, window))
    if not exists:
        check_encoder(spec)
    return Prepared(
        job=job,
        info=info,
        output=output,
        exists=exists,
        plan=plan,
        res=res,
        window=window,
        model=choose_model(job.model, job.store, job.device, scale=plan.scale, parts=_PARTS),
        streams=streams,
        spec=spec,
        threads=threads,
        warnings=_warnings(info, spec, plan, streams, output),
    )


def _check_source(source: Path) -> None:
    try:
        if source.is_dir():
            raise InputError(f"{source} is a folder, expected a video file")
        if not source.exists():
            raise InputError(f"{source}: no such file; check the path")
        if not source.is_file():
            raise InputError(f"{source} is a pipe or a device, expected a file")
        if source.stat().st_size == 0:
            raise InputError(f"{source} is empty (0 bytes); copy it again from where it came")
        with source.open("rb"):
            pass
    except OSError as error:
        raise InputError(f"{source}: {error.strerror}; check the path and its permissions") from error


def _check_target(source: Path, output: Path, job: UpscaleJob) -> bool:
    return check_target(output, source=source, overwrite=job.overwrite, skip_existing=job.skip_existing)


def _needed_bytes(info: "ClipInfo", spec: "EncodeSpec", window: Window | None) -> int:
    frames = estimate_frames(info, window) or 0
    picture_bytes = encoded_bytes(spec.codec, width_px=spec.width_px, height_px=spec.height_px, frames=frames)
    copied_bytes = info.path.stat().st_size if len(info.streams) > 1 else 0
    # Segments and the joined file lie side by side for a moment.
    return 2 * picture_bytes + copied_bytes


def _warnings(
    info: "ClipInfo", spec: "EncodeSpec", plan: UpscalePlan, streams: "StreamPlan", output: Path
) -> tuple[str, ...]:
    warnings: list[str] = []
    across, down = Fraction(plan.target[1], info.width_px), Fraction(plan.target[0], info.height_px)
    if max(across, down) > _STRETCH * min(across, down):
        warnings.append(
            f"{output.name}: the picture is stretched: the target has another shape than the "
            f"{info.display_width_px}x{info.display_height_px} of the source"
        )
    if streams.reason:
        warnings.append(f"{output.name}: {streams.reason}")
    warnings += [f"{output.name}: left out: {dropped}" for dropped in streams.dropped]
    warnings += [f"{output.name}: {note}" for note in streams.notes]
    if info.bit_depth > 8 and not spec.deep:
        warnings.append(f"the input has {info.bit_depth} bits a sample, {spec.pix_fmt} keeps 8")
    return tuple(warnings)
