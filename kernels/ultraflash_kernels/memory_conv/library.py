"""Convolutions with bias, sum and ReLU fused by cuDNN, and convolutions over doubled
pictures by their phases."""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from ultraflash_kernels.memory_conv.phases import interleave_, shuffle_, without_border_

__all__ = [
    "activated",
    "library_refusal",
    "memory",
    "residual",
    "upsampled",
    "upsampled_head",
]


def library_refusal(device: torch.device, dtype: torch.dtype, side: int = 3) -> str | None:
    """Return a sentence that explains why cuDNN cannot fuse operations after a
    convolution of ``side`` x ``side`` taps on ``device``, or None; determined once with
    small pictures."""
    if device.type != "cuda":
        return f"cuDNN needs an NVIDIA GPU, the tensors are on {device}."
    return _found_wrong(device, dtype, side)


@functools.cache
def _found_wrong(device: torch.device, dtype: torch.dtype, side: int = 3) -> str | None:
    with torch.inference_mode():
        edge = 11 - side
        x = torch.randn(2, 16, 8, 8, device=device).to(dtype)
        z = torch.randn(2, 16, edge, edge, device=device).to(dtype)
        weight = (torch.randn(16, 16, side, side, device=device) / 12).to(dtype)
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


def upsampled(
    x_nchw: Tensor, taps: Tensor, bias: Tensor | None, negative_slope: float
) -> Tensor:
    """Return the result of ``op.upsampled_conv`` on any device; ``taps`` are those of
    ``phases.phase_taps``. The four phases are written to their places by a copy."""
    pictures, _, height, width = x_nchw.shape
    growth, outs = len(taps), taps.shape[1] // 4
    out = torch.empty(
        (pictures * growth, outs, 2 * height, 2 * width),
        dtype=x_nchw.dtype,
        device=x_nchw.device,
        memory_format=torch.channels_last,
    )
    for each, grown in zip(
        taps, out.unflatten(0, (pictures, growth)).unbind(1), strict=True
    ):
        interleave_(grown, _phases(x_nchw, each, bias, negative_slope))
    return out


def upsampled_head(
    x_nchw: Tensor,
    taps: Tensor,
    bias: Tensor | None,
    head: Tensor,
    head_bias: Tensor | None,
    negative_slope: float,
) -> Tensor:
    """Return the result of ``op.upsampled_head`` on any device; ``head`` are the taps
    of ``phases.head_taps``. The second convolution reads phases, so only its few
    channels are written to their places."""
    pictures, _, height, width = x_nchw.shape
    growth, outs = len(taps), len(head) // 4
    shape = (pictures, growth, outs, 2 * height, 2 * width)
    out = torch.empty(shape, dtype=x_nchw.dtype, device=x_nchw.device)
    wide_bias = None if head_bias is None else head_bias.repeat_interleave(4)
    for each, grown in zip(taps, out.unbind(1), strict=True):
        # No name for the phases, which would keep them while the next ones are made.
        shuffle_(
            grown,
            F.conv2d(
                without_border_(_phases(x_nchw, each, bias, negative_slope)),
                head,
                wide_bias,
            ),
        )
    return out.flatten(0, 1)


def _phases(
    x_nchw: Tensor, taps: Tensor, bias: Tensor | None, negative_slope: float
) -> Tensor:
    """Return the activated phases ``[N, 4 * O, H + 1, W + 1]``."""
    bias = None if bias is None else bias.repeat(4)
    half = taps.dtype in (torch.float16, torch.bfloat16)
    if half and negative_slope == 0 and not library_refusal(taps.device, taps.dtype, 2):
        return _fused(_last(x_nchw), taps, bias, None)
    made = F.conv2d(_last(x_nchw), taps, bias, padding=1)
    if negative_slope == 1:
        return made
    return F.leaky_relu_(made, negative_slope) if negative_slope > 0 else made.relu_()


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
    sides = (side + 3 - weight.shape[2] for side in x.shape[2:])
    shape = (x.shape[0], weight.shape[0], *sides)
    return torch.empty(
        shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last
    )
