"""Time pooling together with the convolutions before and after it, on a GPU."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ultraflash_cli.engine.layers.derived import Derived
from ultraflash_cli.engine.layers.memory_block import TimePool
from ultraflash_kernels.memory_conv import activated_conv

__all__ = ["PooledConv"]

_ALIGNED = 8
"""Channels that a fused convolution reads are a multiple of this."""


class PooledConv:
    """Computes a time pooling and the convolution after it as one convolution, exact
    but for rounding: both are linear, with nothing in between.

    A convolution with ReLU before them computes the frames that are pooled as channels
    of one picture, so that none is copied out of the clip.
    """

    def __init__(self) -> None:
        self._pooled: Derived[Tensor] = Derived()
        self._paired: Derived[tuple[Tensor, Tensor | None]] = Derived()

    def run(self, x_nchw: Tensor, *, pool: TimePool, conv: nn.Conv2d) -> Tensor:
        """Map [N, C, H, W] to what ``conv(pool(x))`` returns."""
        if pool.factor == 1:
            return self._convolved(x_nchw, pool, conv)
        kernels = self._kernels(pool, conv).chunk(pool.factor, dim=1)
        frames = x_nchw.unflatten(0, (-1, pool.factor)).unbind(1)
        parts = (
            _strided(frame.contiguous(memory_format=torch.channels_last), kernel, conv)
            for frame, kernel in zip(frames, kernels, strict=True)
        )
        made = next(parts)
        for part in parts:
            made.add_(part)
        return made

    def run_first(
        self, x_nchw: Tensor, *, first: nn.Conv2d, pool: TimePool, conv: nn.Conv2d
    ) -> Tensor:
        """Map [N, C, H, W] to what ``conv(pool(relu(first(x))))`` returns."""
        factor, channels = pool.factor, x_nchw.shape[1]
        kernels, bias = self._paired.get(
            lambda: _block_diagonal(first, factor),
            x_nchw.dtype,
            *(x for x in (first.weight, first.bias) if x is not None),
        )
        shape = (len(x_nchw) // factor, kernels.shape[1], *x_nchw.shape[2:])
        joined = torch.empty(
            shape,
            dtype=x_nchw.dtype,
            device=x_nchw.device,
            memory_format=torch.channels_last,
        )
        joined[:, factor * channels :].zero_()
        for number, frame in enumerate(x_nchw.unflatten(0, (-1, factor)).unbind(1)):
            joined[:, number * channels : (number + 1) * channels].copy_(frame)
        return self._convolved(activated_conv(joined, kernels, bias), pool, conv)

    def _convolved(self, x_nchw: Tensor, pool: TimePool, conv: nn.Conv2d) -> Tensor:
        return _strided(x_nchw, self._kernels(pool, conv), conv)

    def _kernels(self, pool: TimePool, conv: nn.Conv2d) -> Tensor:
        """Return the kernels ``[O, factor * C, 3, 3]`` of both."""
        weights = conv.weight, pool.conv.weight
        return self._pooled.get(lambda: _composed(*weights), conv.weight.dtype, *weights)


def _strided(x_nchw: Tensor, kernels: Tensor, conv: nn.Conv2d) -> Tensor:
    return F.conv2d(x_nchw, kernels, conv.bias, stride=conv.stride, padding=1)


def _composed(weight: Tensor, pool: Tensor) -> Tensor:
    """Compose ``weight [O, K, 3, 3]`` with ``pool [K, C, 1, 1]`` before it."""
    both = weight.double().permute(0, 2, 3, 1) @ pool.double().flatten(1)
    both = both.permute(0, 3, 1, 2).to(weight.dtype)
    return both.contiguous(memory_format=torch.channels_last)


def _block_diagonal(conv: nn.Conv2d, factor: int) -> tuple[Tensor, Tensor | None]:
    """Return kernels and bias of ``factor`` times ``conv``, side by side; zeros fill up
    the channels in."""
    outs, channels = conv.weight.shape[:2]
    wide = -(-factor * channels // _ALIGNED) * _ALIGNED
    kernels = conv.weight.new_zeros((factor * outs, wide, *conv.weight.shape[2:]))
    for number in range(factor):
        to = kernels[number * outs : (number + 1) * outs]
        to[:, number * channels : (number + 1) * channels] = conv.weight
    bias = None if conv.bias is None else conv.bias.repeat(factor)
    return kernels.contiguous(memory_format=torch.channels_last), bias
