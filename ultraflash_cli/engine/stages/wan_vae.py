"""Streaming encoder and decoder of the Wan 2.1 VAE: causal 3D convolutions, 8x in
space, 4x in time."""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from ultraflash_cli.engine.layers.causal_conv import (
    LAYOUT,
    CausalConv,
    CausalMemory,
    Downsample,
    Residual,
    Upsample,
    empty_memories,
    head_layers,
    middle_layers,
    run_layers,
)
from ultraflash_cli.engine.layers.memory_block import MemoryState
from ultraflash_cli.engine.schedule import FRAMES_PER_LATENT, LATENT_PX, filled_up
from ultraflash_cli.errors import ConfigError

__all__ = ["WanVaeConfig", "WanVaeDecoder", "WanVaeEncoder"]


@dataclass(frozen=True, kw_only=True)
class WanVaeConfig:
    """Sizes of the VAE; the defaults are the published ones (reference/cascade.md
    7)."""

    width: int = 96
    """Number of channels of the level at full resolution."""
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    """Channels of each level in units of ``width``; the sides are halved between
    levels."""
    blocks: int = 2
    """Residual blocks in a level of the encoder; the decoder has one more."""
    latent_channels: int = 16
    """Number of channels of a latent frame."""
    time_downsample: tuple[bool, ...] = (False, True, True)
    """Whether each step between levels also halves the frame rate."""
    mean: tuple[float, ...] = (
        *(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508),
        *(0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
    )
    """Mean of each latent channel, 0 after normalisation."""
    std: tuple[float, ...] = (
        *(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743),
        *(3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160),
    )
    """Standard deviation of each latent channel, 1 after normalisation."""

    def __post_init__(self) -> None:
        if len(self.time_downsample) != len(self.multipliers) - 1:
            raise ConfigError(
                "time_downsample must have one value fewer than multipliers, got "
                f"{len(self.time_downsample)} and {len(self.multipliers)}"
            )

        space, time = 2 ** len(self.time_downsample), 2 ** sum(self.time_downsample)
        if space != LATENT_PX or time != FRAMES_PER_LATENT:
            raise ConfigError(
                f"the VAE must downsample by {LATENT_PX} in space and {FRAMES_PER_LATENT} "
                f"in time, got {space} and {time}"
            )
        if min(self.width, self.blocks, self.latent_channels, *self.multipliers) < 1:
            raise ConfigError("VAE sizes must be positive")
        if (
            len(self.mean) != self.latent_channels
            or len(self.std) != self.latent_channels
            or min(self.std) <= 0
        ):
            raise ConfigError(
                f"mean and std must have one value for each of {self.latent_channels} "
                "channels, and every std must be above 0"
            )


class _Encoder(nn.Module):
    """Encodes pixels to the moments of the latents."""

    def __init__(self, config: WanVaeConfig) -> None:
        super().__init__()
        widths = [config.width * factor for factor in config.multipliers]
        self.conv1 = CausalConv(3, widths[0])
        layers: list[nn.Module] = []
        for level, (width, out_width) in enumerate(pairwise([widths[0], *widths])):
            layers += [
                Residual(width if i == 0 else out_width, out_width)
                for i in range(config.blocks)
            ]
            if level < len(config.time_downsample):
                layers.append(Downsample(out_width, in_time=config.time_downsample[level]))
        self.downsamples = nn.Sequential(*layers)
        self.middle = middle_layers(widths[-1])
        self.head = head_layers(widths[-1], 2 * config.latent_channels)

    def forward(self, x: Tensor, memory: CausalMemory) -> Tensor:
        """Map [B, 3, T, H, W] to [B, 2 C, T, H / 8, W / 8]; four frames make one,
        except for the first one, which stands alone."""
        x = self.conv1.remembering(x, memory)
        for layers in (self.downsamples, self.middle, self.head):
            x = run_layers(layers, x, memory)
        return x


class _Decoder(nn.Module):
    """Decodes latents to pixels."""

    def __init__(self, config: WanVaeConfig) -> None:
        super().__init__()
        widths = [config.width * factor for factor in reversed(config.multipliers)]
        self.conv1 = CausalConv(config.latent_channels, widths[0])
        self.middle = middle_layers(widths[0])
        layers: list[nn.Module] = []
        width = widths[0]
        for level, out_width in enumerate(widths):
            layers += [
                Residual(width if i == 0 else out_width, out_width)
                for i in range(config.blocks + 1)
            ]
            width = out_width
            if level < len(config.time_downsample):
                layers.append(
                    Upsample(out_width, in_time=config.time_downsample[-1 - level])
                )
                width = out_width // 2
        self.upsamples = nn.Sequential(*layers)
        self.head = head_layers(widths[-1], 3)

    def forward(self, x: Tensor, memory: CausalMemory) -> Tensor:
        """Map [B, C, T, H, W] to [B, 3, T, 8 H, 8 W]; a latent yields four frames,
        except for the first one, which yields one."""
        x = self.conv1.remembering(x, memory)
        for layers in (self.middle, self.upsamples, self.head):
            x = run_layers(layers, x, memory)
        return x


class WanVaeEncoder(nn.Module):
    """Frames [B, 3, 1 + 4k, H, W] in [0, 1] to normalised latents [B, C, 1 + k, H / 8,
    W / 8].

    The first frame of a stream is a group by itself; every four later frames form one.
    """

    def __init__(self, config: WanVaeConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = _Encoder(config)
        self.conv1 = nn.Conv3d(2 * config.latent_channels, 2 * config.latent_channels, 1)

    def encode(
        self, frames_bcthw: Tensor, memories: tuple[Tensor, ...] | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Encode the first frame alone (``memories`` is None) or a multiple of 4 later
        ones; differentiable.

        Returns (the mean of the latents, normalised; memories after the last frame).
        """
        assert memories is not None or frames_bcthw.shape[2] == 1, (
            "a stream starts with one frame alone"
        )
        memory = CausalMemory(memories)
        moments = self.conv1(
            self.encoder((2 * frames_bcthw - 1).contiguous(memory_format=LAYOUT), memory)
        )
        mean, std = _statistics(self.config, moments)
        latents = (moments[:, : self.config.latent_channels].float() - mean) / std
        return latents.to(moments.dtype), tuple(memory.after)

    def init_state(self, *, batch: int, height: int, width: int) -> MemoryState:
        """Return the state before the first frame of ``height`` x ``width`` pixels,
        multiples of 8."""
        assert height % LATENT_PX == 0 and width % LATENT_PX == 0, (
            "the caller pads frames to multiples of 8"
        )
        return MemoryState(empty_memories(self.encoder, batch, height, width), False)

    def group_size(self, state: MemoryState) -> int:
        """Return the number of frames in the next latent; a group may consist of
        several latents."""
        return FRAMES_PER_LATENT if state.started else 1

    def step(self, state: MemoryState, frames_bcthw: Tensor) -> tuple[MemoryState, Tensor]:
        """Encode frames latent by latent; an incomplete four at the end of a clip is
        padded with its last frame."""
        frames = frames_bcthw.to(self.conv1.weight.dtype)
        frames = filled_up(frames, before=0 if state.started else FRAMES_PER_LATENT - 1)
        memories = state.past
        latents: list[Tensor] = []
        taken = 0
        while taken < frames.shape[2]:
            size = 1 if memories is None else FRAMES_PER_LATENT
            latent, memories = self.encode(frames[:, :, taken : taken + size], memories)
            latents.append(latent)
            taken += size

        assert memories is not None, "a group is not empty"
        return MemoryState(memories, True), torch.cat(latents, dim=2)


class WanVaeDecoder(nn.Module):
    """Normalised latents [B, C, 1 + k, H, W] to frames [B, 3, 1 + 4k, 8 H, 8 W],
    nominally in [0, 1], unclamped."""

    def __init__(self, config: WanVaeConfig) -> None:
        super().__init__()
        self.config = config
        self.conv2 = nn.Conv3d(config.latent_channels, config.latent_channels, 1)
        self.decoder = _Decoder(config)

    def decode(
        self, latents_bcthw: Tensor, memories: tuple[Tensor, ...] | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Decode the first latent frame alone (``memories`` is None) or any number of
        later ones; differentiable.

        Returns (frames, memories after the last one).
        """
        assert memories is not None or latents_bcthw.shape[2] == 1, (
            "a stream starts with one latent frame alone"
        )
        mean, std = _statistics(self.config, latents_bcthw)
        memory = CausalMemory(memories)
        x = self.conv2((latents_bcthw.float() * std + mean).to(latents_bcthw.dtype))
        return (self.decoder(x, memory) + 1) / 2, tuple(memory.after)

    def init_state(self, *, batch: int, height: int, width: int) -> MemoryState:
        """Return the state before the first latent frame of ``height`` x ``width``."""
        return MemoryState(empty_memories(self.decoder, batch, height, width), False)

    def group_size(self, state: MemoryState) -> int:
        """Return 1: a group is any number of latents."""
        return 1

    def step(self, state: MemoryState, latents_bcthw: Tensor) -> tuple[MemoryState, Tensor]:
        """Return one frame for the first latent of a stream and four for each later
        one."""
        memories = state.past
        frames: list[Tensor] = []
        for latent in latents_bcthw.to(self.conv2.weight.dtype).split(1, dim=2):
            part, memories = self.decode(latent, memories)
            frames.append(part)

        assert memories is not None, "a group is not empty"
        return MemoryState(memories, True), torch.cat(frames, dim=2)


def _statistics(config: WanVaeConfig, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of the latents as [1, C, 1, 1, 1], float32."""
    both = torch.tensor((config.mean, config.std), dtype=torch.float32, device=like.device)
    return both[0].view(1, -1, 1, 1, 1), both[1].view(1, -1, 1, 1, 1)
