"""Causal memory decoder in the TAEHV layout, with an optional skip path from the low-resolution frames."""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ultraflash_cli.engine.layers.memory_block import MemoryBlock, MemoryInit, TimeGrowth, activation
from ultraflash_cli.engine.layers.resample import lanczos_upscale
from ultraflash_cli.engine.schedule import FRAMES_PER_LATENT
from ultraflash_cli.errors import ConfigError
from ultraflash_kernels.memory_conv import upsampled_conv

__all__ = ["Decoder", "DecoderConfig", "DecoderInputs", "DecoderStage", "DecoderState", "SkipConfig"]


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
class SkipConfig:
    """The path of the low-resolution frames: memory blocks on unshuffled frames, a residual over lanczos."""

    width: int = 48
    """Channels of the path."""
    blocks: int = 4
    """Memory blocks."""
    patch: int = 2
    """Pixel-unshuffle factor of the low-resolution frames."""
    latent_features: int = 16
    """Channels that the latent path hands over."""
    scales: tuple[int, ...] = (2, 3)
    """Scales that have a projection in the weights; the rest of the path is shared."""
    scale: int = 2
    """The scale this decoder works at."""
    residual_gain: float = 0.01
    """Factor on the projection, so that a step of training moves the picture little."""

    def __post_init__(self) -> None:
        if self.scale not in self.scales:
            raise ConfigError(f"the skip path has projections for {self.scales}, not for x{self.scale}")
        if min(self.width, self.blocks, self.patch, self.latent_features) < 1:
            raise ConfigError("skip path sizes must be positive")


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Sizes of the decoder; the defaults are the published tiny decoder (ARCHITECTURE 6.1)."""

    latent_channels: int = 16
    """Channels of a latent frame."""
    stages: tuple[DecoderStage, ...] = (
        DecoderStage(width=256),
        DecoderStage(width=128, time_growth=2),
        DecoderStage(width=64, time_growth=2),
    )
    """The stages, coarse to fine."""
    out_width: int | None = 64
    """Channels in front of the last convolution; None: those of the last stage, with no convolution between."""
    soft_clamp: bool = True
    """Whether latents are limited smoothly to +-3 first."""
    signed: bool = False
    """Whether the network's values lie in [-1, 1], as the released ultra decoder's do; frames are in [0, 1] anyway."""
    upsampling: Literal["nearest", "pixel_shuffle"] = "nearest"
    """How a stage doubles its size; the ultra decoder has ``pixel_shuffle``."""
    last_shuffle: int = 1
    """Growth in space after the last convolution, by a pixel shuffle; only without a skip path."""
    memory_init: MemoryInit = "zeros"
    """What the first frame finds in memory."""
    negative_slope: float = 0.0
    """Slope of the activation below zero; 0 is ReLU."""
    skip: SkipConfig | None = None
    """The low-resolution path; None where the latents are all there is."""

    def __post_init__(self) -> None:
        growth = 1
        for stage in self.stages:
            growth *= stage.time_growth
            if stage.width < 1 or stage.blocks < 0:
                raise ConfigError("decoder stage sizes must be positive")
        if growth != FRAMES_PER_LATENT:
            raise ConfigError(f"the stages make {growth} frames of a latent, expected {FRAMES_PER_LATENT}")
        size = self.last_shuffle * 2 ** sum(stage.upsample for stage in self.stages)
        if self.skip is None and size != 8:
            raise ConfigError(f"without a skip path stages and last shuffle make 8 of the size, got {size}")
        if self.skip is not None and (self.last_shuffle != 1 or self.signed):
            raise ConfigError("a decoder with a skip path has no shuffle and no signed values behind its latent path")

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of the stages and in front of the last convolution."""
        last = self.stages[-1].width if self.out_width is None else self.out_width
        return (*(stage.width for stage in self.stages), last)

    def piece(self, latents: int, height: int, width: int) -> int:
        """Return how many of so many latents of ``height`` x ``width`` are decoded at once on a GPU, in even pieces.

        No tensor may have more values than 32 bits can count: upsampling refuses more.
        """
        frames, plane, largest = 1, height * width, 3 * FRAMES_PER_LATENT * 64 * height * width
        for stage, following in zip(self.stages, self.widths[1:], strict=True):
            plane *= 4 if stage.upsample else 1
            frames *= stage.time_growth
            largest = max(largest, max(stage.width, following) * frames * plane)
        pieces = math.ceil(latents / max(1, MOST_VALUES // largest))
        return math.ceil(latents / max(1, pieces))


MOST_VALUES = (1 << 31) - 1
"""Values that one tensor may have."""


class DecoderInputs(NamedTuple):
    """Latents and, for a decoder with a skip path, the four low-resolution frames of each."""

    latents_bcthw: Tensor
    frames_bcthw: Tensor | None = None


@dataclass(frozen=True)
class DecoderState:
    """The last input frame of every memory block, latent path first; ``empty`` tells the output's size."""

    memories: tuple[Tensor, ...]
    started: bool
    empty_bcthw: Tensor


class _SoftClamp(nn.Module):
    """Limit latents smoothly to +-3."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / 3) * 3


class _ShuffleUp(nn.Module):
    """Double the size by a convolution to four times the channels and a pixel shuffle."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.Sequential(nn.Conv2d(width, 4 * width, 3, padding=1), nn.PixelShuffle(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.up(x).contiguous(memory_format=torch.channels_last)


class _Skip(nn.Module):
    """Low-resolution frames and latent features to a residual at the high resolution."""

    def __init__(self, config: SkipConfig, *, init: MemoryInit, negative_slope: float) -> None:
        super().__init__()
        self.config = config
        inputs = 3 * config.patch**2 + config.latent_features
        self.embed = nn.Conv2d(inputs, config.width, 3, padding=1)
        self.blocks = nn.ModuleList(
            [MemoryBlock(config.width, init=init, negative_slope=negative_slope) for _ in range(config.blocks)]
        )
        self.project = nn.ModuleDict(
            {str(s): nn.Conv2d(config.width, 3 * (s * config.patch) ** 2, 3, padding=1) for s in config.scales}
        )


class Decoder(nn.Module):
    """Latents [B, C, T, H, W] (and low-resolution frames) to RGB [B, 3, 4T, H', W'], nominally in [0, 1].

    Without a skip path H' = 8H; with one H' = scale * (height of the frames). Values are not clamped.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.together: int | None = None
        """Latents decoded at once; None: one on a CPU, on a GPU ``DecoderConfig.piece`` of a push."""
        slope = config.negative_slope
        widths = config.widths
        layers: list[nn.Module] = [_SoftClamp()] if config.soft_clamp else []
        layers += [nn.Conv2d(config.latent_channels, widths[0], 3, padding=1), activation(slope)]
        for number, (stage, next_width) in enumerate(zip(config.stages, widths[1:], strict=True), start=1):
            layers += [
                MemoryBlock(stage.width, init=config.memory_init, negative_slope=slope) for _ in range(stage.blocks)
            ]
            layers += [self._growth_in_space(stage), TimeGrowth(stage.width, stage.time_growth)]
            if number < len(config.stages) or config.out_width is not None:
                layers.append(nn.Conv2d(stage.width, next_width, 3, padding=1, bias=False))
        out_channels = config.skip.latent_features if config.skip else 3 * config.last_shuffle**2
        layers += [activation(slope), nn.Conv2d(widths[-1], out_channels, 3, padding=1)]
        if config.last_shuffle > 1:
            layers.append(nn.PixelShuffle(config.last_shuffle))
        self.decoder = nn.Sequential(*layers)
        self.skip = _Skip(config.skip, init=config.memory_init, negative_slope=slope) if config.skip else None

    def decode(
        self,
        latents_bcthw: Tensor,
        frames_bcthw: Tensor | None,
        memories: tuple[Tensor, ...] | None,
        *,
        scale: int | None = None,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Decode a piece of a clip at once; differentiable. ``memories`` is None at the start of a stream.

        The result is float32 where a skip path adds to the enlarged frames, else the network's dtype. ``scale``
        stands in for the config's (training works at several in turn).
        """
        split = self._latent_memories
        before = (None, None) if memories is None else (memories[:split], memories[split:])
        x, after = self._latent_path(latents_bcthw, before[0])
        if self.skip is None:
            return x, after
        assert frames_bcthw is not None, "a decoder with a skip path needs the low-resolution frames"
        full, after_skip = self._skip_path(self.skip, x, frames_bcthw, before[1], scale)
        return full, after + after_skip

    @property
    def _first_weight(self) -> Tensor:
        """The kernel that latents meet first; it tells dtype and device."""
        return next(layer for layer in self.decoder if isinstance(layer, nn.Conv2d)).weight

    @property
    def _latent_memories(self) -> int:
        """How many of the memories belong to the latent path."""
        return sum(stage.blocks for stage in self.config.stages)

    def _latent_path(
        self, latents_bcthw: Tensor, memories: tuple[Tensor, ...] | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return pixels, or the features for the skip path, four frames a latent, and the memories."""
        batch = latents_bcthw.shape[0]
        x = latents_bcthw.transpose(1, 2).flatten(0, 1).contiguous(memory_format=torch.channels_last)
        after: list[Tensor] = []
        doubled = False
        for layer in self.decoder:
            if isinstance(layer, MemoryBlock):
                x, memory = layer(x, None if memories is None else memories[len(after)], batch)
                after.append(memory)
            elif isinstance(layer, nn.Upsample):
                doubled = True  # what grows in time looks at single pixels and comes first, at a quarter of the cost
            elif doubled and isinstance(layer, nn.Conv2d):
                x, doubled = upsampled_conv(x, layer.weight.to(x.dtype), layer.bias), False
            else:
                x = layer(x)
        if self.config.signed:
            x = (x + 1) / 2
        return x.unflatten(0, (batch, -1)).transpose(1, 2), tuple(after)

    def _skip_path(
        self,
        skip: _Skip,
        features_bcthw: Tensor,
        frames_bcthw: Tensor,
        memories: tuple[Tensor, ...] | None,
        scale: int | None,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the enlarged frames plus their residual, float32, and the memories."""
        batch, config = frames_bcthw.shape[0], skip.config
        scale = scale or config.scale
        frames = frames_bcthw.transpose(1, 2).flatten(0, 1)
        features = features_bcthw.transpose(1, 2).flatten(0, 1)
        small = F.pixel_unshuffle(frames.to(features.dtype), config.patch)
        near = F.interpolate(features, size=small.shape[2:], mode="bilinear", align_corners=False)
        embedded = skip.embed(torch.cat([small, near], dim=1).contiguous(memory_format=torch.channels_last))
        x, after = embedded, list[Tensor]()
        for i, block in enumerate(skip.blocks):
            x, memory = block(x, None if memories is None else memories[i], batch)
            after.append(memory)
        residual = skip.project[str(scale)](x + embedded) * config.residual_gain
        residual = F.pixel_shuffle(residual, config.patch * scale)
        full = lanczos_upscale(frames.float(), scale) + residual
        return full.unflatten(0, (batch, -1)).transpose(1, 2), tuple(after)

    def init_state(self, *, batch: int, height: int, width: int) -> DecoderState:
        """Return the state before the first latent of ``height`` x ``width``."""
        first = self._first_weight
        skip = self.config.skip
        shapes: list[tuple[int, int, int]] = []
        grown = 1
        for stage in self.config.stages:
            shapes += [(stage.width, height * grown, width * grown)] * stage.blocks
            grown *= 2 if stage.upsample else 1
        if skip:
            step = skip.patch * skip.scale
            shapes += [(skip.width, height * 8 // step, width * 8 // step)] * skip.blocks
        memories = tuple(
            torch.zeros((batch, *shape), dtype=first.dtype, device=first.device).contiguous(
                memory_format=torch.channels_last
            )
            for shape in shapes
        )
        dtype = torch.float32 if skip else first.dtype
        empty = torch.empty((batch, 3, 0, 8 * height, 8 * width), dtype=dtype, device=first.device)
        return DecoderState(memories, False, empty)

    def step(self, state: DecoderState, inputs: DecoderInputs) -> tuple[DecoderState, Tensor]:
        """Take in T latents (and 4T frames); return 4T frames.

        On a CPU computed latent by latent, the skip path frame by frame, which stays in its caches; on a GPU a push
        at once, or in even pieces.
        """
        first = self._first_weight
        split = self._latent_memories
        memories = state.memories if state.started else None
        batch, channels, _, height, width = state.empty_bcthw.shape
        latents = inputs.latents_bcthw.shape[2]
        out = state.empty_bcthw.new_empty((batch, channels, FRAMES_PER_LATENT * latents, height, width))
        step = self.together
        if step is None:
            step = self.config.piece(latents, *inputs.latents_bcthw.shape[3:]) if first.is_cuda else 1
        for start in range(0, latents, max(1, step)):
            piece = inputs.latents_bcthw[:, :, start : start + step].to(first.dtype)
            near, after = self._latent_path(piece, None if memories is None else memories[:split])
            done = slice(FRAMES_PER_LATENT * start, FRAMES_PER_LATENT * start + near.shape[2])
            if self.skip is None:
                out[:, :, done] = near
            else:
                assert inputs.frames_bcthw is not None, "a decoder with a skip path needs the low-resolution frames"
                after_skip = None if memories is None else memories[split:]
                frames = near.shape[2] if step > 1 else 1
                for at in range(0, near.shape[2], frames):
                    features = near[:, :, at : at + frames]
                    span = slice(done.start + at, done.start + at + features.shape[2])
                    low = inputs.frames_bcthw[:, :, span]
                    out[:, :, span], after_skip = self._skip_path(self.skip, features, low, after_skip, None)
                assert after_skip is not None, "a latent's frames leave memories"
                after = after + after_skip
            memories = after
        return DecoderState(memories or state.memories, memories is not None, state.empty_bcthw), out

    def flush(self, state: DecoderState) -> Tensor:
        """Return no frames: nothing is ever queued."""
        return state.empty_bcthw

    def _growth_in_space(self, stage: DecoderStage) -> nn.Module:
        if not stage.upsample:
            return nn.Identity()
        return _ShuffleUp(stage.width) if self.config.upsampling == "pixel_shuffle" else nn.Upsample(scale_factor=2)
