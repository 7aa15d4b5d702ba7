"""Causal latent upsampler (version 1): low-resolution latents to high-resolution
latents, x2 or x3."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ultraflash_cli.engine.layers.memory_block import (
    MemoryBlock,
    MemoryInit,
    MemorySequential,
    MemoryState,
    activation,
    in_pieces,
    to_clip,
    to_frames,
)
from ultraflash_cli.errors import ConfigError

__all__ = ["LatentUpsampler", "LatentUpsamplerConfig"]


@dataclass(frozen=True, kw_only=True)
class LatentUpsamplerConfig:
    """Sizes of the upsampler; the defaults are the published ones
    (reference/cascade.md 3.1)."""

    scale: int = 2
    """Spatial growth per side."""
    latent_channels: int = 16
    """Number of channels of a latent frame, in and out."""
    width: int = 128
    """Internal channels."""
    blocks: int = 8
    """Memory blocks at the high resolution."""
    memory_init: MemoryInit = "replicate"
    """The memory before the first frame."""
    negative_slope: float = 0.0
    """Slope of the activation below zero; 0 is ReLU."""
    padding: Literal["zeros", "replicate"] = "zeros"
    """Padding of the first and the last convolution. With zeros, a small network lets
    colours fade in the outermost latents."""

    def __post_init__(self) -> None:
        if self.scale not in (2, 3):
            raise ConfigError(f"the upsampler scale must be 2 or 3, got {self.scale}")
        if min(self.latent_channels, self.width, self.blocks) < 1:
            raise ConfigError("upsampler sizes must be positive")


class LatentUpsampler(nn.Module):
    """Latents [B, C, T, H, W] to [B, C, T, scale * H, scale * W], frame by frame, with
    a memory of one frame."""

    def __init__(self, config: LatentUpsamplerConfig) -> None:
        super().__init__()
        self.config = config
        width, slope = config.width, config.negative_slope
        self.pre_shuffle = nn.Sequential(
            nn.Conv2d(
                config.latent_channels,
                width * config.scale**2,
                3,
                padding=1,
                padding_mode=config.padding,
            ),
            nn.PixelShuffle(config.scale),
            activation(slope),
        )
        self.blocks = MemorySequential(
            *(
                MemoryBlock(width, init=config.memory_init, negative_slope=slope)
                for _ in range(config.blocks)
            )
        )
        self.final = nn.Conv2d(
            width, config.latent_channels, 3, padding=1, padding_mode=config.padding
        )

    def upsample(
        self, latents_bcthw: Tensor, memories: tuple[Tensor, ...] | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Upsample a piece of a clip at once; differentiable. ``memories`` is None at
        the start of a stream."""
        batch = latents_bcthw.shape[0]
        x = self.pre_shuffle(to_frames(latents_bcthw))
        x = x.contiguous(memory_format=torch.channels_last)
        x, after = self.blocks.stream(x, memories, batch)
        return to_clip(self.final(x), batch), after

    def init_state(self, *, batch: int, height: int, width: int) -> MemoryState:
        """Return the state before the first latent frame of ``height`` x ``width``."""
        scale = self.config.scale
        shape = (batch, self.config.width, height * scale, width * scale)
        return MemoryState.empty([shape] * self.config.blocks, like=self.final.weight)

    def group_size(self, state: MemoryState) -> int:
        """Return 1: a group is any number of latents."""
        return 1

    def step(self, state: MemoryState, latents_bcthw: Tensor) -> tuple[MemoryState, Tensor]:
        """Return equally many latents at the high resolution. A GPU computes the group
        at once, a CPU latent by latent to make use of its caches.
        """
        weight = self.final.weight
        size = latents_bcthw.shape[2] if weight.is_cuda else 1
        return in_pieces(self.upsample, state, latents_bcthw.to(weight.dtype), size=size)
