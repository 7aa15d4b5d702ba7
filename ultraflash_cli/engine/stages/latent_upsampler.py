"""Causal latent upsampler (version 1): low-resolution latents to high-resolution
latents, x2 or x3."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ultraflash_cli.engine.layers.memory_block import MemoryBlock, MemoryInit, activation
from ultraflash_cli.errors import ConfigError

__all__ = ["LatentUpsampler", "LatentUpsamplerConfig", "LatentUpsamplerState"]


@dataclass(frozen=True, kw_only=True)
class LatentUpsamplerConfig:
    """Sizes of the upsampler; the defaults are the published ones
    (reference/cascade.md 3.1)."""

    scale: int = 2
    """Spatial growth per side."""
    latent_channels: int = 16
    """Channels of a latent frame, in and out."""
    width: int = 128
    """Channels inside."""
    blocks: int = 8
    """Memory blocks at the high resolution."""
    memory_init: MemoryInit = "replicate"
    """The memory before the first frame."""
    negative_slope: float = 0.0
    """Slope of the activation below zero; 0 is ReLU."""

    def __post_init__(self) -> None:
        if self.scale not in (2, 3):
            raise ConfigError(f"upsampler scale is 2 or 3, got {self.scale}")
        if min(self.latent_channels, self.width, self.blocks) < 1:
            raise ConfigError("upsampler sizes must be positive")


@dataclass(frozen=True)
class LatentUpsamplerState:
    """The last input frame of every memory block."""

    memories: tuple[Tensor, ...]
    started: bool


class LatentUpsampler(nn.Module):
    """Latents [B, C, T, H, W] to [B, C, T, scale * H, scale * W], frame by frame with a
    memory of one frame."""

    def __init__(self, config: LatentUpsamplerConfig) -> None:
        super().__init__()
        self.config = config
        width, slope = config.width, config.negative_slope
        self.pre_shuffle = nn.Sequential(
            nn.Conv2d(config.latent_channels, width * config.scale**2, 3, padding=1),
            nn.PixelShuffle(config.scale),
            activation(slope),
        )
        self.blocks = nn.ModuleList(
            [
                MemoryBlock(width, init=config.memory_init, negative_slope=slope)
                for _ in range(config.blocks)
            ]
        )
        self.final = nn.Conv2d(width, config.latent_channels, 3, padding=1)

    def upsample(
        self, latents_bcthw: Tensor, memories: tuple[Tensor, ...] | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Upsample a piece of a clip at once; differentiable. ``memories`` is None at
        the start of a stream."""
        batch = latents_bcthw.shape[0]
        x = (
            latents_bcthw.transpose(1, 2)
            .flatten(0, 1)
            .contiguous(memory_format=torch.channels_last)
        )
        x = self.pre_shuffle(x).contiguous(memory_format=torch.channels_last)
        after: list[Tensor] = []
        for i, block in enumerate(self.blocks):
            x, memory = block(x, None if memories is None else memories[i], batch)
            after.append(memory)
        return self.final(x).unflatten(0, (batch, -1)).transpose(1, 2), tuple(after)

    def init_state(self, *, batch: int, height: int, width: int) -> LatentUpsamplerState:
        """Return the state before the first latent frame of ``height`` x ``width``."""
        scale, weight = self.config.scale, self.final.weight
        shape = (batch, self.config.width, height * scale, width * scale)
        empty = torch.zeros(shape, dtype=weight.dtype, device=weight.device)
        memories = tuple(
            empty.clone(memory_format=torch.channels_last)
            for _ in range(self.config.blocks)
        )
        return LatentUpsamplerState(memories, False)

    def step(
        self, state: LatentUpsamplerState, inputs: Tensor
    ) -> tuple[LatentUpsamplerState, Tensor]:
        """Take in latents [B, C, T, H, W]; return as many at the high resolution.

        On a GPU a push is computed at once, on a CPU latent by latent, which stays in
        its caches.
        """
        memories, weight = state.memories if state.started else None, self.final.weight
        out: list[Tensor] = [self._no_latents(state)]
        together = max(1, inputs.shape[2]) if weight.is_cuda else 1
        for piece in inputs.split(together, dim=2) if inputs.shape[2] else ():
            latent, memories = self.upsample(piece.to(weight.dtype), memories)
            out.append(latent)
        after = LatentUpsamplerState(
            state.memories if memories is None else memories, memories is not None
        )
        return after, torch.cat(out, dim=2)

    def flush(self, state: LatentUpsamplerState) -> Tensor:
        """Return no latents: nothing is ever queued."""
        return self._no_latents(state)

    def _no_latents(self, state: LatentUpsamplerState) -> Tensor:
        batch, _, height, width = state.memories[0].shape
        return state.memories[0].new_empty(
            (batch, self.config.latent_channels, 0, height, width)
        )
