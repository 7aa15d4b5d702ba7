"""3x3 convolution as matmuls over shifted pixels, of one or two inputs, with its
epilogue.

With ``GROWTH`` 2 pictures are doubled by nearest neighbours first: a program computes
one of the four phases (``phases.py``) of its pixels by 2x2 taps, and writes every
second row and column of the result.
"""

# pyright: reportMissingParameterType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# Triton allows no annotation but constexpr on a kernel's parameters, and takes options
# such as num_warps beside them.

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["conv_kernel", "forward", "upsampled"]
from ultraflash_kernels.dispatch import on_its_device, power_of_two


@triton.jit
def _taps(
    sums,
    source,
    live,
    row,
    col,
    weight,
    out_channel,
    height,
    width,
    outs,
    source_row,
    source_col,
    weight_out,
    weight_in,
    weight_row,
    weight_col,
    above,
    left,
    CHANNELS: tl.constexpr,
    SIDE: tl.constexpr,
    BK: tl.constexpr,
):
    """Add the products of ``SIDE`` x ``SIDE`` shifted pixels and their kernel taps to
    ``sums [BM, BN]``; the first tap is ``above`` rows and ``left`` columns before the
    pixel."""
    channel = tl.arange(0, BK)  # [BK]
    column = weight + out_channel.to(tl.int64) * weight_out  # [BN]
    pixel = source + row * source_row + col * source_col  # [BM]
    PIECES: tl.constexpr = (CHANNELS + BK - 1) // BK

    for step in tl.range(0, SIDE * SIDE * PIECES):
        tap, at = step // PIECES, step % PIECES * BK + channel
        dy, dx = tap // SIDE - above, tap % SIDE - left
        y, x = row + dy, col + dx  # [BM]
        inside = live & (y >= 0) & (y < height) & (x >= 0) & (x < width)
        pointers = pixel[:, None] + (at + (dy * source_row + dx * source_col))[None, :]
        a = tl.load(
            pointers, mask=inside[:, None] & (at < CHANNELS)[None, :], other=0.0
        )  # [BM, BK]
        part = tap // SIDE * weight_row + tap % SIDE * weight_col + at * weight_in  # [BK]
        b = tl.load(
            column[None, :] + part[:, None],
            mask=(at < CHANNELS)[:, None] & (out_channel < outs)[None, :],
            other=0.0,
        )  # [BK, BN]
        sums = tl.dot(a, b, sums, input_precision="ieee")
    return sums


@triton.jit
def conv_kernel(
    x,
    past,
    weight,
    bias,
    residual,
    out,
    pixels,
    frames,
    height,
    width,
    outs,
    slope,
    x_batch,
    x_frame,
    x_row,
    x_col,
    past_batch,
    past_row,
    past_col,
    weight_out,
    weight_in,
    weight_row,
    weight_col,
    residual_frame,
    residual_row,
    residual_col,
    out_picture,
    CHANNELS: tl.constexpr,
    HAS_PAST: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    LEAKY: tl.constexpr,
    GROWTH: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """Compute ``BM`` pixels of one frame in ``BN`` channels; the channels of all
    pictures are contiguous."""
    SIDE: tl.constexpr = 4 - GROWTH  # 3 x 3 taps, or 2 x 2 of a phase
    picture = tl.program_id(2).to(tl.int64)
    batch, frame = picture // frames, picture % frames
    # The phases of the same pixels are neighbours, which share what they read.
    block, phase = (
        tl.program_id(0) // (GROWTH * GROWTH),
        tl.program_id(0) % (GROWTH * GROWTH),
    )
    down, right = phase // GROWTH, phase % GROWTH
    above = 1 if GROWTH == 1 else down
    left = 1 if GROWTH == 1 else right
    pixel = block * BM + tl.arange(0, BM)  # [BM]
    out_channel = tl.program_id(1) * BN + tl.arange(0, BN)  # [BN]
    live = pixel < pixels
    row, col = (pixel // width).to(tl.int64), (pixel % width).to(tl.int64)

    sums = tl.zeros([BM, BN], tl.float32)
    sums = _taps(
        sums,
        x + batch * x_batch + frame * x_frame,
        live,
        row,
        col,
        weight + phase * outs * weight_out,
        out_channel,
        height,
        width,
        outs,
        x_row,
        x_col,
        weight_out,
        weight_in,
        weight_row,
        weight_col,
        above,
        left,
        CHANNELS,
        SIDE,
        BK,
    )

    if HAS_PAST:
        # The previous frame: in x, or for the first one in the memory.
        second = weight + CHANNELS * weight_in
        first = frame == 0
        source = tl.where(
            first, past + batch * past_batch, x + batch * x_batch + (frame - 1) * x_frame
        )
        source_row, source_col = (
            tl.where(first, past_row, x_row),
            tl.where(first, past_col, x_col),
        )
        sums = _taps(
            sums,
            source,
            live,
            row,
            col,
            second,
            out_channel,
            height,
            width,
            outs,
            source_row,
            source_col,
            weight_out,
            weight_in,
            weight_row,
            weight_col,
            above,
            left,
            CHANNELS,
            SIDE,
            BK,
        )

    mask = live[:, None] & (out_channel < outs)[None, :]  # [BM, BN]
    if HAS_BIAS:
        sums += tl.load(bias + out_channel, mask=out_channel < outs, other=0.0).to(
            tl.float32
        )[None, :]

    if HAS_RESIDUAL:
        at = residual + picture * residual_frame + row * residual_row + col * residual_col
        sums += tl.load(at[:, None] + out_channel[None, :], mask=mask, other=0.0).to(
            tl.float32
        )
    sums = tl.where(sums < 0, sums * slope if LEAKY else 0.0, sums)
    if GROWTH == 1:
        place = pixel.to(tl.int64)
    else:
        # The first row of a pair is odd.
        place = (2 * row + 1 - down) * (2 * width) + 2 * col + 1 - right
    to = out + picture * out_picture + place[:, None] * outs + out_channel[None, :]
    tl.store(to, sums.to(out.dtype.element_ty), mask=mask)


@on_its_device
def forward(
    x_btchw: Tensor,
    past_bchw: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    residual_nchw: Tensor | None,
    negative_slope: float,
) -> Tensor:
    """See ``op.memory_conv`` and ``op.residual_conv``; nothing is checked here."""
    batch, frames, _, height, width = x_btchw.shape
    out = _empty((batch * frames, weight.shape[0], height, width), weight)
    _launch(x_btchw, past_bchw, weight, bias, residual_nchw, out, negative_slope)
    return out


@on_its_device
def upsampled(
    x_nchw: Tensor, taps: Tensor, bias: Tensor | None, negative_slope: float
) -> Tensor:
    """See ``op.upsampled_conv``; ``taps`` are those of ``phases.phase_taps``, and
    nothing is checked here."""
    pictures, _, height, width = x_nchw.shape
    growth, outs = len(taps), taps.shape[1] // 4
    out = _empty((pictures * growth, outs, 2 * height, 2 * width), taps)
    x_ntchw = x_nchw.unsqueeze(1)
    for number, each in enumerate(taps):
        grown = out.unflatten(0, (pictures, growth))[:, number]
        _launch(x_ntchw, None, each, bias, None, grown, negative_slope)
    return out


def _empty(shape: tuple[int, int, int, int], like: Tensor) -> Tensor:
    return torch.empty(
        shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last
    )


def _launch(
    x_btchw: Tensor,
    past_bchw: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    residual_nchw: Tensor | None,
    out: Tensor,
    negative_slope: float,
) -> None:
    """Write to ``out``, pictures of contiguous channels and rows; twice the size of x
    means that ``weight`` holds the taps of four phases."""
    if not out.numel():
        return
    batch, frames, channels, height, width = x_btchw.shape
    growth, outs = out.shape[2] // height, out.shape[1]
    x = _channels_in_one_piece(x_btchw)
    past = x if past_bchw is None else _channels_in_one_piece(past_bchw)
    residual = out if residual_nchw is None else _channels_in_one_piece(residual_nchw)
    past_strides = (
        (0, 0, 0) if past_bchw is None else (past.stride(0), past.stride(2), past.stride(3))
    )
    pixel_block = 128
    out_block = max(16, min(128, power_of_two(outs)))
    channel_block = max(16, min(64, power_of_two(channels)))

    grid = (
        triton.cdiv(height * width, pixel_block) * growth**2,
        triton.cdiv(outs, out_block),
        batch * frames,
    )
    conv_kernel[grid](
        x,
        past,
        weight,
        out if bias is None else bias,
        residual,
        out,
        height * width,
        frames,
        height,
        width,
        outs,
        negative_slope,
        x.stride(0),
        x.stride(1),
        x.stride(3),
        x.stride(4),
        *past_strides,
        *weight.stride(),
        residual.stride(0),
        residual.stride(2),
        residual.stride(3),
        out.stride(0),
        CHANNELS=channels,
        HAS_PAST=past_bchw is not None,
        HAS_BIAS=bias is not None,
        HAS_RESIDUAL=residual_nchw is not None,
        LEAKY=negative_slope > 0,
        GROWTH=growth,
        BM=pixel_block,
        BN=out_block,
        BK=channel_block,
        num_warps=8,
        num_stages=3,
    )


def _channels_in_one_piece(x: Tensor) -> Tensor:
    """Return ``x [..., C, H, W]`` with contiguous channels per pixel; copies if they
    are not."""
    if x.stride(-3) == 1:
        return x
    return x.movedim(-3, -1).contiguous().movedim(-1, -3)
