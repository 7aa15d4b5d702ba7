"""The schedule of a stream: frames per group, chunks of a generated clip, and their
noise."""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ultraflash_cli.engine.seeds import generator_of
from ultraflash_cli.errors import ConfigError

__all__ = [
    "FRAMES_PER_LATENT",
    "GENERATED_FPS",
    "LATENT_PX",
    "Alignment",
    "GenerationPlan",
    "NoiseSource",
    "filled_up",
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


@dataclass(frozen=True, kw_only=True)
class Alignment:
    """The alignment of frames and latents at the start of a stream. A latent represents
    four frames, but 1 + 4k frames make 1 + k latents: a stream's first frame is treated
    as if preceded by copies of it.
    """

    pad_front: int = 3
    """Frames by which a stream's first group is shorter; copies of its first frame
    replace them."""
    copy_front: bool = True
    """Whether those copies are made; the full autoencoder encodes a first frame
    alone."""
    drop_front: int = 3
    """Raw frames of the decoder that are dropped at the start of a stream."""

    @property
    def delay(self) -> int:
        """Number of frames pending after a group, because the encoder runs ahead of the
        decoder (reference/cascade.md 6.4)."""
        return self.drop_front - self.pad_front

    def group_frames(self, latents: int, *, first: bool) -> int:
        """Return the number of source frames in a group of ``latents``."""
        return FRAMES_PER_LATENT * latents - (self.pad_front if first else 0)

    def pad(self, frames_bcthw: Tensor, *, first: bool) -> Tensor:
        """Return a group's frames padded for the encoder. A stream's ``first`` group is
        preceded by its copies; the last group of a stream is padded to whole latents
        with its last frame.
        """
        front = self.pad_front if first else 0
        missing = -(front + frames_bcthw.shape[2]) % FRAMES_PER_LATENT
        copies = front if self.copy_front else 0
        if not copies + missing:
            return frames_bcthw
        before = frames_bcthw[:, :, :1].expand(-1, -1, copies, -1, -1)
        behind = frames_bcthw[:, :, -1:].expand(-1, -1, missing, -1, -1)
        return torch.cat([before, frames_bcthw, behind], dim=2)

    def trim(self, raw_bcthw: Tensor, *, first: bool, frames: int | None = None) -> Tensor:
        """Return the frames to keep from a group's raw ones. ``frames`` is the number
        of input frames; None keeps all frames of a generator's group.
        """
        start = self.drop_front if first else 0
        if frames is None:
            return raw_bcthw[:, :, start:]
        return raw_bcthw[:, :, start : frames + (self.pad_front if first else 0)]


def filled_up(frames_bcthw: Tensor, *, before: int = 0) -> Tensor:
    """Repeat the last frame until ``before`` frames plus these are whole latents."""
    missing = -(before + frames_bcthw.shape[2]) % FRAMES_PER_LATENT
    if not missing:
        return frames_bcthw
    last = frames_bcthw[:, :, -1:]
    return torch.cat([frames_bcthw, last.expand(-1, -1, missing, -1, -1)], dim=2)


class NoiseSource(Protocol):
    """A source of the cascade's noise: ``group_noise``, unless noise is injected."""

    def __call__(
        self, shape: tuple[int, ...], *, seed: int, stage: str, first_frame: int, group: int
    ) -> Tensor:
        """Return the standard normal noise of one group of one stage."""
        ...


def group_noise(
    shape: tuple[int, ...], *, seed: int, stage: str, first_frame: int, group: int
) -> Tensor:
    """Return standard normal noise for one group of one stage, float32 on the CPU.

    It depends only on its arguments, so a resumed or divided run gets the same noise.
    """
    generator = generator_of(seed, stage, first_frame, group)
    return torch.randn(shape, generator=generator)


@dataclass(frozen=True, kw_only=True)
class GenerationPlan:
    """The chunks in which a clip is generated, and the groups in which they are refined
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
    def pixel_frames(self) -> tuple[int, ...]:
        """Pixel frames of each group; the first latent of a clip is one frame."""
        lost = FRAMES_PER_LATENT - 1
        return tuple(
            FRAMES_PER_LATENT * group - (0 if i else lost)
            for i, group in enumerate(self.groups)
        )

    @property
    def total_latents(self) -> int:
        """Number of latent frames of the clip."""
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
    """Plan a clip of up to ``latents`` latent frames; a remainder that does not fill a
    chunk is dropped, as in the published program.

    With ``independent_first`` the first chunk is one latent frame. Raises ConfigError
    if not even one chunk fits.
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
    """Return the smallest number of latent frames, in whole chunks, that lasts at least
    ``seconds``."""
    if not (math.isfinite(seconds) and seconds > 0):
        raise ConfigError(f"a clip must be longer than 0 seconds, got {seconds}")
    frames = math.ceil(seconds * GENERATED_FPS)
    latents = math.ceil((frames + FRAMES_PER_LATENT - 1) / FRAMES_PER_LATENT)
    first = 1 if independent_first else chunk
    return first + chunk * max(0, math.ceil((latents - first) / chunk))


def kv_lengths(groups: int, *, kv: int = 3) -> tuple[int, ...]:
    """Return the temporal blocks in the SR transformer's cache after each of ``groups``
    groups.

    It is ``kv`` for three groups, then decreases by one per group down to 1
    (reference/cascade.md 9.1).
    """
    return tuple(max(1, kv - max(0, group - 2)) for group in range(groups))
