"""Streaming encoder and decoder of the Wan 2.1 VAE: causal 3D convolutions, 8x in
space, 4x in time."""

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ultraflash_cli.engine.layers.memory_block import MemoryState
from ultraflash_cli.engine.schedule import FRAMES_PER_LATENT, filled_up
from ultraflash_cli.errors import ConfigError

__all__ = ["WanVaeConfig", "WanVaeDecoder", "WanVaeEncoder"]

SHRINK = 8
"""Pixels per side of one latent."""
LAYOUT = torch.channels_last_3d
"""The memory format of all layers and memories, in which a clip and its frames are
views of each other."""


@dataclass(frozen=True, kw_only=True)
class WanVaeConfig:
    """Sizes of the VAE; the published ones by default (reference/cascade.md 7)."""

    width: int = 96
    """Channels of the level at full resolution."""
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    """Channels of each level in units of ``width``; between levels the sides halve."""
    blocks: int = 2
    """Residual blocks in a level of the encoder; the decoder has one more."""
    latent_channels: int = 16
    """Channels of a latent frame."""
    time_downsample: tuple[bool, ...] = (False, True, True)
    """Which of the steps between levels also halve the frame rate."""
    mean: tuple[float, ...] = (
        *(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508),
        *(0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
    )
    """Mean of each latent channel; normalised latents have mean 0."""
    std: tuple[float, ...] = (
        *(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743),
        *(3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160),
    )
    """Standard deviation of each latent channel; normalised latents have 1."""

    def __post_init__(self) -> None:
        if len(self.time_downsample) != len(self.multipliers) - 1:
            raise ConfigError(
                f"{len(self.multipliers)} levels have {len(self.multipliers) - 1} steps "
                "between them, "
                f"time_downsample names {len(self.time_downsample)}"
            )
        space, time = 2 ** len(self.time_downsample), 2 ** sum(self.time_downsample)
        if space != SHRINK or time != FRAMES_PER_LATENT:
            raise ConfigError(
                f"the VAE shrinks by {SHRINK} in space and {FRAMES_PER_LATENT} in time, "
                f"got {space} and {time}"
            )
        if min(self.width, self.blocks, self.latent_channels, *self.multipliers) < 1:
            raise ConfigError("VAE sizes must be positive")
        if (
            len(self.mean) != self.latent_channels
            or len(self.std) != self.latent_channels
            or min(self.std) <= 0
        ):
            raise ConfigError(
                f"mean and std (above 0) hold one value for each of {self.latent_channels} "
                "channels"
            )


class _Memory:
    """The past frames of every causal layer, read and collected in the order in which
    the layers run."""

    def __init__(self, before: tuple[Tensor, ...] | None) -> None:
        self.first = before is None
        """Whether this is the first piece of a stream."""
        self.after: list[Tensor] = []
        """What the next piece needs."""
        self._before = before

    def join(self, x_bcthw: Tensor, frames: int) -> Tensor:
        """Return ``x`` after its last ``frames`` past frames, zeros at the start of a
        stream, and remember again."""
        joined = torch.cat([self._past(x_bcthw, frames), x_bcthw], dim=2).contiguous(
            memory_format=LAYOUT
        )
        self.after.append(joined[:, :, -frames:].clone(memory_format=LAYOUT))
        return joined

    def pass_by(self, x_bcthw: Tensor, frames: int) -> None:
        """Remember nothing of ``x``."""
        self.after.append(self._past(x_bcthw, frames))

    def _past(self, x_bcthw: Tensor, frames: int) -> Tensor:
        if self._before is not None:
            return self._before[len(self.after)]
        batch, channels, _, height, width = x_bcthw.shape
        return x_bcthw.new_zeros((batch, channels, frames, height, width)).contiguous(
            memory_format=LAYOUT
        )


class _CausalConv(nn.Conv3d):
    """A convolution that sees the current frame and the ``history`` frames before its
    input."""

    def __init__(
        self,
        width: int,
        out_width: int,
        kernel: tuple[int, int, int] = (3, 3, 3),
        *,
        time_stride: int = 1,
    ) -> None:
        space = (kernel[1] // 2, kernel[2] // 2)
        super().__init__(
            width, out_width, kernel, stride=(time_stride, 1, 1), padding=(0, *space)
        )
        self.history = kernel[0] - time_stride

    def remembering(self, x_bcthw: Tensor, memory: _Memory) -> Tensor:
        """Map [B, width, T, H, W] to [B, out_width, T / time_stride, H, W]."""
        return self(memory.join(x_bcthw, self.history))


class _ChannelNorm(nn.Module):
    """Scale each position to the length sqrt(C) over its channels, then each channel by
    a weight, in float32."""

    def __init__(self, width: int, *, dims: int = 3) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width, *[1] * dims))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x [B, C, ...]``."""
        length = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=torch.float32)
        return (x * (x.shape[1] ** 0.5 / length.clamp_min(1e-12)) * self.gamma).to(x.dtype)


class _Residual(nn.Module):
    """Norm, SiLU and causal convolution, twice, plus a shortcut."""

    def __init__(self, width: int, out_width: int) -> None:
        super().__init__()
        # The places 4 and 5 of the published list: activation and the dropout of its
        # training.
        self.residual = nn.Sequential(
            _ChannelNorm(width),
            nn.SiLU(inplace=True),
            _CausalConv(width, out_width),
            _ChannelNorm(out_width),
            nn.SiLU(inplace=True),
            nn.Identity(),
            _CausalConv(out_width, out_width),
        )
        self.shortcut = (
            nn.Identity() if width == out_width else nn.Conv3d(width, out_width, 1)
        )

    def forward(self, x: Tensor, memory: _Memory) -> Tensor:
        """Map [B, width, T, H, W] to [B, out_width, T, H, W]."""
        return _run(self.residual, x, memory) + self.shortcut(x)


class _SpatialAttention(nn.Module):
    """Single-head attention among the positions of a frame, plus a residual."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = _ChannelNorm(width, dims=2)
        self.to_qkv = nn.Conv2d(width, 3 * width, 1)
        self.proj = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, T, H, W] to the same shape."""
        frames = _as_pictures(x)
        qkv = (
            self.to_qkv(self.norm(frames)).flatten(2).transpose(1, 2).unsqueeze(1)
        )  # [N, 1, H * W, 3 C]
        mixed = F.scaled_dot_product_attention(*qkv.chunk(3, dim=-1))
        mixed = mixed.squeeze(1).transpose(1, 2).unflatten(2, tuple(frames.shape[-2:]))
        return x + _as_clip(self.proj(mixed), x.shape[0])


class _Downsample(nn.Module):
    """Half the sides and, with ``in_time``, half the frame rate; the first piece of a
    stream keeps its one frame."""

    def __init__(self, width: int, *, in_time: bool) -> None:
        super().__init__()
        self.resample = nn.Sequential(
            nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(width, width, 3, stride=2)
        )
        self.time_conv = (
            _CausalConv(width, width, (3, 1, 1), time_stride=2) if in_time else None
        )

    def forward(self, x: Tensor, memory: _Memory) -> Tensor:
        """Map [B, C, T, H, W] to [B, C, T or T / 2, H / 2, W / 2]."""
        x = _as_clip(self.resample(_as_pictures(x)), x.shape[0])
        if self.time_conv is None:
            return x
        joined = memory.join(x, self.time_conv.history)
        return x if memory.first else self.time_conv(joined)


class _Upsample(nn.Module):
    """Twice the sides at half the channels and, with ``in_time``, twice the frame rate
    after the first frame.

    The first latent frame of a stream passes without time growth and is not remembered,
    as published: the second one has zeros for its past.
    """

    def __init__(self, width: int, *, in_time: bool) -> None:
        super().__init__()
        self.time_conv = _CausalConv(width, 2 * width, (3, 1, 1)) if in_time else None
        self.resample = nn.Sequential(
            nn.Upsample(scale_factor=2), nn.Conv2d(width, width // 2, 3, padding=1)
        )

    def forward(self, x: Tensor, memory: _Memory) -> Tensor:
        """Map [B, C, T, H, W] to [B, C / 2, T or 2 T, 2 H, 2 W]."""
        if self.time_conv is not None and memory.first:
            memory.pass_by(x, self.time_conv.history)
        elif self.time_conv is not None:
            grown = (
                self.time_conv.remembering(x, memory).movedim(1, -1).unflatten(-1, (2, -1))
            )  # [B, T, H, W, 2, C]
            x = grown.movedim(4, 2).flatten(1, 2).movedim(-1, 1)
        return _as_clip(self.resample(_as_pictures(x)), x.shape[0])


class _Encoder(nn.Module):
    """Pixels to the moments of the latents."""

    def __init__(self, config: WanVaeConfig) -> None:
        super().__init__()
        widths = [config.width * factor for factor in config.multipliers]
        self.conv1 = _CausalConv(3, widths[0])
        layers: list[nn.Module] = []
        for level, (width, out_width) in enumerate(pairwise([widths[0], *widths])):
            layers += [
                _Residual(width if i == 0 else out_width, out_width)
                for i in range(config.blocks)
            ]
            if level < len(config.time_downsample):
                layers.append(_Downsample(out_width, in_time=config.time_downsample[level]))
        self.downsamples = nn.Sequential(*layers)
        self.middle = _middle(widths[-1])
        self.head = _head(widths[-1], 2 * config.latent_channels)

    def forward(self, x: Tensor, memory: _Memory) -> Tensor:
        """Map [B, 3, T, H, W] to [B, 2 C, T, H / 8, W / 8]; four frames make one, the
        first one stands alone."""
        x = self.conv1.remembering(x, memory)
        for layers in (self.downsamples, self.middle, self.head):
            x = _run(layers, x, memory)
        return x


class _Decoder(nn.Module):
    """Latents to pixels."""

    def __init__(self, config: WanVaeConfig) -> None:
        super().__init__()
        widths = [config.width * factor for factor in reversed(config.multipliers)]
        self.conv1 = _CausalConv(config.latent_channels, widths[0])
        self.middle = _middle(widths[0])
        layers: list[nn.Module] = []
        width = widths[0]
        for level, out_width in enumerate(widths):
            layers += [
                _Residual(width if i == 0 else out_width, out_width)
                for i in range(config.blocks + 1)
            ]
            width = out_width
            if level < len(config.time_downsample):
                layers.append(
                    _Upsample(out_width, in_time=config.time_downsample[-1 - level])
                )
                width = out_width // 2
        self.upsamples = nn.Sequential(*layers)
        self.head = _head(widths[-1], 3)

    def forward(self, x: Tensor, memory: _Memory) -> Tensor:
        """Map [B, C, T, H, W] to [B, 3, T, 8 H, 8 W]; a latent makes four frames, the
        first one makes one."""
        x = self.conv1.remembering(x, memory)
        for layers in (self.middle, self.upsamples, self.head):
            x = _run(layers, x, memory)
        return x


class WanVaeEncoder(nn.Module):
    """Frames [B, 3, 1 + 4k, H, W] in [0, 1] to normalised latents [B, C, 1 + k, H / 8,
    W / 8].

    The first frame of a stream is a group of its own, then every four make one.
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
        memory = _Memory(memories)
        moments = self.conv1(
            self.encoder((2 * frames_bcthw - 1).contiguous(memory_format=LAYOUT), memory)
        )
        mean, std = _statistics(self.config, moments)
        latents = (moments[:, : self.config.latent_channels].float() - mean) / std
        return latents.to(moments.dtype), tuple(memory.after)

    def init_state(self, *, batch: int, height: int, width: int) -> MemoryState:
        """Return the state before the first frame of ``height`` x ``width`` pixels,
        multiples of 8."""
        assert height % SHRINK == 0 and width % SHRINK == 0, (
            "the caller pads frames to multiples of 8"
        )
        return MemoryState(_empty_memories(self.encoder, batch, height, width), False)

    def group_size(self, state: MemoryState) -> int:
        """Return the frames of the next latent; a group may be several latents."""
        return FRAMES_PER_LATENT if state.started else 1

    def step(self, state: MemoryState, frames_bcthw: Tensor) -> tuple[MemoryState, Tensor]:
        """Encode frames latent by latent; of an incomplete four at the end of a clip
        the last frame is repeated."""
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
        memory = _Memory(memories)
        x = self.conv2((latents_bcthw.float() * std + mean).to(latents_bcthw.dtype))
        return (self.decoder(x, memory) + 1) / 2, tuple(memory.after)

    def init_state(self, *, batch: int, height: int, width: int) -> MemoryState:
        """Return the state before the first latent frame of ``height`` x ``width``."""
        return MemoryState(_empty_memories(self.decoder, batch, height, width), False)

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


def _middle(width: int) -> nn.Sequential:
    return nn.Sequential(
        _Residual(width, width), _SpatialAttention(width), _Residual(width, width)
    )


def _head(width: int, out_width: int) -> nn.Sequential:
    return nn.Sequential(
        _ChannelNorm(width), nn.SiLU(inplace=True), _CausalConv(width, out_width)
    )


def _run(layers: nn.Sequential, x: Tensor, memory: _Memory) -> Tensor:
    for layer in layers:
        if isinstance(layer, _CausalConv):
            x = layer.remembering(x, memory)
        elif isinstance(layer, _Residual | _Downsample | _Upsample):
            x = layer(x, memory)
        else:
            x = layer(x)
    return x


def _as_pictures(x_bcthw: Tensor) -> Tensor:
    return x_bcthw.transpose(1, 2).flatten(0, 1)


def _as_clip(x_nchw: Tensor, batch: int) -> Tensor:
    return x_nchw.unflatten(0, (batch, -1)).transpose(1, 2)


def _statistics(config: WanVaeConfig, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of the latents as [1, C, 1, 1, 1], float32."""
    both = torch.tensor((config.mean, config.std), dtype=torch.float32, device=like.device)
    return both[0].view(1, -1, 1, 1, 1), both[1].view(1, -1, 1, 1, 1)


def _empty_memories(
    network: nn.Module, batch: int, height: int, width: int
) -> tuple[Tensor, ...]:
    """Return the memories before the first frame; a network lists its layers in the
    order in which they run."""
    memories: list[Tensor] = []
    for layer in network.modules():
        if isinstance(layer, nn.ZeroPad2d):
            height, width = height // 2, width // 2
        elif isinstance(layer, nn.Upsample):
            height, width = height * 2, width * 2
        elif isinstance(layer, _CausalConv):
            empty = layer.weight.new_zeros(
                (batch, layer.in_channels, layer.history, height, width)
            )
            memories.append(empty.contiguous(memory_format=LAYOUT))
    return tuple(memories)
