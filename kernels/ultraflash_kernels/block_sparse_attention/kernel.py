"""Softmax attention over listed blocks of keys: one program per tile of queries, online
softmax, float32 sums."""

# pyright: reportMissingParameterType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# Triton allows no annotation but constexpr on a kernel's parameters, and takes options
# such as num_warps beside them.

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ultraflash_kernels._token_kernels import dense_place
from ultraflash_kernels.block_lists import BlockLists
from ultraflash_kernels.dispatch import capability, on_its_device, power_of_two
from ultraflash_kernels.token_order import blocks_of, tokens_of

__all__ = [
    "Tiles",
    "attention_kernel",
    "forward",
    "head_columns",
    "out_places",
    "output",
    "softmax_step",
    "tiles",
]


@triton.jit
def softmax_step(m_i, l_i, qk, scale):
    """Accumulate scores ``qk [BM, BN]`` in the online softmax; return its maximum and
    sum ``[BM]``, the weights of the keys and the factor on earlier sums."""
    m_new = tl.maximum(m_i, tl.max(qk, axis=1) * scale)
    p = tl.exp2(qk * scale - m_new[:, None])
    alpha = tl.exp2(m_i - m_new)
    return m_new, l_i * alpha + tl.sum(p, axis=1), p, alpha


@triton.jit
def out_places(
    to,
    mask,
    block,
    token,
    o_block,
    o_token,
    size,
    grid,
    BLOCK_T: tl.constexpr,
    BLOCK_Y: tl.constexpr,
    BLOCK_X: tl.constexpr,
):
    """Return the output addresses of the tokens ``[BM]`` of a block, and ``mask``
    without padding; with ``BLOCK_T`` 0 the result keeps its padding."""
    if BLOCK_T > 0:
        # Consecutive tokens, without padding.
        token, real = dense_place(block, token, size, grid, BLOCK_T, BLOCK_Y, BLOCK_X)
        mask = mask & real[:, None]
    else:
        to += block * o_block
    return to + token[:, None] * o_token, mask


# One program for every group of a clip.
@triton.jit(do_not_specialize=["heads", "queries", "fill", "frames"])
def attention_kernel(
    q,
    k,
    v,
    ring_k,
    ring_v,
    out,
    starts,
    blocks,
    order,
    heads,
    queries,
    fill,
    scale,
    q_sample,
    q_head,
    q_block,
    q_token,
    k_sample,
    k_head,
    k_block,
    k_token,
    v_sample,
    v_head,
    v_block,
    v_token,
    rk_sample,
    rk_head,
    rk_block,
    rk_token,
    rv_sample,
    rv_head,
    rv_block,
    rv_token,
    o_sample,
    o_head,
    o_block,
    o_token,
    frames,
    rows,
    cols,
    grid_rows,
    grid_cols,
    T: tl.constexpr,
    D: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BD: tl.constexpr,
    RING: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_Y: tl.constexpr,
    BLOCK_X: tl.constexpr,
):
    """Compute one tile of queries of the next row in ``order``. The tokens of a row's
    blocks form a sequence of ``count * T`` keys, processed BN at a time; if BN divides
    T, each step lies within one block. Key blocks below ``fill`` are those of the ring.
    ``scale`` contains log2(e).
    """
    row = tl.load(order + tl.program_id(0))
    sample = (row // queries // heads).to(tl.int64)
    head = (row // queries % heads).to(tl.int64)
    block = (row % queries).to(tl.int64)
    token = tl.program_id(1) * BM + tl.arange(0, BM)  # [BM]
    col = tl.arange(0, BD)  # [BD]
    q_mask = (token < T)[:, None] & (col < D)[None, :]  # [BM, BD]
    source = q + sample * q_sample + head * q_head + block * q_block
    query = tl.load(
        source + token[:, None] * q_token + col[None, :], mask=q_mask, other=0.0
    )  # [BM, BD]

    k += sample * k_sample + head * k_head
    v += sample * v_sample + head * v_head
    if RING:
        ring_k += sample * rk_sample + head * rk_head
        ring_v += sample * rv_sample + head * rv_head
    first = tl.load(starts + row)
    total = (tl.load(starts + row + 1) - first) * T

    m_i = tl.full([BM], -float("inf"), tl.float32)
    l_i = tl.zeros([BM], tl.float32)
    acc = tl.zeros([BM, BD], tl.float32)
    step = tl.arange(0, BN)  # [BN]
    for at in range(0, total, BN):
        if T % BN == 0:
            index = tl.load(blocks + first + at // T).to(tl.int64)
            place = at % T + step  # [BN]
            kv_mask = (step < BN)[:, None] & (col < D)[None, :]  # [BN, BD]
            if RING:
                old = index < fill
                index = tl.where(old, index, index - fill)
                k_from = tl.where(old, ring_k + index * rk_block, k + index * k_block)
                v_from = tl.where(old, ring_v + index * rv_block, v + index * v_block)
                k_step = tl.where(old, rk_token, k_token)
                v_step = tl.where(old, rv_token, v_token)
                k_at = k_from + place[:, None] * k_step + col[None, :]
                v_at = v_from + place[:, None] * v_step + col[None, :]
            else:
                k_at = k + index * k_block + place[:, None] * k_token + col[None, :]
                v_at = v + index * v_block + place[:, None] * v_token + col[None, :]
        else:
            real = at + step < total  # [BN]
            kv_mask = real[:, None] & (col < D)[None, :]
            listed = blocks + first + (at + step) // T
            index = tl.load(listed, mask=real, other=0).to(tl.int64)  # [BN]
            place = (at + step) % T
            if RING:
                old = index < fill
                index = tl.where(old, index, index - fill)
                k_old = ring_k + (index * rk_block + place * rk_token)
                v_old = ring_v + (index * rv_block + place * rv_token)
                k_from = tl.where(old, k_old, k + (index * k_block + place * k_token))
                v_from = tl.where(old, v_old, v + (index * v_block + place * v_token))
            else:
                k_from = k + (index * k_block + place * k_token)
                v_from = v + (index * v_block + place * v_token)
            k_at = k_from[:, None] + col[None, :]
            v_at = v_from[:, None] + col[None, :]

        if T % BN == 0 and D == BD:
            key = tl.load(k_at)  # [BN, BD]
            value = tl.load(v_at)
        else:
            key = tl.load(k_at, mask=kv_mask, other=0.0)
            value = tl.load(v_at, mask=kv_mask, other=0.0)
        qk = tl.dot(query, tl.trans(key), input_precision="ieee")  # [BM, BN]
        if T % BN != 0:
            qk = tl.where(real[None, :], qk, -float("inf"))
        m_i, l_i, p, alpha = softmax_step(m_i, l_i, qk, scale)
        acc = tl.dot(p.to(value.dtype), value, acc * alpha[:, None], input_precision="ieee")

    # A row with an empty list returns zeros.
    acc = acc / tl.where(l_i == 0.0, 1.0, l_i)[:, None]
    to = out + sample * o_sample + head * o_head
    size, grid = (frames, rows, cols), (grid_rows, grid_cols)
    to, q_mask = out_places(
        to, q_mask, block, token, o_block, o_token, size, grid, BLOCK_T, BLOCK_Y, BLOCK_X
    )
    tl.store(to + col[None, :], acc.to(out.dtype.element_ty), mask=q_mask)


class Tiles(NamedTuple):
    """Tiling of a shape: tokens per query tile and per step over keys, warps, and
    pipeline stages."""

    queries: int
    keys: int
    warps: int
    stages: int


def tiles(target: tuple[int, int], dtype: torch.dtype, tokens: int, width: int) -> Tiles:
    """Choose tiles that neither spill nor exceed shared memory on ``target``, the
    compute capability."""
    rows = max(16, power_of_two(tokens))
    if dtype == torch.float32:  # matmuls without tensor cores
        return Tiles(min(32, rows), 32, 8, 1)
    if rows < 128:
        return Tiles(rows, 64, 4, 2)
    roomy = target[0] in (9, 10) and width > 64
    # Triton halves the pipeline depth for dependent loads: five stages fetch keys and
    # values two steps ahead, three only one, which is waited for immediately.
    return Tiles(128, 128 if roomy else 64, 8, 5)


def head_columns(target: tuple[int, int], width: int) -> int:
    """Return the columns of a tile for heads of ``width`` channels. On Hopper at least
    64: with 32 and four warps its matmuls read out of bounds in shared memory (triton
    issues 10486, 10573, 11366, since 3.6).
    """
    return max(64 if target[0] == 9 else 16, power_of_two(width))


def geometry(grid: Sequence[int]) -> tuple[int, int, int, int, int]:
    """Return frames, rows and columns of tokens and the rows and columns of blocks."""
    if not grid:
        return 0, 0, 0, 0, 0
    frames, rows, cols = grid[:3]
    _, grid_rows, grid_cols = blocks_of(grid[:3], grid[3:])
    return frames, rows, cols, grid_rows, grid_cols


def block_sizes(grid: Sequence[int]) -> dict[str, int]:
    """Return the sizes of a block for the kernels; zeros if the result keeps its
    padding."""
    return dict(zip(("BLOCK_T", "BLOCK_Y", "BLOCK_X"), grid[3:] or (0, 0, 0), strict=True))


def output(
    q: Tensor, grid: Sequence[int] = (), *, dtype: torch.dtype | None = None
) -> Tensor:
    """Return an uninitialised tensor of shape ``[B, H, N, T, D]``, stored as
    ``[B, N, T, H, D]``, the layout the next layer reads; with ``grid``,
    ``[B, H, 1, tokens, D]`` without padding. ``dtype`` is that of q if None."""
    samples, heads, blocks, tokens, width = q.shape
    if grid:
        blocks, tokens = 1, tokens_of(grid[:3])
    out = q.new_empty((samples, blocks, tokens, heads, width), dtype=dtype)
    return out.permute(0, 3, 1, 2, 4)


@on_its_device
def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lists: BlockLists,
    ring_k: Tensor | None,
    ring_v: Tensor | None,
    fill: int,
    grid: Sequence[int] = (),
) -> Tensor:
    """See ``op.block_list_attention``; nothing is checked here. ``grid`` holds the
    sizes of the group and of a block if the result has no padding."""
    out = output(q, grid)
    _, heads, queries, tokens, width = q.shape
    ring = ring_k is not None and ring_v is not None and fill > 0
    old_k, old_v = (ring_k, ring_v) if ring_k is not None and ring_v is not None else (k, v)
    q, k, v, old_k, old_v = (
        x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v, old_k, old_v)
    )
    target = capability(q.device)
    cut = tiles(target, q.dtype, tokens, width)

    attention_kernel[(lists.order.numel(), triton.cdiv(tokens, cut.queries))](
        q,
        k,
        v,
        old_k,
        old_v,
        out,
        lists.starts,
        lists.blocks,
        lists.order,
        heads,
        queries,
        fill,
        math.log2(math.e) / math.sqrt(width),
        *q.stride()[:4],
        *k.stride()[:4],
        *v.stride()[:4],
        *old_k.stride()[:4],
        *old_v.stride()[:4],
        *out.stride()[:4],
        *geometry(grid),
        T=tokens,
        D=width,
        BM=cut.queries,
        BN=cut.keys,
        BD=head_columns(target, width),
        RING=ring,
        **block_sizes(grid),
        num_warps=cut.warps,
        num_stages=cut.stages,
    )
    return out
