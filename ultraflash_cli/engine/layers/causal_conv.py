"""Layers of the Wan 2.1 VAE: causal 3D convolutions that keep past frames."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "CausalConv",
    "CausalMemory",
    "Downsample",
    "Residual",
    "Upsample",
    "empty_memories",
    "head_layers",
    "middle_layers",
    "run_layers",
]

LAYOUT = torch.channels_last_3d
"""The memory format of all layers and states, in which a clip and its frames are views
of each other."""


class CausalMemory:
    """The past frames of all causal layers, read and stored in the order in which the
    layers run."""

    def __init__(self, before: tuple[Tensor, ...] | None) -> None:
        self.first = before is None
        """Whether this is the first piece of a stream."""
        self.after: list[Tensor] = []
        """Past frames for the next piece."""
        self._before = before

    def join(self, x_bcthw: Tensor, frames: int) -> Tensor:
        """Return ``x`` preceded by the last ``frames`` past frames (zeros at the start
        of a stream), and store new past frames."""
        joined = torch.cat([self._past(x_bcthw, frames), x_bcthw], dim=2).contiguous(
            memory_format=LAYOUT
        )
        self.after.append(joined[:, :, -frames:].clone(memory_format=LAYOUT))
        return joined

    def pass_by(self, x_bcthw: Tensor, frames: int) -> None:
        """Store no frames of ``x``."""
        self.after.append(self._past(x_bcthw, frames))

    def _past(self, x_bcthw: Tensor, frames: int) -> Tensor:
        if self._before is not None:
            return self._before[len(self.after)]
        batch, channels, _, height, width = x_bcthw.shape
        return x_bcthw.new_zeros((batch, channels, frames, height, width)).contiguous(
            memory_format=LAYOUT
        )


class CausalConv(nn.Conv3d):
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

    def remembering(self, x_bcthw: Tensor, memory: CausalMemory) -> Tensor:
        """Map [B, width, T, H, W] to [B, out_width, T / time_stride, H, W]."""
        return self(memory.join(x_bcthw, self.history))


class ChannelNorm(nn.Module):
    """Scale each position's channels to a norm of sqrt(C), then each channel by a
    weight, in float32."""

    def __init__(self, width: int, *, dims: int = 3) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width, *[1] * dims))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x [B, C, ...]``."""
        length = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=torch.float32)
        return (x * (x.shape[1] ** 0.5 / length.clamp_min(1e-12)) * self.gamma).to(x.dtype)


class Residual(nn.Module):
    """Norm, SiLU and causal convolution, twice, plus a shortcut."""

    def __init__(self, width: int, out_width: int) -> None:
        super().__init__()
        # Positions 4 and 5 of the published list: activation and the dropout of its
        # training.
        self.residual = nn.Sequential(
            ChannelNorm(width),
            nn.SiLU(inplace=True),
            CausalConv(width, out_width),
            ChannelNorm(out_width),
            nn.SiLU(inplace=True),
            nn.Identity(),
            CausalConv(out_width, out_width),
        )
        self.shortcut = (
            nn.Identity() if width == out_width else nn.Conv3d(width, out_width, 1)
        )

    def forward(self, x: Tensor, memory: CausalMemory) -> Tensor:
        """Map [B, width, T, H, W] to [B, out_width, T, H, W]."""
        return run_layers(self.residual, x, memory) + self.shortcut(x)


class SpatialAttention(nn.Module):
    """Single-head attention over the positions of a frame, with a residual
    connection."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(width, dims=2)
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


class Downsample(nn.Module):
    """Halves the sides and, with ``in_time``, the frame rate; the first piece of a
    stream keeps its single frame."""

    def __init__(self, width: int, *, in_time: bool) -> None:
        super().__init__()
        self.resample = nn.Sequential(
            nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(width, width, 3, stride=2)
        )
        self.time_conv = (
            CausalConv(width, width, (3, 1, 1), time_stride=2) if in_time else None
        )

    def forward(self, x: Tensor, memory: CausalMemory) -> Tensor:
        """Map [B, C, T, H, W] to [B, C, T or T / 2, H / 2, W / 2]."""
        x = _as_clip(self.resample(_as_pictures(x)), x.shape[0])
        if self.time_conv is None:
            return x
        joined = memory.join(x, self.time_conv.history)
        return x if memory.first else self.time_conv(joined)


class Upsample(nn.Module):
    """Doubles the sides at half the channels and, with ``in_time``, the frame rate
    after the first frame. The first latent frame of a stream passes without time growth
    and is not stored, as in the published model: the second one has zeros as its past.
    """

    def __init__(self, width: int, *, in_time: bool) -> None:
        super().__init__()
        self.time_conv = CausalConv(width, 2 * width, (3, 1, 1)) if in_time else None
        self.resample = nn.Sequential(
            nn.Upsample(scale_factor=2), nn.Conv2d(width, width // 2, 3, padding=1)
        )

    def forward(self, x: Tensor, memory: CausalMemory) -> Tensor:
        """Map [B, C, T, H, W] to [B, C / 2, T or 2 T, 2 H, 2 W]."""
        if self.time_conv is not None and memory.first:
            memory.pass_by(x, self.time_conv.history)
        elif self.time_conv is not None:
            grown = (
                self.time_conv.remembering(x, memory).movedim(1, -1).unflatten(-1, (2, -1))
            )  # [B, T, H, W, 2, C]
            x = grown.movedim(4, 2).flatten(1, 2).movedim(-1, 1)
        return _as_clip(self.resample(_as_pictures(x)), x.shape[0])


def middle_layers(width: int) -> nn.Sequential:
    """Return the layers between the two halves, at the smallest size."""
    return nn.Sequential(
        Residual(width, width), SpatialAttention(width), Residual(width, width)
    )


def head_layers(width: int, out_width: int) -> nn.Sequential:
    """Return the last layers."""
    return nn.Sequential(
        ChannelNorm(width), nn.SiLU(inplace=True), CausalConv(width, out_width)
    )


def run_layers(layers: nn.Sequential, x: Tensor, memory: CausalMemory) -> Tensor:
    """Run ``x [B, C, T, H, W]`` through ``layers`` with their past frames."""
    for layer in layers:
        if isinstance(layer, CausalConv):
            x = layer.remembering(x, memory)
        elif isinstance(layer, Residual | Downsample | Upsample):
            x = layer(x, memory)
        else:
            x = layer(x)
    return x


def _as_pictures(x_bcthw: Tensor) -> Tensor:
    return x_bcthw.transpose(1, 2).flatten(0, 1)


def _as_clip(x_nchw: Tensor, batch: int) -> Tensor:
    return x_nchw.unflatten(0, (batch, -1)).transpose(1, 2)


def empty_memories(
    network: nn.Module, batch: int, height: int, width: int
) -> tuple[Tensor, ...]:
    """Return the past frames before the start of a stream; a network lists its layers
    in the order in which they run."""
    memories: list[Tensor] = []
    for layer in network.modules():
        if isinstance(layer, nn.ZeroPad2d):
            height, width = height // 2, width // 2
        elif isinstance(layer, nn.Upsample):
            height, width = height * 2, width * 2
        elif isinstance(layer, CausalConv):
            empty = layer.weight.new_zeros(
                (batch, layer.in_channels, layer.history, height, width)
            )
            memories.append(empty.contiguous(memory_format=LAYOUT))
    return tuple(memories)
