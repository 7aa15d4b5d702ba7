"""Encode captioned clips into shards of latents and embeddings, decoding on the fly; resumable."""

import io
import json
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from ultraflash_cli.engine.schedule import FRAMES_PER_LATENT, GENERATED_FPS
from ultraflash_cli.engine.seeds import generator_of
from ultraflash_cli.errors import ConfigError, InputError
from ultraflash_cli.train.captioned import CaptionedClip
from ultraflash_cli.train.degradation import AigcConfig, DegradationConfig, draw, draw_aigc
from ultraflash_cli.train.encoded import read_members
from ultraflash_cli.train.encoders import Encoders
from ultraflash_cli.train.operators import apply, to_log
from ultraflash_cli.video.decode import read_frames
from ultraflash_cli.video.partial import output_errors
from ultraflash_cli.video.probe import probe

__all__ = ["EncodeJob", "Progress", "encode"]

Frames = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class EncodeJob:
    """Settings for encoding a data set."""

    clips: tuple[CaptionedClip, ...]
    out: Path
    """Folder of the shards; finished ones are kept, an unfinished one is resumed."""
    scale: int = 2
    """Ratio of the clips' sides to those of their degraded versions."""
    sizes: tuple[tuple[int, int], ...]
    """Heights and widths that clips are cut to; for each clip, the one of the closest
    aspect ratio that fits into it."""
    latents: tuple[int, ...] = (36, 12)
    """Lengths of samples in latent frames, longest first; the rest of a clip becomes
    the longest sample that fits."""
    conditions: int = 2
    """Degraded versions of each sample."""
    aigc_share: float = 0.6
    """Fraction of the degraded versions that look like generated video."""
    regenerated_share: float = 0.0
    """Share of degraded versions that the generator regenerates from partial noise;
    needs a generator."""
    regenerated_levels: tuple[float, float] = (0.3, 0.8)
    """Range of the noise level at which regeneration starts."""
    fps: int = GENERATED_FPS
    """Frames per second of samples."""
    shard_clips: int = 100
    """Clips per shard."""
    seed: int = 1
    """Seed of the degradations."""
    share: tuple[int, int] = (0, 1)
    """Index of this machine and number of machines; each encodes its own shards."""
    degradation: DegradationConfig = field(default_factory=DegradationConfig)
    """Degradation of the versions that look like compressed video."""

    def __post_init__(self) -> None:
        unit = 16 * self.scale
        if any(side % unit for size in self.sizes for side in size) or not self.sizes:
            raise ConfigError(f"sizes of clips must be multiples of {unit}, got {self.sizes}")
        if min(self.conditions, self.fps, self.shard_clips, *self.latents) < 1:
            raise ConfigError("conditions, fps, latents and clips of a shard must be at least 1")


@dataclass(frozen=True)
class Progress:
    """Progress of the work."""

    shard: Path
    clips: int
    """Finished clips of the shard."""
    samples: int
    """Number of samples in the shard."""
    skipped: str = ""
    """Reason why the last clip yielded no samples."""


def encode(job: EncodeJob, encoders: Encoders, *, on_clip: Callable[[Progress], None] | None = None) -> None:
    """Write this machine's share of the shards.

    Each sample is a pure function of the job, so a killed run resumes after the last complete one.
    Raises WeightsError and UsageError as the encoders do.
    """
    with output_errors(job.out):
        job.out.mkdir(parents=True, exist_ok=True)
    which, machines = job.share
    for number, first in enumerate(range(0, len(job.clips), job.shard_clips)):
        if number % machines == which:
            clips = job.clips[first : first + job.shard_clips]
            _write_shard(job, encoders, number, first, clips, on_clip)


def _write_shard(
    job: EncodeJob,
    encoders: Encoders,
    number: int,
    first: int,
    clips: tuple[CaptionedClip, ...],
    on_clip: Callable[[Progress], None] | None,
) -> None:
    target = job.out / f"shard-{number:05d}.tar"
    if target.exists():
        return

    part = target.with_suffix(".part")
    done = _continued(part)
    for at, clip in enumerate(clips):
        skipped = ""
        try:
            for window, frames in enumerate(_samples(job, clip)):
                key = f"{first + at:07d}_{window:03d}"
                if key not in done:
                    with output_errors(part):
                        _append(part, key, _sample(job, encoders, clip, frames, key))
                    done.add(key)
            if not any(key.startswith(f"{first + at:07d}_") for key in done):
                skipped = f"{clip.name}: too short or too small for a sample"
        except InputError as error:
            skipped = str(error)
        if on_clip is not None:
            on_clip(Progress(target, at + 1, len(done), skipped))

    with output_errors(target):
        with part.open("ab") as file:
            file.write(bytes(2 * tarfile.BLOCKSIZE))  # a tar ends with two empty blocks
        part.replace(target)


def _continued(part: Path) -> set[str]:
    """Truncate an unfinished shard after its last complete sample; return the keys that it
    holds."""
    if not part.exists() or part.stat().st_size == 0:
        return set()
    try:
        samples = read_members(part)
    except InputError:
        samples = []  # no complete sample
    last = max(
        (offset + size for sample in samples for offset, size in sample.members.values()),
        default=0,
    )
    with part.open("r+b") as file:
        file.truncate(-(-last // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE)
    return {sample.key for sample in samples}


def _append(part: Path, key: str, members: dict[str, bytes]) -> None:
    """Append the members of a sample, the JSON last: its presence marks the sample as complete."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for extension, content in members.items():
            info = tarfile.TarInfo(f"{key}.{extension}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        end = tar.offset
    with part.open("ab") as file:
        file.write(packed.getvalue()[:end])
        file.flush()


def _samples(job: EncodeJob, clip: CaptionedClip) -> Iterator[Frames]:
    """Yield windows of a clip [T, H, W, 3], one after another, at the job's frame rate."""
    info = probe(clip.path)
    needed = [FRAMES_PER_LATENT * latents - 3 for latents in sorted(job.latents, reverse=True)]
    held: list[Frames] = []
    tick = Fraction(0)
    start: Fraction | None = None
    size: tuple[int, int] | None = None

    for frame in read_frames(info, warn=lambda _: None):
        at = frame.pts * info.time_base
        start = at if start is None else start
        if at - start < tick:
            continue
        tick += Fraction(1, job.fps)
        picture = np.rot90(frame.rgb_hwc, -(info.rotation_deg // 90) % 4)
        size = size or _bucket(job, (picture.shape[0], picture.shape[1]))
        if size is None:
            return
        held.append(_fitted(picture, size))
        if len(held) == needed[0]:
            yield np.stack(held)
            held = []

    for count in needed:
        while len(held) >= count:
            yield np.stack(held[:count])
            held = held[count:]


def _bucket(job: EncodeJob, size: tuple[int, int]) -> tuple[int, int] | None:
    """Return the configured size of the closest aspect ratio that fits into pictures of
    ``size``; None if they are too small for all."""
    covered = [each for each in job.sizes if each[0] <= size[0] and each[1] <= size[1]]
    shape = size[0] / size[1]
    return min(
        covered,
        key=lambda each: (abs(np.log(each[0] / each[1] / shape)), -each[0] * each[1]),
        default=None,
    )


def _fitted(picture: npt.NDArray[Any], size: tuple[int, int]) -> Frames:
    """Downscale a picture until it just covers ``size``, and return its centre crop in
    8 bits."""
    deep = picture.dtype == np.uint16
    x = torch.from_numpy(np.ascontiguousarray(picture).astype(np.float32)).permute(2, 0, 1)[None]
    x = x / 257 if deep else x
    scale = max(size[0] / x.shape[2], size[1] / x.shape[3])
    if scale < 1:
        covering = [max(low, round(side * scale)) for low, side in zip(size, x.shape[2:], strict=True)]
        x = F.interpolate(x, covering, mode="bicubic", antialias=True)
    top, left = ((side - low) // 2 for low, side in zip(size, x.shape[2:], strict=True))
    x = x[0, :, top : top + size[0], left : left + size[1]]
    return x.clamp(0, 255).round().to(torch.uint8).permute(1, 2, 0).numpy()


def _sample(job: EncodeJob, encoders: Encoders, clip: CaptionedClip, frames: Frames, key: str) -> dict[str, bytes]:
    """Return the members of a sample."""
    high = encoders.latents(_tensor(frames))
    text = encoders.text(clip.caption)
    members = {"high.npy": _npy(high[0])}

    logs: list[Any] = []
    for number in range(job.conditions):
        rng = np.random.default_rng((job.seed, *key.encode(), number))
        low, log = _partner(job, encoders, frames, text, rng)
        members[f"low{number}.npy"] = _npy(low[0])
        logs.append(log)

    members["text.npy"] = _npy(text if text is not None else torch.zeros(0))
    facts = {
        "caption": clip.caption,
        "licence": clip.licence,
        "source": clip.source,
        "clip": clip.name,
        "scale": job.scale,
        "fps": job.fps,
        "size": list(frames.shape[1:3]),
        "latents": list(high.shape[2:]),
        "encoders": encoders.identity,
        "partners": logs,
    }
    return members | {"json": json.dumps(facts).encode()}


def _partner(
    job: EncodeJob,
    encoders: Encoders,
    frames: Frames,
    text: Tensor | None,
    rng: np.random.Generator,
) -> tuple[Tensor, Any]:
    """Return the latents of a degraded version and the record of its degradation."""
    size = (frames.shape[1], frames.shape[2])
    if rng.random() < job.aigc_share:
        operators = draw_aigc(AigcConfig(), size, job.scale, rng, with_coder=encoders.codes)
    else:
        operators = draw(job.degradation, size, job.scale, rng)[1]
    low = encoders.latents(_tensor(apply(frames, operators, coder=encoders.coder)))
    log: list[Any] = to_log(operators)
    if rng.random() < job.regenerated_share:
        level, seed = float(rng.uniform(*job.regenerated_levels)), int(rng.integers(2**31))
        low = encoders.regenerated(low, text, level, generator_of(seed, "regenerated"))
        log.append({"operator": "generator", "level": level, "seed": seed})
    return low, log


def _tensor(frames: Frames) -> Tensor:
    """Return frames in the layout of a stream's start, the first one four times: [1, 3,
    4 L, H, W] in [0, 1]."""
    clip = np.concatenate([frames[:1]] * (FRAMES_PER_LATENT - 1) + [frames])
    return torch.from_numpy(clip).permute(3, 0, 1, 2)[None].float() / 255


def _npy(x: Tensor) -> bytes:
    file = io.BytesIO()
    np.save(file, x.detach().half().cpu().numpy())
    return file.getvalue()
