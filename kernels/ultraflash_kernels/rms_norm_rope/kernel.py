"""Norm, rotation and scatter of queries, keys and values: every program processes all
channels of a few tokens."""

# pyright: reportMissingParameterType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# Triton allows no annotation but constexpr on a kernel's parameters, and takes options
# such as num_warps beside them.

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from ultraflash_kernels._token_kernels import axis_places
from ultraflash_kernels.dispatch import on_its_device, power_of_two

__all__ = [
    "axis_turns",
    "copy_tokens",
    "forward",
    "norm_rope_kernel",
    "norm_rope_tokens",
    "scatter_tokens",
]


@triton.jit
def axis_turns(
    turns,
    place,
    starts,
    real,
    WIDTH: tl.constexpr,
    PT: tl.constexpr,
    PY: tl.constexpr,
    PX: tl.constexpr,
    BP: tl.constexpr,
):
    """Return cosines and sines ``[BT, BP]`` of tokens at ``place`` (frame, row,
    column); the tables of rows and columns start at ``starts``."""
    frame, row, col = place
    pair = tl.arange(0, BP)[None, :]  # [1, BP]
    own = pair % (PT + PY + PX)
    by_row = starts[0] + row[:, None] * PY + (own - PT)
    by_col = starts[1] + col[:, None] * PX + (own - PT - PY)
    entry = tl.where(
        own < PT, frame[:, None] * PT + own, tl.where(own < PT + PY, by_row, by_col)
    )  # [BT, BP]
    mask = real[:, None] & (pair < WIDTH // 2)
    both = tl.load(
        turns + entry[:, :, None] * 2 + tl.arange(0, 2)[None, None, :],
        mask=mask[:, :, None],
        other=0.0,
    )  # [BT, BP, 2]
    return tl.split(both)


@triton.jit
def scatter_tokens(
    tile, to, to_head, live, WIDTH: tl.constexpr, HEAD: tl.constexpr, BP: tl.constexpr
):
    """Write ``tile [BT, 2 * BP]`` to the tokens at ``to [BT]``, head by head."""
    col = tl.arange(0, 2 * BP)  # [2 * BP]
    places = to[:, None] + ((col // HEAD).to(tl.int64) * to_head + col % HEAD)[None, :]
    tl.store(places, tile, mask=live[:, None] & (col < WIDTH)[None, :])


@triton.jit
def copy_tokens(
    source,
    to,
    to_head,
    real,
    live,
    WIDTH: tl.constexpr,
    HEAD: tl.constexpr,
    BP: tl.constexpr,
):
    """Copy the tokens at ``source [BT]``: only those that are ``live``, with zeros for
    those that are not ``real`` (padding)."""
    col = tl.arange(0, 2 * BP)  # [2 * BP]
    mask = real[:, None] & (col < WIDTH)[None, :]
    tile = tl.load(source[:, None] + col[None, :], mask=mask, other=0.0)  # [BT, 2 * BP]
    scatter_tokens(tile, to, to_head, live, WIDTH, HEAD, BP)


@triton.jit
def norm_rope_tokens(
    source,
    weight,
    real,
    cos,
    sin,
    eps,
    WIDTH: tl.constexpr,
    BT: tl.constexpr,
    BP: tl.constexpr,
):
    """Normalise and rotate the tokens at ``source [BT]``; return ``[BT, 2 * BP]``, with
    zeros for tokens that are not ``real`` (padding)."""
    like: tl.constexpr = source.dtype.element_ty
    col = tl.arange(0, 2 * BP)  # [2 * BP]
    mask = real[:, None] & (col < WIDTH)[None, :]
    x = tl.load(source[:, None] + col[None, :], mask=mask, other=0.0)  # [BT, 2 * BP]
    even, odd = tl.split(tl.reshape(x.to(tl.float32), [BT, BP, 2]))  # [BT, BP] each
    mean = tl.sum(even * even + odd * odd, axis=1) * (1.0 / WIDTH)
    inverse = tl.rsqrt(mean + eps)[:, None]  # [BT, 1]

    weights = tl.load(weight + col, mask=col < WIDTH, other=0.0).to(tl.float32)
    even_weight, odd_weight = tl.split(tl.reshape(weights, [BP, 2]))  # [BP] each
    even = (even * inverse).to(like).to(tl.float32) * even_weight[None, :]
    even = even.to(like).to(tl.float32)
    odd = (odd * inverse).to(like).to(tl.float32) * odd_weight[None, :]
    odd = odd.to(like).to(tl.float32)

    # Padding was read as zero, and remains zero.
    rotated = tl.join(even * cos - odd * sin, even * sin + odd * cos)
    return tl.reshape(rotated, [BT, 2 * BP]).to(like)


@triton.jit
def norm_rope_kernel(
    q,
    k,
    v,
    q_weight,
    k_weight,
    turns,
    q_out,
    k_out,
    v_out,
    q_batch,
    q_token,
    k_batch,
    k_token,
    v_batch,
    v_token,
    q_out_batch,
    q_out_head,
    q_out_token,
    k_out_batch,
    k_out_head,
    k_out_token,
    v_out_batch,
    v_out_head,
    v_out_token,
    tokens,
    frames,
    rows,
    cols,
    block_rows,
    block_cols,
    row_turns,
    col_turns,
    eps,
    WIDTH: tl.constexpr,
    PT: tl.constexpr,
    PY: tl.constexpr,
    PX: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_Y: tl.constexpr,
    BLOCK_X: tl.constexpr,
    BT: tl.constexpr,
    BP: tl.constexpr,
):
    """Process ``BT`` tokens of q, k and v of one sample; ``row_turns``, ``col_turns``
    are where their tables start."""
    HEAD: tl.constexpr = 2 * (PT + PY + PX)
    TOKENS: tl.constexpr = BLOCK_T * BLOCK_Y * BLOCK_X
    batch = tl.program_id(1).to(tl.int64)
    token = tl.program_id(0).to(tl.int64) * BT + tl.arange(0, BT)  # [BT]
    live = token < tokens
    blocks = (block_rows, block_cols)
    place = axis_places(token // TOKENS, token % TOKENS, blocks, BLOCK_T, BLOCK_Y, BLOCK_X)
    real = live & (place[0] < frames) & (place[1] < rows) & (place[2] < cols)
    starts = (row_turns, col_turns)
    cos, sin = axis_turns(turns, place, starts, real, WIDTH, PT, PY, PX, BP)

    source = q + batch * q_batch + token * q_token
    to = q_out + batch * q_out_batch + token * q_out_token
    tile = norm_rope_tokens(source, q_weight, real, cos, sin, eps, WIDTH, BT, BP)
    scatter_tokens(tile, to, q_out_head, live, WIDTH, HEAD, BP)
    source = k + batch * k_batch + token * k_token
    to = k_out + batch * k_out_batch + token * k_out_token
    tile = norm_rope_tokens(source, k_weight, real, cos, sin, eps, WIDTH, BT, BP)
    scatter_tokens(tile, to, k_out_head, live, WIDTH, HEAD, BP)
    source = v + batch * v_batch + token * v_token
    to = v_out + batch * v_out_batch + token * v_out_token
    copy_tokens(source, to, v_out_head, real, live, WIDTH, HEAD, BP)


@on_its_device
def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    turns: Tensor,
    pairs: Sequence[int],
    positions: Sequence[int],
    size: Sequence[int],
    block: Sequence[int],
    eps: float,
    out: tuple[Tensor, Tensor, Tensor],
) -> None:
    """Write to ``out``. See ``op.rms_norm_rope``; nothing is checked here."""
    batch, blocks, inner, width = q.shape
    ins = [_tokens(x) for x in (q, k, v)]

    tokens, tile = blocks * inner, 2
    if batch:
        norm_rope_kernel[(triton.cdiv(tokens, tile), batch)](
            *ins,
            q_weight.contiguous(),
            k_weight.contiguous(),
            turns,
            *out,
            *(stride for x in ins for stride in x.stride()[:2]),
            *(x.stride(axis) for x in out for axis in (0, 1, 3)),
            tokens,
            *size,
            *(-(-n // b) for n, b in zip(size[1:], block[1:], strict=True)),
            positions[0] * pairs[0],
            positions[0] * pairs[0] + positions[1] * pairs[1],
            eps,
            WIDTH=width,
            PT=pairs[0],
            PY=pairs[1],
            PX=pairs[2],
            BLOCK_T=block[0],
            BLOCK_Y=block[1],
            BLOCK_X=block[2],
            BT=tile,
            BP=power_of_two(width // 2),
            num_warps=4,
            enable_fp_fusion=False,
        )


def _tokens(x: Tensor) -> Tensor:
    """View ``x [B, blocks, T, D]`` as [B, tokens, D] with D contiguous; copies only if
    necessary."""
    x = x.flatten(1, 2)
    return x if x.stride(2) == 1 else x.contiguous()
