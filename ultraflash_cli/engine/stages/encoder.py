"""Streaming pixel encoder in the TAEHV layout: 8x in space, 4x in time, causal
memory."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ultraflash_cli.engine.layers.memory_block import (
    MemoryBlock,
    MemoryInit,
    TimePool,
    activation,
)
from ultraflash_cli.engine.schedule import FRAMES_PER_LATENT
from ultraflash_cli.errors import ConfigError

__all__ = ["Encoder", "EncoderConfig", "EncoderState"]


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """Sizes of the encoder; the defaults are the published ones
    (reference/cascade.md 6.4)."""

    latent_channels: int = 16
    """Channels of a latent frame."""
    width: int = 64
    """Channels inside."""
    blocks: int = 3
    """Memory blocks in each of the three stages."""
    patch: int = 1
    """Pixel-unshuffle factor in front of the first convolution."""
    strides: tuple[int, int, int] = (2, 2, 2)
    """Spatial stride of each stage; with ``patch`` their product is 8."""
    time_pools: tuple[int, int, int] = (2, 2, 1)
    """Frames that each stage joins; their product is 4."""
    memory_init: MemoryInit = "zeros"
    """The memory before the first frame."""
    negative_slope: float = 0.0
    """Slope of the activation below zero; 0 is ReLU."""
    linear_trunk: bool = False
    """Whether activations are in memory blocks only, which leaves a linear path from
    pixels to latents."""

    def __post_init__(self) -> None:
        space, time = self.patch, 1
        for stride, pool in zip(self.strides, self.time_pools, strict=True):
            space, time = space * stride, time * pool
        if space != 8 or time != FRAMES_PER_LATENT:
            raise ConfigError(
                f"the encoder shrinks by 8 in space and 4 in time, got {space} and {time}"
            )
        if min(self.latent_channels, self.width, self.blocks) < 1:
            raise ConfigError("encoder sizes must be positive")


@dataclass(frozen=True)
class EncoderState:
    """The last input of every memory block, and up to three frames that wait for their
    latent."""

    memories: tuple[Tensor, ...]
    started: bool
    queue_bcthw: Tensor
    queued: int


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
        self.encoder = nn.Sequential(*layers)

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
        after: list[Tensor] = []
        for layer in self.encoder:
            if isinstance(layer, MemoryBlock):
                x, memory = layer(
                    x, None if memories is None else memories[len(after)], batch
                )
                after.append(memory)
            else:
                x = layer(x)
        return x.unflatten(0, (batch, -1)).transpose(1, 2), tuple(after)

    def init_state(self, *, batch: int, height: int, width: int) -> EncoderState:
        """Return the state before the first frame of ``height`` x ``width`` pixels,
        multiples of 8."""
        assert height % 8 == 0 and width % 8 == 0, (
            "the caller pads frames to multiples of 8"
        )
        weight = self.encoder[0].weight
        assert isinstance(weight, Tensor)
        memories: list[Tensor] = []
        shrink = self.config.patch
        for stride in self.config.strides:
            shrink *= stride
            shape = (batch, self.config.width, height // shrink, width // shrink)
            for _ in range(self.config.blocks):
                empty = torch.zeros(shape, dtype=weight.dtype, device=weight.device)
                memories.append(empty.contiguous(memory_format=torch.channels_last))
        queue = torch.zeros(
            (batch, 3, FRAMES_PER_LATENT - 1, height, width),
            dtype=weight.dtype,
            device=weight.device,
        )
        return EncoderState(tuple(memories), False, queue, 0)

    def step(self, state: EncoderState, inputs: Tensor) -> tuple[EncoderState, Tensor]:
        """Take in frames [B, 3, T, H, W]; return the latents whose four frames are
        complete."""
        frames = torch.cat(
            [state.queue_bcthw[:, :, : state.queued], inputs.to(state.queue_bcthw.dtype)],
            dim=2,
        )
        memories = state.memories if state.started else None
        latents: list[Tensor] = []
        whole = frames.shape[2] // FRAMES_PER_LATENT * FRAMES_PER_LATENT
        for start in range(0, whole, FRAMES_PER_LATENT):
            latent, memories = self.encode(
                frames[:, :, start : start + FRAMES_PER_LATENT], memories
            )
            latents.append(latent)
        rest = frames[:, :, whole:]
        queue = torch.zeros_like(state.queue_bcthw)
        queue[:, :, : rest.shape[2]] = rest
        out = torch.cat(latents, dim=2) if latents else self._no_latents(state)
        started = memories is not None
        return EncoderState(memories or state.memories, started, queue, rest.shape[2]), out

    def flush(self, state: EncoderState) -> Tensor:
        """Encode a tail of one to three frames, its last frame repeated; empty where
        none waits."""
        if state.queued == 0:
            return self._no_latents(state)
        last = state.queue_bcthw[:, :, state.queued - 1 : state.queued]
        tail = last.expand(-1, -1, FRAMES_PER_LATENT - state.queued, -1, -1)
        return self.step(state, tail)[1]

    def _no_latents(self, state: EncoderState) -> Tensor:
        batch, _, _, height, width = state.queue_bcthw.shape
        return state.queue_bcthw.new_empty(
            (batch, self.config.latent_channels, 0, height // 8, width // 8)
        )
