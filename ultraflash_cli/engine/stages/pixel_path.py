"""The pixel path from low- to high-resolution frames, without latents. Causal memory
blocks on unshuffled frames predict a residual over a Lanczos upscale. The built-in
model upscales only with it.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ultraflash_cli.engine.layers.memory_block import (
    MemoryBlock,
    MemoryInit,
    MemorySequential,
    MemoryState,
    in_pieces,
    to_clip,
)
from ultraflash_cli.engine.layers.resample import lanczos_upscale
from ultraflash_cli.errors import ConfigError

__all__ = ["PixelPath", "PixelPathConfig"]


@dataclass(frozen=True, kw_only=True)
class PixelPathConfig:
    """Sizes of the pixel path."""

    width: int = 48
    """Number of channels."""
    blocks: int = 8
    """Memory blocks."""
    patch: int = 2
    """Pixel-unshuffle factor of the low-resolution frames."""
    scales: tuple[int, ...] = (2, 3)
    """Scales that have a projection in the weights; the rest of the path is shared."""
    scale: int = 2
    """The scale of this network."""
    residual_gain: float = 0.01
    """Factor on the projection, which keeps training steps small."""
    memory_init: MemoryInit = "replicate"
    """The memory before the first frame."""
    negative_slope: float = 0.1
    """Slope of the activation below zero; 0 is ReLU."""

    def __post_init__(self) -> None:
        if self.scale not in self.scales:
            raise ConfigError(
                f"the pixel path has projections for {self.scales}, not for x{self.scale}"
            )
        if min(self.width, self.blocks, self.patch) < 1:
            raise ConfigError("sizes of the pixel path must be positive")


class PixelPath(nn.Module):
    """RGB frames [B, 3, T, h, w] in [0, 1] to [B, 3, T, scale * h, scale * w], float32,
    not clamped.

    Sides are multiples of ``patch``. Every frame is its own group and depends only on
    earlier ones.
    """

    def __init__(self, config: PixelPathConfig) -> None:
        super().__init__()
        self.config = config
        init, slope = config.memory_init, config.negative_slope
        self.embed = nn.Conv2d(3 * config.patch**2, config.width, 3, padding=1)
        self.blocks = MemorySequential(
            *(
                MemoryBlock(config.width, init=init, negative_slope=slope)
                for _ in range(config.blocks)
            )
        )
        self.project = nn.ModuleDict(
            {
                str(s): nn.Conv2d(config.width, 3 * (s * config.patch) ** 2, 3, padding=1)
                for s in config.scales
            }
        )

    def upscale(
        self,
        frames_bcthw: Tensor,
        memories: tuple[Tensor, ...] | None,
        *,
        scale: int | None = None,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Enlarge a piece of a clip at once; differentiable. ``memories`` is None at
        the start of a stream.

        ``scale`` overrides that of the config (training alternates between scales).
        """
        batch, config = frames_bcthw.shape[0], self.config
        scale = scale or config.scale
        frames = frames_bcthw.transpose(1, 2).flatten(0, 1)
        small = F.pixel_unshuffle(frames.to(self.embed.weight.dtype), config.patch)
        embedded = self.embed(small.contiguous(memory_format=torch.channels_last))
        x, after = self.blocks.stream(embedded, memories, batch)
        residual = self.project[str(scale)](x + embedded) * config.residual_gain
        full = lanczos_upscale(frames.float(), scale) + F.pixel_shuffle(
            residual, config.patch * scale
        )
        return to_clip(full, batch), after

    def init_state(self, *, batch: int, height: int, width: int) -> MemoryState:
        """Return the state before the first frame of ``height`` x ``width``."""
        config = self.config
        shape = (batch, config.width, height // config.patch, width // config.patch)
        return MemoryState.empty([shape] * config.blocks, like=self.embed.weight)

    def group_size(self, state: MemoryState) -> int:
        """Return 1: a group is any number of frames."""
        return 1

    def step(self, state: MemoryState, frames_bcthw: Tensor) -> tuple[MemoryState, Tensor]:
        """Return equally many frames; a CPU works frame by frame to make use of its
        caches."""
        size = frames_bcthw.shape[2] if self.embed.weight.is_cuda else 1
        return in_pieces(self.upscale, state, frames_bcthw, size=size)
