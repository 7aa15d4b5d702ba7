"""RGB to YUV 4:2:0 in one pass: each program converts a stretch of two rows of
pixels."""

# pyright: reportMissingParameterType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# Triton allows no annotation but constexpr on a kernel's parameters, and takes options
# such as num_warps beside them.

import triton
import triton.language as tl
from torch import Tensor

from ultraflash_kernels.dispatch import on_its_device
from ultraflash_kernels.frames_to_yuv.levels import Levels

__all__ = ["forward", "yuv_kernel"]


@triton.jit
def _light(at, mask):
    """Load pixels clamped to [0, 1]; NaN becomes 0."""
    wide = tl.load(at, mask=mask, other=0.0).to(tl.float32)
    return tl.minimum(tl.where(wide > 0, wide, 0.0), 1.0)


@triton.jit
def _store(at, level, top, mask):
    whole = tl.minimum(tl.maximum(tl.floor(level + 0.5), 0.0), top)
    tl.store(at, whole.to(tl.int32).to(at.dtype.element_ty), mask=mask)


@triton.jit
def yuv_kernel(
    frames,
    planes,
    height,
    width,
    luma_samples,
    chroma_samples,
    frame_stride,
    channel_stride,
    row_stride,
    col_stride,
    red,
    green,
    blue,
    luma,
    black,
    blue_difference,
    red_difference,
    grey,
    top,
    BC: tl.constexpr,
):
    """Convert ``BC`` columns of one row of chroma: ``2 * BC`` pixels of two rows and
    the column before them."""
    frame = tl.program_id(2).to(tl.int64)
    row = tl.program_id(1)
    col = tl.program_id(0) * BC + tl.arange(0, BC)  # [BC]
    cols = (width + 1) // 2
    y_plane = planes + frame * (luma_samples + 2 * chroma_samples)
    u_plane = y_plane + luma_samples
    v_plane = u_plane + chroma_samples
    source = frames + frame * frame_stride

    pixel = tl.program_id(0) * (2 * BC) + tl.arange(0, 2 * BC)  # [2 * BC]
    before = tl.maximum(col * 2 - 1, 0)  # [BC]
    inside = col < cols
    red_sum = tl.zeros([2 * BC], tl.float32)
    green_sum, blue_sum = red_sum, red_sum
    red_before = tl.zeros([BC], tl.float32)
    green_before, blue_before = red_before, red_before
    for half in tl.static_range(2):
        line = tl.minimum(row * 2 + half, height - 1)  # the last row is repeated
        at = source + line.to(tl.int64) * row_stride + pixel.to(tl.int64) * col_stride
        r = _light(at, pixel < width)
        g = _light(at + channel_stride, pixel < width)
        b = _light(at + 2 * channel_stride, pixel < width)
        level = (r * red + g * green + b * blue) * luma + black
        mask = (pixel < width) & (row * 2 + half < height)
        _store(y_plane + line.to(tl.int64) * width + pixel, level, top, mask)
        red_sum, green_sum, blue_sum = red_sum + r, green_sum + g, blue_sum + b
        at = source + line.to(tl.int64) * row_stride + before.to(tl.int64) * col_stride
        red_before = red_before + _light(at, inside)
        green_before = green_before + _light(at + channel_stride, inside)
        blue_before = blue_before + _light(at + 2 * channel_stride, inside)

    twofold = col * 2 + 1 < width
    r = _mixed(red_sum, red_before, twofold, BC)
    g = _mixed(green_sum, green_before, twofold, BC)
    b = _mixed(blue_sum, blue_before, twofold, BC)
    own = r * red + g * green + b * blue
    place = row.to(tl.int64) * cols + col
    _store(u_plane + place, (b - own) * blue_difference + grey, top, inside)
    _store(v_plane + place, (r - own) * red_difference + grey, top, inside)


@triton.jit
def _mixed(both, before, twofold, BC: tl.constexpr):
    """Weight sums over two rows: pairs of columns ``both [2 * BC]``, a single column
    where not ``twofold [BC]``, and the column ``before [BC]`` them."""
    here, after = tl.split(tl.reshape(both * 0.5, [BC, 2]))
    after = tl.where(twofold, after, here)
    return here * 0.5 + (before * 0.5 + after) * 0.25


@on_its_device
def forward(frames_nchw: Tensor, packed: Tensor, levels: Levels) -> None:
    """Write the planes of every frame into ``packed``. See ``op.frames_to_yuv``;
    nothing is checked here."""
    count, _, height, width = frames_nchw.shape
    if not count:
        return
    rows, cols, block = (height + 1) // 2, (width + 1) // 2, 256
    yuv_kernel[(triton.cdiv(cols, block), rows, count)](
        frames_nchw,
        packed,
        height,
        width,
        height * width,
        rows * cols,
        *frames_nchw.stride(),
        *levels,
        BC=block,
        num_warps=4,
        enable_fp_fusion=False,
    )
