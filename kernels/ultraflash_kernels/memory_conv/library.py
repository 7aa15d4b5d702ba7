"""Convolutions with bias, sum and ReLU fused by cuDNN."""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["activated", "library_refusal", "memory", "residual", "upsampled"]


def library_refusal(device: torch.device, dtype: torch.dtype) -> str | None:
    """Return a sentence that explains why cuDNN cannot fuse operations after a
    convolution on ``device``, or None; determined once with small pictures."""
    if device.type != "cuda":
        return f"cuDNN needs an NVIDIA GPU, the tensors are on {device}."
    return _found_wrong(device, dtype)


@functools.cache
def _found_wrong(device: torch.device, dtype: torch.dtype) -> str | None:
    with torch.inference_mode():
        x, z = torch.randn(2, 2, 16, 8, 8, device=device).to(dtype).unbind()
        weight = (torch.randn(16, 16, 3, 3, device=device) / 12).to(dtype)
        bias = torch.randn(16, device=device).to(dtype)
        x, z, weight = (
            each.contiguous(memory_format=torch.channels_last) for each in (x, z, weight)
        )
        wide = F.conv2d(x.float(), weight.float(), bias.float(), padding=1)
        try:
            found = activated(x, weight, bias), residual(x, z, weight, bias)
            for got, expected in zip(found, (wide, wide + z.float()), strict=True):
                if not torch.allclose(got.float(), expected.relu(), rtol=0.02, atol=0.02):
                    return "its fused convolutions compute wrong results."
        except RuntimeError as error:
            return f"it refuses: {(str(error).splitlines() or ['no reason'])[0]}"
    return None


def activated(x_nchw: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return ``relu(conv(x, W) + bias)``."""
    return _fused(_last(x_nchw), weight, bias, None)


def residual(x_nchw: Tensor, z_nchw: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return ``relu(conv(x, W) + bias + z)``."""
    return _fused(_last(x_nchw), weight, bias, _last(z_nchw))


def memory(
    x_btchw: Tensor, past_bchw: Tensor, weight: Tensor, bias: Tensor | None
) -> Tensor:
    """Return the result of ``op.memory_conv``; frames and their predecessors share an
    epilogue. The predecessors are copied into one tensor."""
    channels = x_btchw.shape[2]
    now, before = (
        each.contiguous(memory_format=torch.channels_last)
        for each in (weight[:, :channels], weight[:, channels:])
    )
    parts = [
        part
        for past, frames in zip(past_bchw.split(1), x_btchw, strict=True)
        for part in (past, frames[:-1])
    ]
    earlier = past_bchw if x_btchw.shape[1] == 1 else torch.cat(parts)
    remembered = F.conv2d(_last(earlier), before, padding=1)
    return residual(x_btchw.flatten(0, 1), remembered, now, bias)


def upsampled(x_nchw: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return ``relu(conv(up(x), W) + bias)``."""
    doubled = F.interpolate(_last(x_nchw), scale_factor=2.0, mode="nearest")
    return activated(doubled, weight, bias)


def _last(x_nchw: Tensor) -> Tensor:
    return x_nchw.contiguous(memory_format=torch.channels_last)


@torch.library.custom_op("ultraflash::fused_conv", mutates_args=())
def _fused(x: Tensor, weight: Tensor, bias: Tensor | None, z: Tensor | None) -> Tensor:
    stride, padding, dilation = [1, 1], [1, 1], [1, 1]
    if z is None:
        return torch.cudnn_convolution_relu(x, weight, bias, stride, padding, dilation, 1)
    return torch.cudnn_convolution_add_relu(
        x, weight, z, 1.0, bias, stride, padding, dilation, 1
    )


@_fused.register_fake
def _fused_shape(
    x: Tensor, weight: Tensor, bias: Tensor | None, z: Tensor | None
) -> Tensor:
    shape = (x.shape[0], weight.shape[0], *x.shape[2:])
    return torch.empty(
        shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last
    )
