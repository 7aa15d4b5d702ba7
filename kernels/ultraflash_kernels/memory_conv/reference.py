"""The reference of ``memory_conv`` and its siblings: convolutions of PyTorch, added in
place."""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["activated", "grown", "memory", "residual", "upsampled"]


def memory(
    x_btchw: Tensor,
    past_bchw: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    negative_slope: float,
) -> Tensor:
    """See ``op.memory_conv``; nothing is checked here. Neither frames and past nor
    frames in time are concatenated."""
    batch, frames, channels = x_btchw.shape[:3]
    now, before = weight[:, :channels], weight[:, channels:]
    # The stride of an axis of length one is arbitrary, but libraries choose the
    # summation order by it.
    past_bchw = past_bchw.unsqueeze(1).flatten(0, 1)
    mixed = F.conv2d(_last(x_btchw.flatten(0, 1)), now, bias, padding=1)
    if frames == 1:
        return _act(
            mixed.add_(F.conv2d(_last(past_bchw), before, padding=1)), negative_slope
        )
    each = mixed.unflatten(0, (batch, frames))
    # Not ``+=`` on a slice, as Python would then assign the sum to the slice again.
    each[:, 0].add_(F.conv2d(_last(past_bchw), before, padding=1))
    earlier = _last(x_btchw[:, :-1].flatten(0, 1))
    later = F.conv2d(earlier, before, padding=1).unflatten(0, (batch, frames - 1))
    each[:, 1:].add_(later)
    return _act(mixed, negative_slope)


def activated(x_nchw: Tensor, weight: Tensor, bias: Tensor | None, slope: float) -> Tensor:
    """See ``op.activated_conv``; nothing is checked here."""
    return _act(F.conv2d(_last(x_nchw), weight, bias, padding=1), slope)


def residual(
    x_nchw: Tensor, residual_nchw: Tensor, weight: Tensor, bias: Tensor | None, slope: float
) -> Tensor:
    """See ``op.residual_conv``; nothing is checked here."""
    return _act(F.conv2d(_last(x_nchw), weight, bias, padding=1).add_(residual_nchw), slope)


def upsampled(x_nchw: Tensor, weight: Tensor, bias: Tensor | None, slope: float) -> Tensor:
    """See ``op.upsampled_conv``; nothing is checked here."""
    doubled = F.interpolate(_last(x_nchw), scale_factor=2.0, mode="nearest")
    return _act(F.conv2d(doubled, weight, bias, padding=1), slope)


def grown(x_nchw: Tensor, growth: Tensor, width: int) -> Tensor:
    """Return pictures of ``width`` channels: those that the 1x1 convolution ``growth
    [F * width, C, 1, 1]`` makes of each picture, in sequence."""
    made = F.conv2d(x_nchw, growth)
    frames = len(growth) // width
    if frames == 1:
        return made
    each = made.permute(0, 2, 3, 1).unflatten(3, (frames, -1)).permute(0, 3, 1, 2, 4)
    return each.contiguous().flatten(0, 1).permute(0, 3, 1, 2)


def _last(x_nchw: Tensor) -> Tensor:
    return x_nchw.contiguous(memory_format=torch.channels_last)


def _act(x: Tensor, negative_slope: float) -> Tensor:
    if negative_slope == 1:
        return x
    return F.leaky_relu_(x, negative_slope) if negative_slope > 0 else x.relu_()
