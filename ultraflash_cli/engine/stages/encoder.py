"""Streaming pixel encoder in the TAEHV layout: 8x in space, 4x in time, causal
memory."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ultraflash_cli.engine.layers.memory_block import (
    Joined,
    MemoryBlock,
    MemoryInit,
    MemorySequential,
    MemoryState,
    TimePool,
    activation,
    to_clip,
)
from ultraflash_cli.engine.layers.pooled_conv import PooledConv
from ultraflash_cli.engine.schedule import FRAMES_PER_LATENT, filled_up
from ultraflash_cli.errors import ConfigError
from ultraflash_kernels.memory_conv import library_refusal

__all__ = ["Encoder", "EncoderConfig"]


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """Sizes of the encoder; the defaults are the published ones
    (reference/cascade.md 6.4)."""

    latent_channels: int = 16
    """Number of channels of a latent frame."""
    width: int = 64
    """Internal channels."""
    blocks: int = 3
    """Memory blocks in each of the three stages."""
    patch: int = 1
    """Pixel-unshuffle factor before the first convolution."""
    strides: tuple[int, int, int] = (2, 2, 2)
    """Spatial stride of each stage; with ``patch`` their product is 8."""
    time_pools: tuple[int, int, int] = (2, 2, 1)
    """Number of frames that each stage joins; the product is 4."""
    memory_init: MemoryInit = "zeros"
    """The memory before the first frame."""
    negative_slope: float = 0.0
    """Slope of the activation below zero; 0 is ReLU."""
    linear_trunk: bool = False
    """Whether only memory blocks have activations, which leaves a linear path from
    pixels to latents."""

    def __post_init__(self) -> None:
        space, time = self.patch, 1
        for stride, pool in zip(self.strides, self.time_pools, strict=True):
            space, time = space * stride, time * pool
        if space != 8 or time != FRAMES_PER_LATENT:
            raise ConfigError(
                "the encoder downsamples by 8 in space and 4 in time, "
                f"got {space} and {time}"
            )
        if min(self.latent_channels, self.width, self.blocks) < 1:
            raise ConfigError("encoder sizes must be positive")


class Encoder(nn.Module):
    """Frames [B, 3, T, H, W] in [0, 1] to latents [B, C, T / 4, H / 8, W / 8]."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        width, slope = config.width, config.negative_slope
        trunk = 1.0 if config.linear_trunk else slope
        layers: list[nn.Module] = [
            nn.Conv2d(3 * config.patch**2, width, 3, padding=1),
            activation(trunk),
        ]

        for stride, pool in zip(config.strides, config.time_pools, strict=True):
            layers += [
                TimePool(width, pool),
                nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False),
            ]
            layers += [
                MemoryBlock(
                    width,
                    init=config.memory_init,
                    negative_slope=slope,
                    linear_trunk=config.linear_trunk,
                )
                for _ in range(config.blocks)
            ]

        layers.append(nn.Conv2d(width, config.latent_channels, 3, padding=1))
        self.encoder = MemorySequential(*layers)
        self._pooled = [PooledConv() for _ in config.strides]

    def encode(
        self, frames_bcthw: Tensor, memories: tuple[Tensor, ...] | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Encode a multiple of 4 frames at once; differentiable.

        ``memories`` is None at the start of a stream. Returns (latents, memories after
        the last frame).
        """
        batch = frames_bcthw.shape[0]
        x = frames_bcthw.transpose(1, 2).flatten(0, 1)
        x = F.pixel_unshuffle(x, self.config.patch) if self.config.patch > 1 else x
        x = x.contiguous(memory_format=torch.channels_last)
        x, after = self.encoder.stream(x, memories, batch, joined=self._joined(x))
        return to_clip(x, batch), after

    def _joined(self, x_nchw: Tensor) -> dict[int, Joined]:
        """Return what is computed together on a GPU: pooling in time with the
        convolution after it, and where ReLU precedes them the first convolution."""
        weights = self.encoder.parameters()
        if self.config.negative_slope or library_refusal(self._weight, x_nchw, *weights):
            return {}
        layers = list(self.encoder)
        pools = [number for number, x in enumerate(layers) if isinstance(x, TimePool)]
        found: dict[int, Joined] = {}
        for pooled, number in zip(self._pooled, pools, strict=True):
            two: dict[str, Any] = {"pool": layers[number], "conv": layers[number + 1]}
            found[number] = Joined(number + 2, partial(pooled.run, **two))
        if isinstance(layers[1], nn.ReLU):
            three: dict[str, Any] = {
                "first": layers[0],
                "pool": layers[2],
                "conv": layers[3],
            }
            found[0] = Joined(4, partial(self._pooled[0].run_first, **three))
        return found

    def init_state(self, *, batch: int, height: int, width: int) -> MemoryState:
        """Return the state before the first frame of ``height`` x ``width`` pixels,
        multiples of 8."""
        assert height % 8 == 0 and width % 8 == 0, (
            "the caller pads frames to multiples of 8"
        )
        shapes: list[tuple[int, ...]] = []
        shrink = self.config.patch
        for stride in self.config.strides:
            shrink *= stride
            shape = (batch, self.config.width, height // shrink, width // shrink)
            shapes += [shape] * self.config.blocks
        return MemoryState.empty(shapes, like=self._weight)

    def group_size(self, state: MemoryState) -> int:
        """Return the number of frames per latent; a group may consist of several
        latents."""
        return FRAMES_PER_LATENT

    def step(self, state: MemoryState, frames_bcthw: Tensor) -> tuple[MemoryState, Tensor]:
        """Encode frames in fours; an incomplete four at the end of a clip is padded
        with its last frame."""
        frames = filled_up(frames_bcthw.to(self._weight.dtype))
        memories = state.past
        latents: list[Tensor] = []
        for four in frames.split(FRAMES_PER_LATENT, dim=2):
            latent, memories = self.encode(four, memories)
            latents.append(latent)

        assert memories is not None, "a group is not empty"
        return MemoryState(memories, True), torch.cat(latents, dim=2)

    @property
    def _weight(self) -> Tensor:
        first = self.encoder[0]
        assert isinstance(first, nn.Conv2d), "the encoder starts with a convolution"
        return first.weight
