"""Positions of tokens in blocks, for kernels: along each axis, and among tokens without
padding."""

# pyright: reportMissingParameterType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# Triton allows no annotation but constexpr on a kernel's parameters.

import triton
import triton.language as tl

__all__ = ["axis_places", "dense_place"]


@triton.jit
def axis_places(
    block,
    inside,
    blocks,
    BLOCK_T: tl.constexpr,
    BLOCK_Y: tl.constexpr,
    BLOCK_X: tl.constexpr,
):
    """Return frame, row and column of token ``inside`` of ``block``; ``blocks`` are the
    rows and columns of blocks."""
    frame = block // (blocks[0] * blocks[1]) * BLOCK_T + inside // (BLOCK_Y * BLOCK_X)
    row = block // blocks[1] % blocks[0] * BLOCK_Y + inside // BLOCK_X % BLOCK_Y
    col = block % blocks[1] * BLOCK_X + inside % BLOCK_X
    return frame, row, col


@triton.jit
def dense_place(
    block,
    inside,
    size,
    blocks,
    BLOCK_T: tl.constexpr,
    BLOCK_Y: tl.constexpr,
    BLOCK_X: tl.constexpr,
):
    """Return the position of token ``inside`` of ``block`` in block order without
    padding, and whether it is a real token.

    ``size`` are frames, rows and columns of tokens, ``blocks`` the rows and columns of
    blocks.
    """
    frames, rows, cols = size
    grid_rows, grid_cols = blocks
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
