"""The schedule of a stream: frames per group, chunks of a generated clip, and their
noise."""

import hashlib
import math
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from ultraflash_cli.errors import ConfigError

__all__ = [
    "FRAMES_PER_LATENT",
    "GENERATED_FPS",
    "LATENT_PX",
    "GenerationPlan",
    "group_frames",
    "group_noise",
    "kv_lengths",
    "latents_for",
    "plan_generation",
]

LATENT_PX = 8
"""Pixels per side of one latent."""

FRAMES_PER_LATENT = 4
"""Pixel frames per latent frame."""

GENERATED_FPS = 16
"""Pixel frames per second of a generated clip."""


def group_frames(group_latents: int, pad_front: int, *, first: bool) -> int:
    """Return the source frames per group; the first group of a stream is shorter by its
    front padding."""
    return FRAMES_PER_LATENT * group_latents - (pad_front if first else 0)


def group_noise(
    shape: tuple[int, ...], *, seed: int, stage: str, first_frame: int, group: int
) -> Tensor:
    """Return standard normal noise for one group of one stage, float32 on the CPU.

    It depends only on its arguments, so a resumed or divided run gets the same noise.
    """
    name = f"{seed}/{stage}/{first_frame}/{group}".encode()
    generator = torch.Generator()
    generator.manual_seed(int.from_bytes(hashlib.sha256(name).digest()[:8], "little") >> 1)
    return torch.randn(shape, generator=generator)


@dataclass(frozen=True, kw_only=True)
class GenerationPlan:
    """The chunks a clip is generated in and the groups they are refined in
    (reference/cascade.md 8)."""

    group_chunks: tuple[tuple[int, ...], ...]
    """Latent frames of each chunk, by group."""

    @property
    def chunks(self) -> tuple[int, ...]:
        """Latent frames of each chunk."""
        return tuple(chunk for group in self.group_chunks for chunk in group)

    @property
    def groups(self) -> tuple[int, ...]:
        """Latent frames of each group."""
        return tuple(sum(group) for group in self.group_chunks)

    @property
    def group_offsets(self) -> tuple[int, ...]:
        """Latent frames before each group."""
        return tuple(accumulate(self.groups[:-1], initial=0))

    @property
    def pixel_frames(self) -> tuple[int, ...]:
        """Pixel frames of each group; the first latent of a clip is one frame."""
        lost = FRAMES_PER_LATENT - 1
        return tuple(
            FRAMES_PER_LATENT * group - (0 if i else lost)
            for i, group in enumerate(self.groups)
        )

    @property
    def total_latents(self) -> int:
        """Latent frames of the clip."""
        return sum(self.groups)

    @property
    def total_frames(self) -> int:
        """Pixel frames of the clip."""
        return sum(self.pixel_frames)


def plan_generation(
    latents: int,
    *,
    chunk: int = 3,
    independent_first: bool = False,
    chunks_per_group: int = 2,
) -> GenerationPlan:
    """Plan a clip of up to ``latents`` latent frames: a rest that does not fill a chunk
    is dropped, as published.

    With ``independent_first`` the first chunk is one latent frame. Raises ConfigError
    where not even one chunk fits.
    """
    if chunk < 1 or chunks_per_group < 1:
        raise ConfigError(
            f"chunks and groups must not be empty, got chunk {chunk}, chunks per group "
            f"{chunks_per_group}"
        )
    first = 1 if independent_first else chunk
    if latents < first:
        raise ConfigError(f"a clip must have at least {first} latent frames, got {latents}")
    chunks = (first,) + (chunk,) * ((latents - first) // chunk)
    starts = range(0, len(chunks), chunks_per_group)
    return GenerationPlan(
        group_chunks=tuple(chunks[at : at + chunks_per_group] for at in starts)
    )


def latents_for(seconds: float, *, chunk: int = 3, independent_first: bool = False) -> int:
    """Return the fewest latent frames, in whole chunks, whose pixel frames last
    ``seconds`` or more."""
    if not (math.isfinite(seconds) and seconds > 0):
        raise ConfigError(f"a clip must be longer than 0 seconds, got {seconds}")
    frames = math.ceil(seconds * GENERATED_FPS)
    latents = math.ceil((frames + FRAMES_PER_LATENT - 1) / FRAMES_PER_LATENT)
    first = 1 if independent_first else chunk
    return first + chunk * max(0, math.ceil((latents - first) / chunk))


def kv_lengths(
    groups: int, *, kv: int = 3, minimum: int = 1, warm_up: int = 2
) -> tuple[int, ...]:
    """Return the temporal blocks in the SR transformer's cache after each of ``groups``
    groups.

    ``kv`` during the warm-up and one group more, then one less a group down to
    ``minimum`` (reference/cascade.md 9.1).
    """
    return tuple(
        kv if group < warm_up else max(minimum, kv - (group - warm_up))
        for group in range(groups)
    )
