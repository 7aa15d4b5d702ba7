"""The pixel path: low-resolution frames to high-resolution ones, without latents.

Causal memory blocks on unshuffled frames predict a residual over a lanczos upscale. The
built-in model upscales with it alone.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ultraflash_cli.engine.layers.memory_block import MemoryBlock, MemoryInit
from ultraflash_cli.engine.layers.resample import lanczos_upscale
from ultraflash_cli.errors import ConfigError

__all__ = ["PixelPath", "PixelPathConfig", "PixelPathState"]


@dataclass(frozen=True, kw_only=True)
class PixelPathConfig:
    """Sizes of the pixel path."""

    width: int = 48
    """Channels."""
    blocks: int = 8
    """Memory blocks."""
    patch: int = 2
    """Pixel-unshuffle factor of the low-resolution frames."""
    scales: tuple[int, ...] = (2, 3)
    """Scales that have a projection in the weights; the rest of the path is shared."""
    scale: int = 2
    """The scale this network works at."""
    residual_gain: float = 0.01
    """Factor on the projection that keeps training steps small."""
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


@dataclass(frozen=True)
class PixelPathState:
    """The last input frame of every memory block; ``empty`` has the output's size."""

    memories: tuple[Tensor, ...]
    started: bool
    empty_bcthw: Tensor


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
        self.blocks = nn.ModuleList(
            [
                MemoryBlock(config.width, init=init, negative_slope=slope)
                for _ in range(config.blocks)
            ]
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

        ``scale`` overrides the config's (training alternates between several).
        """
        batch, config = frames_bcthw.shape[0], self.config
        scale = scale or config.scale
        frames = frames_bcthw.transpose(1, 2).flatten(0, 1)
        small = F.pixel_unshuffle(frames.to(self.embed.weight.dtype), config.patch)
        embedded = self.embed(small.contiguous(memory_format=torch.channels_last))
        x, after = embedded, list[Tensor]()
        for i, block in enumerate(self.blocks):
            x, memory = block(x, None if memories is None else memories[i], batch)
            after.append(memory)
        residual = self.project[str(scale)](x + embedded) * config.residual_gain
        full = lanczos_upscale(frames.float(), scale) + F.pixel_shuffle(
            residual, config.patch * scale
        )
        return full.unflatten(0, (batch, -1)).transpose(1, 2), tuple(after)

    def init_state(self, *, batch: int, height: int, width: int) -> PixelPathState:
        """Return the state before the first frame of ``height`` x ``width``."""
        config, like = self.config, self.embed.weight
        shape = (batch, config.width, height // config.patch, width // config.patch)
        memories = tuple(
            torch.zeros(shape, dtype=like.dtype, device=like.device).contiguous(
                memory_format=torch.channels_last
            )
            for _ in range(config.blocks)
        )
        size = (batch, 3, 0, config.scale * height, config.scale * width)
        return PixelPathState(memories, False, torch.empty(size, device=like.device))

    def step(
        self, state: PixelPathState, frames_bcthw: Tensor
    ) -> tuple[PixelPathState, Tensor]:
        """Take in frames; return as many. On a CPU frame by frame, which stays in its
        caches."""
        memories = state.memories if state.started else None
        frames = frames_bcthw.shape[2]
        batch, channels, _, height, width = state.empty_bcthw.shape
        out = state.empty_bcthw.new_empty((batch, channels, frames, height, width))
        together = frames if out.is_cuda else 1
        for at in range(0, frames, max(1, together)):
            piece = frames_bcthw[:, :, at : at + together]
            out[:, :, at : at + together], memories = self.upscale(piece, memories)
        return PixelPathState(
            memories or state.memories, memories is not None, state.empty_bcthw
        ), out

    def flush(self, state: PixelPathState) -> Tensor:
        """Return no frames: nothing is ever queued."""
        return state.empty_bcthw
