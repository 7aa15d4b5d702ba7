"""Convolutions with bias, sum and ReLU fused by cuDNN, and convolutions over doubled
pictures by their phases."""

import functools
import warnings

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
    "writes_into",
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
            for added, expected in ((None, wide), (z, wide + z.float())):
                # Without a sum, cuDNN reads the memory of its result times zero: what
                # was there before must not matter, which NaN in freed memory shows.
                freed = [torch.full_like(z, torch.nan) for _ in range(8)]
                freed.clear()
                got = _by_cudnn(x, weight, bias, added)
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
    epilogue."""
    channels = x_btchw.shape[2]
    now, before = (
        each.contiguous(memory_format=torch.channels_last)
        for each in (weight[:, :channels], weight[:, channels:])
    )
    if x_btchw.shape[1] == 1:
        remembered = F.conv2d(_last(past_bchw), before, padding=1)
    elif writes_into(x_btchw.device, x_btchw.dtype):
        remembered = _earlier(x_btchw, past_bchw, before)
    else:
        parts = [part for pair in _predecessors(x_btchw, past_bchw) for part in pair]
        remembered = F.conv2d(_last(torch.cat(parts)), before, padding=1)
    return residual(x_btchw.flatten(0, 1), remembered, now, bias)


def _predecessors(x_btchw: Tensor, past_bchw: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return for each clip what precedes its first frame, and its other frames."""
    pasts = past_bchw.split(1)
    return [(past, frames[:-1]) for past, frames in zip(pasts, x_btchw, strict=True)]


@functools.cache
def writes_into(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether convolutions of cuDNN can write to a part of a tensor, so that
    what precedes frames need not be copied into one; determined once with small
    pictures."""
    if device.type == "meta":
        return True
    with torch.inference_mode():
        x = torch.randn(1, 3, 8, 8, 16, device=device).to(dtype).movedim(-1, 2)
        past = torch.randn(1, 8, 8, 16, device=device).to(dtype).movedim(-1, 1)
        weight = (torch.randn(16, 3, 3, 16, device=device) / 12).to(dtype).movedim(-1, 1)
        joined = torch.cat([past, x[0, :-1]]).float()
        try:
            found = _earlier(x, past, weight).float()
        except RuntimeError:
            return False
        wide = F.conv2d(joined, weight.float(), padding=1)
        return torch.allclose(found, wide, rtol=0.02, atol=0.02)


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
    """Return ``relu(conv(x, W) + bias + z)``, in one operation where cuDNN has one for
    this size."""
    try:
        return _by_cudnn(x, weight, bias, z)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        reason = (str(error).splitlines() or ["no reason"])[0]
        warnings.warn(
            f"cuDNN fuses nothing with a convolution of {list(x.shape)} by "
            f"{list(weight.shape)}, which runs in several passes: {reason}",
            RuntimeWarning,
            stacklevel=2,
        )
    made = F.conv2d(x, weight, bias, padding=1)
    return (made if z is None else made.add_(z)).relu_()


def _by_cudnn(x: Tensor, weight: Tensor, bias: Tensor | None, z: Tensor | None) -> Tensor:
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


@torch.library.custom_op("ultraflash::earlier_conv", mutates_args=())
def _earlier(x_btchw: Tensor, past_bchw: Tensor, weight: Tensor) -> Tensor:
    """Convolve what precedes each frame: ``past`` and all frames but the last."""
    out = _earlier_shape(x_btchw, past_bchw, weight)
    clips = out.unflatten(0, x_btchw.shape[:2])
    for (past, frames), made in zip(_predecessors(x_btchw, past_bchw), clips, strict=True):
        _into(made[:1], past, weight)
        _into(made[1:], frames, weight)
    return out


@_earlier.register_fake
def _earlier_shape(x_btchw: Tensor, past_bchw: Tensor, weight: Tensor) -> Tensor:
    batch, frames, _, height, width = x_btchw.shape
    return torch.empty(
        (batch * frames, weight.shape[0], height, width),
        dtype=x_btchw.dtype,
        device=x_btchw.device,
        memory_format=torch.channels_last,
    )


def _into(out: Tensor, x: Tensor, weight: Tensor) -> None:
    """Write ``conv(x, W)`` to ``out``."""
    cudnn = torch.backends.cudnn
    settings = cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32
    around = [1, 1]
    torch.ops.aten.cudnn_convolution.out(
        _last(x), weight, around, around, around, 1, *settings, out=out
    )
