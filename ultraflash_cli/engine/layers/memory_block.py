"""The causal memory block, time growth and time pooling of the upsampler, encoder and decoder."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["MemoryBlock", "MemoryInit", "TimeGrowth", "TimePool", "activation", "shift_in_time", "to_channels_last"]

MemoryInit = Literal["zeros", "replicate"]
"""What the first frame of a stream finds in memory: nothing, or itself."""


def activation(negative_slope: float) -> nn.Module:
    """Return ReLU, or its leaky form where ``negative_slope`` > 0."""
    return nn.LeakyReLU(negative_slope, inplace=True) if negative_slope > 0 else nn.ReLU(inplace=True)


def shift_in_time(x_btchw: Tensor, past_bchw: Tensor | None, init: MemoryInit) -> Tensor:
    """Return each frame's predecessor: ``x`` one frame later, led by ``past`` or, at a stream's start, by ``init``."""
    if past_bchw is not None:
        first = past_bchw.unsqueeze(1)
    else:
        first = torch.zeros_like(x_btchw[:, :1]) if init == "zeros" else x_btchw[:, :1]
    return first if x_btchw.shape[1] == 1 else torch.cat([first, x_btchw[:, :-1]], dim=1)


def to_channels_last(network: nn.Module) -> nn.Module:
    """Lay out the kernels of all 2D convolutions channels last, the one format that every stage computes in."""
    for parameter in network.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return network


class MemoryBlock(nn.Module):
    """Three 3x3 convolutions over a frame and the block's own input one frame earlier, plus a residual.

    Source: ARCHITECTURE 3.1. ``negative_slope`` 0 is the published ReLU.
    """

    def __init__(self, width: int, *, init: MemoryInit, negative_slope: float = 0.0) -> None:
        super().__init__()
        self.width = width
        self.init: MemoryInit = init
        self.conv = nn.Sequential(
            nn.Conv2d(2 * width, width, 3, padding=1),
            activation(negative_slope),
            nn.Conv2d(width, width, 3, padding=1),
            activation(negative_slope),
            nn.Conv2d(width, width, 3, padding=1),
        )
        self.act = activation(negative_slope)

    def forward(self, x_nchw: Tensor, past_bchw: Tensor | None, batch: int) -> tuple[Tensor, Tensor]:
        """Return (output, memory for the next call).

        ``x_nchw`` holds ``batch`` clips frame after frame, N = batch * T. ``past_bchw`` is the memory, or None at
        the start of a stream. The memory is the block's input at the last frame.
        """
        x_btchw = x_nchw.unflatten(0, (batch, -1))
        past = shift_in_time(x_btchw, past_bchw, self.init).flatten(0, 1)
        first, *rest = self.conv
        assert isinstance(first, nn.Conv2d), "a memory block starts with a convolution"
        # The concatenation of frame and past is never built: each half of the kernel meets its own input.
        mixed = F.conv2d(x_nchw, first.weight[:, : self.width], first.bias, padding=1)
        mixed.add_(F.conv2d(past, first.weight[:, self.width :], padding=1))
        for layer in rest:
            mixed = layer(mixed)
        return self.act(mixed.add_(x_nchw)), x_btchw[:, -1]


class TimeGrowth(nn.Module):
    """A bias-free 1x1 convolution that turns a frame into ``factor`` frames, earlier channels first."""

    def __init__(self, width: int, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.conv = nn.Conv2d(width, width * factor, 1, bias=False)

    def forward(self, x_nchw: Tensor) -> Tensor:
        """Map [N, C, H, W] to [N * factor, C, H, W], in time order."""
        grown = self.conv(x_nchw)
        if self.factor == 1:
            return grown
        split = grown.unflatten(1, (self.factor, -1)).flatten(0, 1)
        return split.contiguous(memory_format=torch.channels_last)


class TimePool(nn.Module):
    """A bias-free 1x1 convolution that joins ``factor`` consecutive frames, earlier frames first."""

    def __init__(self, width: int, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.conv = nn.Conv2d(width * factor, width, 1, bias=False)

    def forward(self, x_nchw: Tensor) -> Tensor:
        """Map [N, C, H, W] with N a multiple of ``factor`` to [N / factor, C, H, W]."""
        if self.factor == 1:
            return self.conv(x_nchw)
        frames, kernels = x_nchw.unflatten(0, (-1, self.factor)), self.conv.weight.chunk(self.factor, dim=1)
        # As in the memory block, no concatenation: each frame meets its own part of the kernel.
        pooled = F.conv2d(frames[:, 0].contiguous(memory_format=torch.channels_last), kernels[0])
        for i in range(1, self.factor):
            pooled.add_(F.conv2d(frames[:, i].contiguous(memory_format=torch.channels_last), kernels[i]))
        return pooled
