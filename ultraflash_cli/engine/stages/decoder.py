"""Causal memory decoder in the TAEHV layout."""

import math
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from ultraflash_cli.engine.layers.low_frames import LowFrames
from ultraflash_cli.engine.layers.memory_block import (
    Joined,
    MemoryBlock,
    MemoryInit,
    MemorySequential,
    MemoryState,
    TimeGrowth,
    activation,
    in_pieces,
    to_clip,
    to_frames,
)
from ultraflash_cli.engine.layers.upsampled_conv import UpsampledConv
from ultraflash_cli.engine.schedule import FRAMES_PER_LATENT
from ultraflash_cli.errors import ConfigError

__all__ = ["Decoder", "DecoderConfig", "DecoderInputs", "DecoderStage", "ShuffleUp"]


@dataclass(frozen=True, kw_only=True)
class DecoderStage:
    """One resolution of the decoder: memory blocks, then growth in space and time."""

    width: int
    """Number of channels of the stage."""
    blocks: int = 3
    """Memory blocks."""
    upsample: bool = True
    """Whether the stage doubles height and width at its end."""
    time_growth: int = 1
    """Number of frames that the stage produces from one."""


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Sizes of the decoder; the defaults are the published tiny decoder's
    (reference/cascade.md 6.1)."""

    latent_channels: int = 16
    """Number of channels of a latent frame."""
    stages: tuple[DecoderStage, ...] = (
        DecoderStage(width=256),
        DecoderStage(width=128, time_growth=2),
        DecoderStage(width=64, time_growth=2),
    )
    """The stages, coarse to fine."""
    out_width: int | None = 64
    """Channels before the last convolution; None for those of the last stage, without a
    convolution between."""
    soft_clamp: bool = True
    """Whether latents are limited smoothly to +-3 first."""
    signed: bool = False
    """Whether the network's values are in [-1, 1], as in the released ultra decoder;
    frames are in [0, 1] in any case."""
    upsampling: Literal["nearest", "pixel_shuffle"] = "nearest"
    """Method by which a stage doubles its size; the ultra decoder uses
    ``pixel_shuffle``."""
    last_shuffle: int = 1
    """Growth in space after the last convolution, by a pixel shuffle."""
    memory_init: MemoryInit = "zeros"
    """The memory before the first frame."""
    negative_slope: float = 0.0
    """Slope of the activation below zero; 0 is ReLU."""
    linear_trunk: bool = False
    """Whether only memory blocks have activations, which leaves a linear path from
    latents to pixels."""
    reads_low_frames: bool = False
    """Whether low-resolution frames are a second, optional input."""

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
            raise ConfigError(f"stages and last shuffle must enlarge by 8, got {size}")

    @property
    def last_cell(self) -> tuple[int, int]:
        """Output pixels per side of a cell in the last stage, and frames produced from
        one there."""
        before = self.stages[:-1]
        side = 8 // 2 ** sum(stage.upsample for stage in before)
        return side, FRAMES_PER_LATENT // math.prod(stage.time_growth for stage in before)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of the stages and before the last convolution."""
        last = self.stages[-1].width if self.out_width is None else self.out_width
        return (*(stage.width for stage in self.stages), last)

    @property
    def reads_phases(self) -> bool:
        """Whether the last convolution reads what precedes it before it is put
        together to pictures of twice the size, see ``UpsampledConv``."""
        doubles = self.stages[-1].upsample and self.upsampling == "nearest"
        joins = self.negative_slope == 0 or self.linear_trunk
        return doubles and joins and self.out_width is not None

    def piece(self, latents: int, height: int, width: int) -> int:
        """Return how many of ``latents`` latents of ``height`` x ``width`` are decoded
        at once on a GPU, in even pieces. Libraries do not support all tensors with more
        values than 32 bits can index.
        """
        frames, largest = 1, 3 * FRAMES_PER_LATENT * 64 * height * width
        for stage, following in zip(self.stages, self.widths[1:], strict=True):
            wide = max(stage.width, following)
            if stage.upsample and self.upsampling == "nearest":
                wide = max(stage.width // 4, following)
                phases = 4 * wide * frames * (height + 1) * (width + 1)
                largest = max(largest, phases)
            side = 2 if stage.upsample else 1
            frames, height, width = frames * stage.time_growth, side * height, side * width
            if not (self.reads_phases and stage is self.stages[-1]):
                largest = max(largest, wide * frames * height * width)
        pieces = math.ceil(latents / max(1, MOST_VALUES // largest))
        return math.ceil(latents / max(1, pieces))


MOST_VALUES = (1 << 31) - 1
"""Largest number of values in a tensor."""


class DecoderInputs(NamedTuple):
    """Latents, and the corresponding low-resolution frames."""

    latents_bcthw: Tensor
    """``[B, C, T, H, W]``."""
    low_bcthw: Tensor
    """``[B, 12, T, h, w]``, see ``by_latent``."""


class _SoftClamp(nn.Module):
    """Limit latents smoothly to +-3."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / 3) * 3


class ShuffleUp(nn.Module):
    """Doubles the size by a convolution to four times the channels and a pixel
    shuffle."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.Sequential(
            nn.Conv2d(width, 4 * width, 3, padding=1), nn.PixelShuffle(2)
        )

    @property
    def conv_up(self) -> nn.Conv2d:
        """The convolution; four consecutive rows belong to each channel."""
        return cast("nn.Conv2d", self.up[0])

    def forward(self, x: Tensor) -> Tensor:
        return self.up(x).contiguous(memory_format=torch.channels_last)


class Decoder(nn.Module):
    """Latents [B, C, T, H, W] to RGB [B, 3, 4T, 8H, 8W], nominally in [0, 1], not
    clamped.

    ``together`` latents are decoded at once; None is one on a CPU, and on a GPU
    ``DecoderConfig.piece`` of a group.
    """

    def __init__(self, config: DecoderConfig, *, together: int | None = None) -> None:
        super().__init__()
        self.config = config
        self._together = together
        trunk = 1.0 if config.linear_trunk else config.negative_slope
        widths = config.widths
        nearest = config.upsampling == "nearest"

        layers: list[nn.Module] = [_SoftClamp()] if config.soft_clamp else []
        layers.append(nn.Conv2d(config.latent_channels, widths[0], 3, padding=1))
        layers.append(activation(trunk))

        # Nearest-neighbour doubling is fused into the next convolution, including its
        # ReLU. Time growth, a 1x1 convolution, comes before it, where it costs a
        # quarter.
        doubled = False
        last = activation(trunk)
        for number, stage in enumerate(config.stages, start=1):
            self._last_stage = len(layers)
            layers += [self._memory_block(stage.width) for _ in range(stage.blocks)]
            shuffles = stage.upsample and not nearest
            layers.append(ShuffleUp(stage.width) if shuffles else nn.Identity())
            layers.append(TimeGrowth(stage.width, stage.time_growth))
            doubled = doubled or (stage.upsample and nearest)
            if number == len(config.stages) and config.out_width is None:
                break
            if doubled:
                rectifies = number == len(config.stages) and isinstance(last, nn.ReLU)
                last = nn.Identity() if rectifies else last
                conv = UpsampledConv(
                    stage.width, widths[number], bias=False, rectifies=rectifies
                )
            else:
                conv = nn.Conv2d(stage.width, widths[number], 3, padding=1, bias=False)
            layers.append(conv)
            doubled = False

        layers.append(last)
        values = 3 * config.last_shuffle**2
        layers.append(
            UpsampledConv(widths[-1], values, bias=True, rectifies=False)
            if doubled
            else nn.Conv2d(widths[-1], values, 3, padding=1)
        )
        if config.last_shuffle > 1:
            layers.append(nn.PixelShuffle(config.last_shuffle))
        self.decoder = MemorySequential(*layers)
        if config.reads_low_frames:
            cell_px, cell_frames = config.last_cell
            width = config.stages[-1].width
            self.condition = LowFrames(width, cell_px=cell_px, cell_frames=cell_frames)

    def _memory_block(self, width: int) -> MemoryBlock:
        config = self.config
        return MemoryBlock(
            width,
            init=config.memory_init,
            negative_slope=config.negative_slope,
            linear_trunk=config.linear_trunk,
        )

    def decode(
        self,
        latents_bcthw: Tensor,
        memories: tuple[Tensor, ...] | None,
        low_bcthw: Tensor | None = None,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Decode a piece of a clip at once, four frames per latent; differentiable.

        ``memories`` is None at the start of a stream; ``low_bcthw`` are the
        low-resolution frames as in ``DecoderInputs``, for a decoder that reads them.
        """
        batch, _, _, height, _ = latents_bcthw.shape
        features = pixels = None
        if low_bcthw is not None:
            features, pixels = self.condition(low_bcthw, 8 * height)
        x, after = self.decoder.stream(
            to_frames(latents_bcthw),
            memories,
            batch,
            added=features,
            at=self._last_stage,
            joined=self._joined(),
        )
        if self.config.signed:
            x = (x + 1) / 2
        return to_clip(x if pixels is None else x + pixels, batch), after

    def _joined(self) -> dict[int, Joined]:
        """Return the convolutions over doubled pictures, with the time growth before
        them and the last convolution."""
        layers = list(self.decoder)
        found: dict[int, Joined] = {}
        for number, layer in enumerate(layers):
            if not isinstance(layer, UpsampledConv):
                continue
            before, behind = layers[number - 1], layers[number + 1 : number + 3]
            growth = before if isinstance(before, TimeGrowth) else None
            head = (
                behind[-1] if len(behind) == 2 and type(behind[0]) is nn.Identity else None
            )
            head = head if type(head) is nn.Conv2d else None
            run = partial(layer, growth=growth, head=head)
            first = number if growth is None else number - 1
            found[first] = Joined(number + (1 if head is None else 3), run)
        return found

    def init_state(self, *, batch: int, height: int, width: int) -> MemoryState:
        """Return the state before the first latent of ``height`` x ``width``."""
        shapes: list[tuple[int, ...]] = []
        grown = 1
        for stage in self.config.stages:
            shape = (batch, stage.width, height * grown, width * grown)
            shapes += [shape] * stage.blocks
            grown *= 2 if stage.upsample else 1
        return MemoryState.empty(shapes, like=self._weight)

    def group_size(self, state: MemoryState) -> int:
        """Return 1: a group is any number of latents."""
        return 1

    def step(
        self, state: MemoryState, inputs: Tensor | DecoderInputs
    ) -> tuple[MemoryState, Tensor]:
        """Return the 4T frames of T latents [B, C, T, H, W], with or without
        low-resolution frames.

        A CPU decodes latent by latent, to stay within its caches; a GPU decodes a group
        at once, or in even pieces.
        """
        weight = self._weight
        latents_bcthw, low_bcthw = (
            inputs if isinstance(inputs, DecoderInputs) else (inputs, None)
        )
        _, _, latents, height, width = latents_bcthw.shape
        size = self._together
        if size is None:
            size = self.config.piece(latents, height, width) if weight.is_cuda else 1
        clip = latents_bcthw.to(weight.dtype)
        return in_pieces(self.decode, state, clip, size=size, beside_bcthw=low_bcthw)

    @property
    def _weight(self) -> Tensor:
        """The first kernel, whose dtype and device are those of the network."""
        return next(layer for layer in self.decoder if isinstance(layer, nn.Conv2d)).weight
