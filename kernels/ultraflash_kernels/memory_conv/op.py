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
from ultraflash_kernels.memory_conv.phases import head_taps, phase_taps

__all__ = [
    "KERNEL_WINS",
    "ConvImpl",
    "activated_conv",
    "library_refusal",
    "memory_conv",
    "residual_conv",
    "upsampled_conv",
    "upsampled_head",
]

ConvImpl = Literal["auto", "triton", "library", "reference"]
"""The implementation to use or fail; ``library`` is cuDNN with bias, sum and ReLU in
its epilogue. ``auto`` uses the kernel for entries of ``KERNEL_WINS``, else the library
if it can run. ``upsampled_conv`` and ``upsampled_head`` need no epilogue: their
``library`` is any device's, without gradients."""

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
        return _convolve(x_btchw, past_bchw, weight, bias, None, negative_slope)
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
            x_nchw.unsqueeze(1), None, weight, bias, residual_nchw, negative_slope
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
        return _convolve(x_nchw.unsqueeze(1), None, weight, bias, None, negative_slope)
    if _takes_library("activated_conv", impl, negative_slope, tensors):
        return library.activated(x_nchw, weight, bias)
    return reference.activated(x_nchw, weight, bias, negative_slope)


def upsampled_conv(
    x_nchw: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    growth: Tensor | None = None,
    taps: Tensor | None = None,
    negative_slope: float = 1.0,
    impl: ConvImpl = "auto",
) -> Tensor:
    """Return ``act(conv(up(x), W) + bias)`` as ``[N, O, 2H, 2W]``, channels last.

    ``up`` doubles by nearest neighbours; zero padding is one pixel of the doubled size.
    The reference doubles pictures. Library and kernel compute four phases by 2x2 taps,
    which are sums of the 3x3 taps that read the same original pixel: 4/9 of the
    arithmetic, the same but for the rounding of the sums. ``auto`` uses the kernel for
    entries of ``KERNEL_WINS``, else the library; with gradients the reference.

    Args:
        x_nchw: ``[N, C, H, W]``.
        weight: ``[O, K, 3, 3]``; K is C without ``growth``.
        bias: ``[O]``.
        growth: ``[F * K, C, 1, 1]``, a 1x1 convolution that makes F pictures of each
            before the doubling; the result is ``[N * F, O, 2H, 2W]``, in sequence.
            Only the reference rounds what is between the two.
        taps: ``phase_taps(weight, growth)``, to save computing them.
        negative_slope: 1 is no activation, 0 is ReLU.
        impl: The implementation.

    Raises:
        ValueError: for invalid shapes or dtypes.
    """
    _check_upsampled("upsampled_conv", x_nchw, weight, bias, growth)
    tensors = [x_nchw, x_nchw, weight, *(x for x in (bias, growth) if x is not None)]
    channels = x_nchw.shape[1]
    if _takes_kernel("upsampled_conv", impl, channels, tensors):
        taps = phase_taps(weight, growth) if taps is None else taps
        return _convolve_upsampled(x_nchw, taps, bias, negative_slope)
    if _takes_phases("upsampled_conv", impl, tensors):
        taps = phase_taps(weight, growth) if taps is None else taps
        return library.upsampled(x_nchw, taps, bias, negative_slope)
    if growth is not None:
        x_nchw = reference.grown(x_nchw, growth, weight.shape[1])
    return reference.upsampled(x_nchw, weight, bias, negative_slope)


def upsampled_head(
    x_nchw: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    head: Tensor,
    head_bias: Tensor | None,
    *,
    growth: Tensor | None = None,
    taps: tuple[Tensor, Tensor] | None = None,
    negative_slope: float = 0.0,
    impl: ConvImpl = "auto",
) -> Tensor:
    """Return ``conv(act(conv(up(x), W) + bias), head) + head_bias`` as ``[N * F, P, 2H,
    2W]``, with zero padding of one pixel each.

    ``head [P, O, 3, 3]`` is meant for few channels P. The library never writes the
    doubled picture between the two: the second convolution reads phases, by 2x2 taps,
    and writes four pixels as channels. See ``upsampled_conv`` for everything else;
    ``taps`` are those of ``phase_taps`` and ``head_taps``.
    """
    _check_upsampled("upsampled_head", x_nchw, weight, bias, growth)
    _check("upsampled_head", head, head_bias, weight.shape[0], x_nchw)
    given = (bias, growth, head, head_bias)
    tensors = [x_nchw, x_nchw, weight, *(x for x in given if x is not None)]
    kernel = _takes_kernel("upsampled_head", impl, x_nchw.shape[1], tensors)
    if not kernel and _takes_phases("upsampled_head", impl, tensors):
        first, second = taps or (phase_taps(weight, growth), head_taps(head))
        return library.upsampled_head(
            x_nchw, first, bias, second, head_bias, negative_slope
        )
    inner = upsampled_conv(
        x_nchw,
        weight,
        bias,
        growth=growth,
        taps=taps and taps[0],
        negative_slope=negative_slope,
        impl=impl,
    )
    return reference.activated(inner, head, head_bias, 1.0)


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


def _check_upsampled(
    op: str, x_nchw: Tensor, weight: Tensor, bias: Tensor | None, growth: Tensor | None
) -> None:
    if x_nchw.ndim != 4:
        raise ValueError(f"{op}: x must be [N, C, H, W], got {list(x_nchw.shape)}")
    channels = x_nchw.shape[1] if growth is None else weight.shape[1]
    _check(op, weight, bias, channels, x_nchw)
    if growth is None:
        return
    if tuple(growth.shape[1:]) != (x_nchw.shape[1], 1, 1) or growth.shape[0] % channels:
        raise ValueError(
            f"{op}: growth must be [F * {channels}, {x_nchw.shape[1]}, 1, 1], "
            f"got {list(growth.shape)}"
        )
    if growth.dtype != weight.dtype:
        raise ValueError(
            f"{op}: all tensors must have the same dtype, got {weight.dtype} and "
            f"{growth.dtype}"
        )


def _takes_phases(op: str, impl: ConvImpl, tensors: list[Tensor]) -> bool:
    if impl not in ("auto", "library"):
        return False
    wanted = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
    if wanted and impl == "library":
        raise KernelUnsupportedError(f"{op}: a tensor requires gradients.")
    return not wanted


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
) -> Tensor:
    from ultraflash_kernels.memory_conv import kernel

    return kernel.forward(x_btchw, past_bchw, weight, bias, residual_nchw, negative_slope)


@_convolve.register_fake
def _convolve_shape(
    x_btchw: Tensor,
    past_bchw: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    residual_nchw: Tensor | None,
    negative_slope: float,
) -> Tensor:
    batch, frames, _, height, width = x_btchw.shape
    shape = (batch * frames, weight.shape[0], height, width)
    return torch.empty(
        shape, dtype=weight.dtype, device=weight.device, memory_format=torch.channels_last
    )


@torch.library.custom_op("ultraflash::upsampled_conv", mutates_args=())
def _convolve_upsampled(
    x_nchw: Tensor, taps: Tensor, bias: Tensor | None, negative_slope: float
) -> Tensor:
    from ultraflash_kernels.memory_conv import kernel

    return kernel.upsampled(x_nchw, taps, bias, negative_slope)


@_convolve_upsampled.register_fake
def _convolve_upsampled_shape(
    x_nchw: Tensor, taps: Tensor, bias: Tensor | None, negative_slope: float
) -> Tensor:
    pictures, _, height, width = x_nchw.shape
    shape = (pictures * taps.shape[0], taps.shape[1] // 4, 2 * height, 2 * width)
    return torch.empty(
        shape, dtype=taps.dtype, device=taps.device, memory_format=torch.channels_last
    )
