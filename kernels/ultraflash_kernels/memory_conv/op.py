"""Convolutions of memory decoders, fused with preceding or following operations; no
concatenation or enlargement is materialised."""

from typing import Literal

import torch
from torch import Tensor

from ultraflash_kernels.dispatch import (
    KERNEL_DTYPES,
    KernelUnsupportedError,
    chooses_triton,
)
from ultraflash_kernels.memory_conv import library, reference

__all__ = [
    "KERNEL_WINS",
    "ConvImpl",
    "activated_conv",
    "library_refusal",
    "memory_conv",
    "residual_conv",
    "upsampled_conv",
]

ConvImpl = Literal["auto", "triton", "library", "reference"]
"""The implementation to use or fail; ``library`` is cuDNN with bias, sum and ReLU in
its epilogue. ``auto`` uses the kernel for entries of ``KERNEL_WINS``, else the library
if it can run."""

KERNEL_WINS: frozenset[tuple[tuple[int, int], int, int]] = frozenset()
"""(compute capability, channels in, channels out) for which ``auto`` uses the kernel.
Only measured wins over cuDNN belong here, and nothing has been measured yet."""


def memory_conv(
    x_btchw: Tensor,
    past_bchw: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    negative_slope: float = 0.0,
    impl: ConvImpl = "auto",
) -> Tensor:
    """Return ``act(conv(x, Wa) + conv(past, Wb) + bias)`` as ``[B * T, O, H, W]``,
    channels last.

    ``weight [O, 2C, 3, 3]`` holds Wa for the frame itself and Wb for the previous one,
    in this order. The frame before ``x_btchw[:, t]`` is ``x_btchw[:, t - 1]``, or
    ``past_bchw [B, C, H, W]`` if t is 0. Zero padding of one pixel; act is ReLU, leaky
    with ``negative_slope`` > 0 (reference/cascade.md 3.1).

    The reference consists of two library convolutions, each rounded to the dtype of x;
    the kernel sums everything in float32 and rounds once. Raises ValueError for invalid
    shapes or dtypes.
    """
    batch, frames, channels, height, width = (
        x_btchw.shape if x_btchw.ndim == 5 else (0, 0, 0, 0, 0)
    )
    if (
        x_btchw.ndim != 5
        or tuple(past_bchw.shape) != (batch, channels, height, width)
        or not frames
    ):
        raise ValueError(
            "memory_conv: x must be [B, T, C, H, W], past [B, C, H, W], got "
            f"{list(x_btchw.shape)}, {list(past_bchw.shape)}"
        )
    _check("memory_conv", weight, bias, 2 * channels, x_btchw, past_bchw)
    tensors = [x_btchw, past_bchw, weight, *([] if bias is None else [bias])]
    if _takes_kernel("memory_conv", impl, channels, tensors):
        return _convolve(x_btchw, past_bchw, weight, bias, None, negative_slope, 1)
    if _takes_library("memory_conv", impl, negative_slope, tensors):
        return library.memory(x_btchw, past_bchw, weight, bias)
    return reference.memory(x_btchw, past_bchw, weight, bias, negative_slope)


def residual_conv(
    x_nchw: Tensor,
    residual_nchw: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    negative_slope: float = 0.0,
    impl: ConvImpl = "auto",
) -> Tensor:
    """Return ``act(conv(x, W) + bias + residual)`` as ``[N, O, H, W]``, channels last;
    ``residual`` has the same shape.

    Padding, act, rounding and ``auto`` are those of ``memory_conv``; ``weight`` is
    ``[O, C, 3, 3]``.
    """
    if x_nchw.ndim != 4 or tuple(residual_nchw.shape) != (
        x_nchw.shape[0],
        weight.shape[0],
        *x_nchw.shape[2:],
    ):
        raise ValueError(
            "residual_conv: x must be [N, C, H, W], the residual [N, O, H, W], got "
            f"{list(x_nchw.shape)}, "
            f"{list(residual_nchw.shape)}"
        )
    _check("residual_conv", weight, bias, x_nchw.shape[1], x_nchw, residual_nchw)
    tensors = [x_nchw, residual_nchw, weight, *([] if bias is None else [bias])]
    if _takes_kernel("residual_conv", impl, x_nchw.shape[1], tensors):
        return _convolve(
            x_nchw.unsqueeze(1), None, weight, bias, residual_nchw, negative_slope, 1
        )
    if _takes_library("residual_conv", impl, negative_slope, tensors):
        return library.residual(x_nchw, residual_nchw, weight, bias)
    return reference.residual(x_nchw, residual_nchw, weight, bias, negative_slope)


def activated_conv(
    x_nchw: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    negative_slope: float = 0.0,
    impl: ConvImpl = "auto",
) -> Tensor:
    """Return ``act(conv(x, W) + bias)`` as ``[N, O, H, W]``, channels last; otherwise
    like ``residual_conv``."""
    if x_nchw.ndim != 4:
        raise ValueError(
            f"activated_conv: x must be [N, C, H, W], got {list(x_nchw.shape)}"
        )
    _check("activated_conv", weight, bias, x_nchw.shape[1], x_nchw)
    tensors = [x_nchw, x_nchw, weight, *([] if bias is None else [bias])]
    if _takes_kernel("activated_conv", impl, x_nchw.shape[1], tensors):
        return _convolve(x_nchw.unsqueeze(1), None, weight, bias, None, negative_slope, 1)
    if _takes_library("activated_conv", impl, negative_slope, tensors):
        return library.activated(x_nchw, weight, bias)
    return reference.activated(x_nchw, weight, bias, negative_slope)


def upsampled_conv(
    x_nchw: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    negative_slope: float = 1.0,
    impl: ConvImpl = "auto",
) -> Tensor:
    """Return ``act(conv(up(x), W) + bias)`` as ``[N, O, 2H, 2W]``, channels last;
    ``up`` doubles by nearest neighbours, and a slope of 1 means no activation.
    ``weight`` is ``[O, C, 3, 3]``; zero padding is one pixel of the doubled size. The
    reference builds the doubled pictures, while the kernel addresses the original
    pixels and reads a quarter as much. ``auto`` is that of ``memory_conv``, with the
    same table. Raises ValueError for invalid shapes or dtypes.
    """
    if x_nchw.ndim != 4:
        raise ValueError(
            f"upsampled_conv: x must be [N, C, H, W], got {list(x_nchw.shape)}"
        )
    _check("upsampled_conv", weight, bias, x_nchw.shape[1], x_nchw)
    tensors = [x_nchw, x_nchw, weight, *([] if bias is None else [bias])]
    if _takes_kernel("upsampled_conv", impl, x_nchw.shape[1], tensors):
        return _convolve(x_nchw.unsqueeze(1), None, weight, bias, None, negative_slope, 2)
    if _takes_library("upsampled_conv", impl, negative_slope, tensors):
        return library.upsampled(x_nchw, weight, bias)
    return reference.upsampled(x_nchw, weight, bias, negative_slope)


def library_refusal(
    weight: Tensor, *others: Tensor, negative_slope: float = 0.0
) -> str | None:
    """Return a sentence that explains why cuDNN cannot fuse the operations after these
    convolutions, or None."""
    if negative_slope != 0:
        return "its epilogue only supports ReLU."
    if torch.is_grad_enabled() and any(x.requires_grad for x in (weight, *others)):
        return "a tensor requires gradients, but the epilogue has no backward pass."
    if weight.dtype not in (torch.float16, torch.bfloat16):
        return f"it supports float16 and bfloat16, got {weight.dtype}."
    return library.library_refusal(weight.device, weight.dtype)


def _check(
    op: str, weight: Tensor, bias: Tensor | None, channels: int, *inputs: Tensor
) -> None:
    if tuple(weight.shape[1:]) != (channels, 3, 3) or (
        bias is not None and bias.shape != weight.shape[:1]
    ):
        got = [list(x.shape) for x in (weight, *([] if bias is None else [bias]))]
        raise ValueError(f"{op}: weight must be [O, {channels}, 3, 3], bias [O], got {got}")
    dtypes = {x.dtype for x in (weight, *inputs, *([] if bias is None else [bias]))}
    if len(dtypes) > 1:
        raise ValueError(f"{op}: all tensors must have the same dtype, got {dtypes}")


def _takes_library(
    op: str, impl: ConvImpl, negative_slope: float, tensors: list[Tensor]
) -> bool:
    if impl not in ("auto", "library"):
        return False
    refusal = library_refusal(tensors[2], *tensors, negative_slope=negative_slope)
    if refusal and impl == "library":
        raise KernelUnsupportedError(f"{op}: {refusal}")
    return refusal is None


def _takes_kernel(op: str, impl: ConvImpl, channels: int, tensors: list[Tensor]) -> bool:
    weight = tensors[2]
    if impl == "library":
        return False
    if impl == "auto":
        if not weight.is_cuda or not KERNEL_WINS:
            return False
        if (
            torch.cuda.get_device_capability(weight.device),
            channels,
            weight.shape[0],
        ) not in KERNEL_WINS:
            return False
    half = weight.dtype in KERNEL_DTYPES
    refusal = (
        None if half else f"it supports float32, float16 and bfloat16, got {weight.dtype}."
    )
    return chooses_triton(op, impl, *tensors, refusal=refusal)


@torch.library.custom_op("ultraflash::memory_conv", mutates_args=())
def _convolve(
    x_btchw: Tensor,
    past_bchw: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    residual_nchw: Tensor | None,
    negative_slope: float,
    growth: int,
) -> Tensor:
    from ultraflash_kernels.memory_conv import kernel

    return kernel.forward(
        x_btchw, past_bchw, weight, bias, residual_nchw, negative_slope, growth
    )


@_convolve.register_fake
def _convolve_shape(
    x_btchw: Tensor,
    past_bchw: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    residual_nchw: Tensor | None,
    negative_slope: float,
    growth: int,
) -> Tensor:
    batch, frames, _, height, width = x_btchw.shape
    shape = (batch * frames, weight.shape[0], growth * height, growth * width)
    return torch.empty(
        shape, dtype=weight.dtype, device=weight.device, memory_format=torch.channels_last
    )
