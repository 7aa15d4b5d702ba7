"""Where a token lies among those without padding, for kernels."""

# pyright: reportMissingParameterType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# Triton allows no annotation but constexpr on a kernel's parameters.

import triton
import triton.language as tl

__all__ = ["dense_place"]


@triton.jit
def dense_place(
    block,
    inside,
    frames,
    rows,
    cols,
    grid_rows,
    grid_cols,
    BLOCK_T: tl.constexpr,
    BLOCK_Y: tl.constexpr,
    BLOCK_X: tl.constexpr,
):
    """Return the place of token ``inside`` of ``block`` in the order of blocks without
    padding, and whether it is one at all."""
    first_frame = block // (grid_rows * grid_cols) * BLOCK_T
    first_row = block // grid_cols % grid_rows * BLOCK_Y
    first_col = block % grid_cols * BLOCK_X
    deep = tl.minimum(frames - first_frame, BLOCK_T)
    tall = tl.minimum(rows - first_row, BLOCK_Y)
    wide = tl.minimum(cols - first_col, BLOCK_X)
    frame = inside // (BLOCK_Y * BLOCK_X)
    row = inside // BLOCK_X % BLOCK_Y
    col = inside % BLOCK_X
    before = first_frame * rows * cols + deep * (first_row * cols + tall * first_col)
    real = (frame < deep) & (row < tall) & (col < wide)
    return before + (frame * tall + row) * wide + col, real
