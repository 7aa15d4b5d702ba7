"""Causal memory decoder in the TAEHV layout."""

import math
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn

from ultraflash_cli.engine.layers.memory_block import (
    MemoryBlock,
    MemoryInit,
    TimeGrowth,
    activation,
)
from ultraflash_cli.engine.schedule import FRAMES_PER_LATENT
from ultraflash_cli.errors import ConfigError
from ultraflash_kernels.memory_conv import upsampled_conv

__all__ = ["Decoder", "DecoderConfig", "DecoderStage", "DecoderState", "ShuffleUp"]


@dataclass(frozen=True, kw_only=True)
class DecoderStage:
    """One resolution of the decoder: memory blocks, then growth in space and time."""

    width: int
    """Channels of the stage."""
    blocks: int = 3
    """Memory blocks."""
    upsample: bool = True
    """Whether the stage doubles height and width at its end."""
    time_growth: int = 1
    """Frames that the stage makes of one."""


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Sizes of the decoder; the defaults are the published tiny decoder's
    (reference/cascade.md 6.1)."""

    latent_channels: int = 16
    """Channels of a latent frame."""
    stages: tuple[DecoderStage, ...] = (
        DecoderStage(width=256),
        DecoderStage(width=128, time_growth=2),
        DecoderStage(width=64, time_growth=2),
    )
    """The stages, coarse to fine."""
    out_width: int | None = 64
    """Channels in front of the last convolution; None: those of the last stage, with no
    convolution between."""
    soft_clamp: bool = True
    """Whether latents are limited smoothly to +-3 first."""
    signed: bool = False
    """Whether the network's values are in [-1, 1], as in the released ultra decoder;
    frames are in [0, 1] in any case."""
    upsampling: Literal["nearest", "pixel_shuffle"] = "nearest"
    """How a stage doubles its size; the ultra decoder has ``pixel_shuffle``."""
    last_shuffle: int = 1
    """Growth in space after the last convolution, by a pixel shuffle."""
    memory_init: MemoryInit = "zeros"
    """The memory before the first frame."""
    negative_slope: float = 0.0
    """Slope of the activation below zero; 0 is ReLU."""
    linear_trunk: bool = False
    """Whether activations are in memory blocks only, which leaves a linear path from
    latents to pixels."""

    def __post_init__(self) -> None:
        growth = 1
        for stage in self.stages:
            growth *= stage.time_growth
            if stage.width < 1 or stage.blocks < 0:
                raise ConfigError("decoder stage sizes must be positive")
        if growth != FRAMES_PER_LATENT:
            raise ConfigError(
                f"the stages make {growth} frames of a latent, expected {FRAMES_PER_LATENT}"
            )
        size = self.last_shuffle * 2 ** sum(stage.upsample for stage in self.stages)
        if size != 8:
            raise ConfigError(f"stages and last shuffle make 8 of the size, got {size}")

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of the stages and in front of the last convolution."""
        last = self.stages[-1].width if self.out_width is None else self.out_width
        return (*(stage.width for stage in self.stages), last)

    def piece(self, latents: int, height: int, width: int) -> int:
        """Return how many of this many latents of ``height`` x ``width`` are decoded at
        once on a GPU, in even pieces.

        Upsampling refuses tensors with more values than 32 bits can count.
        """
        frames, plane, largest = (
            1,
            height * width,
            3 * FRAMES_PER_LATENT * 64 * height * width,
        )
        for stage, following in zip(self.stages, self.widths[1:], strict=True):
            plane *= 4 if stage.upsample else 1
            frames *= stage.time_growth
            largest = max(largest, max(stage.width, following) * frames * plane)
        pieces = math.ceil(latents / max(1, MOST_VALUES // largest))
        return math.ceil(latents / max(1, pieces))


MOST_VALUES = (1 << 31) - 1
"""Largest number of values in a tensor."""


@dataclass(frozen=True)
class DecoderState:
    """The last input frame of every memory block; ``empty`` has the output's size."""

    memories: tuple[Tensor, ...]
    started: bool
    empty_bcthw: Tensor


class _SoftClamp(nn.Module):
    """Limit latents smoothly to +-3."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / 3) * 3


class ShuffleUp(nn.Module):
    """Double the size by a convolution to four times the channels and a pixel
    shuffle."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.Sequential(
            nn.Conv2d(width, 4 * width, 3, padding=1), nn.PixelShuffle(2)
        )

    @property
    def conv_up(self) -> nn.Conv2d:
        """The convolution, four rows in turn for each channel."""
        return cast("nn.Conv2d", self.up[0])

    def forward(self, x: Tensor) -> Tensor:
        return self.up(x).contiguous(memory_format=torch.channels_last)


class Decoder(nn.Module):
    """Latents [B, C, T, H, W] to RGB [B, 3, 4T, 8H, 8W], nominally in [0, 1], not
    clamped."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.together: int | None = None
        """Latents decoded at once; None: one on a CPU, on a GPU ``DecoderConfig.piece``
        of a push."""
        slope, trunk = (
            config.negative_slope,
            1.0 if config.linear_trunk else config.negative_slope,
        )
        widths = config.widths
        layers: list[nn.Module] = [_SoftClamp()] if config.soft_clamp else []
        layers += [
            nn.Conv2d(config.latent_channels, widths[0], 3, padding=1),
            activation(trunk),
        ]
        for number, (stage, next_width) in enumerate(
            zip(config.stages, widths[1:], strict=True), start=1
        ):
            layers += [
                MemoryBlock(
                    stage.width,
                    init=config.memory_init,
                    negative_slope=slope,
                    linear_trunk=config.linear_trunk,
                )
                for _ in range(stage.blocks)
            ]
            layers += [
                self._growth_in_space(stage),
                TimeGrowth(stage.width, stage.time_growth),
            ]
            if number < len(config.stages) or config.out_width is not None:
                layers.append(nn.Conv2d(stage.width, next_width, 3, padding=1, bias=False))
        layers += [
            activation(trunk),
            nn.Conv2d(widths[-1], 3 * config.last_shuffle**2, 3, padding=1),
        ]
        if config.last_shuffle > 1:
            layers.append(nn.PixelShuffle(config.last_shuffle))
        self.decoder = nn.Sequential(*layers)

    def decode(
        self, latents_bcthw: Tensor, memories: tuple[Tensor, ...] | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Decode a piece of a clip at once, four frames per latent; differentiable.

        ``memories`` is None at the start of a stream.
        """
        batch = latents_bcthw.shape[0]
        x = (
            latents_bcthw.transpose(1, 2)
            .flatten(0, 1)
            .contiguous(memory_format=torch.channels_last)
        )
        after: list[Tensor] = []
        doubled = activated = False
        layers = list(self.decoder)
        for layer, following in zip(layers, [*layers[1:], None], strict=True):
            if activated:
                activated = False
            elif isinstance(layer, MemoryBlock):
                x, memory = layer(
                    x, None if memories is None else memories[len(after)], batch
                )
                after.append(memory)
            elif isinstance(layer, nn.Upsample):
                # What grows in time looks at single pixels: it comes first, at a
                # quarter of the cost.
                doubled = True
            elif doubled and isinstance(layer, nn.Conv2d):
                activated = isinstance(following, nn.ReLU)
                slope = 0.0 if activated else 1.0
                x = upsampled_conv(
                    x, layer.weight.to(x.dtype), layer.bias, negative_slope=slope
                )
                doubled = False
            else:
                x = layer(x)
        if self.config.signed:
            x = (x + 1) / 2
        return x.unflatten(0, (batch, -1)).transpose(1, 2), tuple(after)

    @property
    def _first_weight(self) -> Tensor:
        """The first kernel, for dtype and device."""
        return next(layer for layer in self.decoder if isinstance(layer, nn.Conv2d)).weight

    def init_state(self, *, batch: int, height: int, width: int) -> DecoderState:
        """Return the state before the first latent of ``height`` x ``width``."""
        first = self._first_weight
        shapes: list[tuple[int, int, int]] = []
        grown = 1
        for stage in self.config.stages:
            shapes += [(stage.width, height * grown, width * grown)] * stage.blocks
            grown *= 2 if stage.upsample else 1
        memories = tuple(
            torch.zeros((batch, *shape), dtype=first.dtype, device=first.device).contiguous(
                memory_format=torch.channels_last
            )
            for shape in shapes
        )
        empty = torch.empty(
            (batch, 3, 0, 8 * height, 8 * width), dtype=first.dtype, device=first.device
        )
        return DecoderState(memories, False, empty)

    def step(
        self, state: DecoderState, latents_bcthw: Tensor
    ) -> tuple[DecoderState, Tensor]:
        """Take in T latents; return 4T frames.

        Computed latent by latent on a CPU, to stay in its caches; on a GPU at once, or
        in even pieces.
        """
        first = self._first_weight
        memories = state.memories if state.started else None
        batch, channels, _, height, width = state.empty_bcthw.shape
        latents = latents_bcthw.shape[2]
        out = state.empty_bcthw.new_empty(
            (batch, channels, FRAMES_PER_LATENT * latents, height, width)
        )
        step = self.together
        if step is None:
            step = (
                self.config.piece(latents, *latents_bcthw.shape[3:]) if first.is_cuda else 1
            )
        for start in range(0, latents, max(1, step)):
            piece = latents_bcthw[:, :, start : start + step].to(first.dtype)
            frames, memories = self.decode(piece, memories)
            out[
                :,
                :,
                FRAMES_PER_LATENT * start : FRAMES_PER_LATENT * start + frames.shape[2],
            ] = frames
        return DecoderState(
            memories or state.memories, memories is not None, state.empty_bcthw
        ), out

    def flush(self, state: DecoderState) -> Tensor:
        """Return no frames: nothing is ever queued."""
        return state.empty_bcthw

    def _growth_in_space(self, stage: DecoderStage) -> nn.Module:
        if not stage.upsample:
            return nn.Identity()
        return (
            ShuffleUp(stage.width)
            if self.config.upsampling == "pixel_shuffle"
            else nn.Upsample(scale_factor=2)
        )
