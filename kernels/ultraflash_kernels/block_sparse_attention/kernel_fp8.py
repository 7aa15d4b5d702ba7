"""Attention over listed blocks of tokens that are in 8-bit floating point: both matmuls
in 8 bits, float32 sums."""

# pyright: reportMissingParameterType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# Triton allows no annotation but constexpr on a kernel's parameters, and takes options
# such as num_warps beside them.

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ultraflash_kernels.block_lists import BlockLists
from ultraflash_kernels.block_sparse_attention.kernel import (
    block_sizes,
    geometry,
    head_columns,
    out_places,
    output,
)
from ultraflash_kernels.dispatch import capability, on_its_device, power_of_two
from ultraflash_kernels.fp8_linear import Fp8Rows
from ultraflash_kernels.fp8_linear.kernel import rounded_e4m3

__all__ = ["attention_fp8_kernel", "forward", "scaled_softmax_step"]

WEIGHT_UNITS: tl.constexpr = tl.constexpr(256.0)
"""Factor on weights before rounding to 8 bits, so that small ones do not underflow."""


@triton.jit
def scaled_softmax_step(m_i, l_i, qk, query_scale):
    """Accumulate scores ``qk [BM, BN]``, which are to be multiplied by ``query_scale
    [BM]``, like ``kernel.softmax_step``."""
    m_new = tl.maximum(m_i, tl.max(qk, axis=1) * query_scale)
    p = tl.exp2(qk * query_scale[:, None] - m_new[:, None])
    alpha = tl.exp2(m_i - m_new)
    return m_new, l_i * alpha + tl.sum(p, axis=1), p, alpha


# One program for every group of a clip.
@triton.jit(do_not_specialize=["queries", "new_blocks", "ring_blocks", "fill", "frames"])
def attention_fp8_kernel(
    q,
    q_scales,
    k,
    k_scales,
    v,
    v_scales,
    ring_k,
    ring_k_scales,
    ring_v,
    ring_v_scales,
    out,
    starts,
    blocks,
    order,
    heads,
    queries,
    new_blocks,
    ring_blocks,
    fill,
    scale,
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
    ON_GPU: tl.constexpr,
):
    """Compute one tile of queries of the next row in ``order``; see
    ``kernel.attention_kernel``.

    Blocks of ``q``, ``k [B, H, N, T, D]`` and ``v [B, H, N, D, T]`` are contiguous,
    with a scale for every token; the heads of ``k`` and ``v`` are ``new_blocks`` blocks
    apart, those of the ring ``ring_blocks``. Values of one step share the largest of
    their scales; the remaining factor of each scale is folded into the weights.
    """
    row = tl.load(order + tl.program_id(0)).to(tl.int64)
    head = row // queries
    token = tl.program_id(1) * BM + tl.arange(0, BM)  # [BM]
    col = tl.arange(0, BD)  # [BD]
    q_mask = (token < T)[:, None] & (col < D)[None, :]  # [BM, BD]
    query = tl.load(
        q + row * (T * D) + token[:, None] * D + col[None, :], mask=q_mask, other=0.0
    )  # [BM, BD]
    query_scale = tl.load(q_scales + row * T + token, mask=token < T, other=1.0)
    query_scale = query_scale * scale  # [BM]
    first = tl.load(starts + row)
    total = (tl.load(starts + row + 1) - first) * T

    m_i = tl.full([BM], -float("inf"), tl.float32)
    l_i = tl.zeros([BM], tl.float32)
    acc = tl.zeros([BM, BD], tl.float32)
    unit = 1.0  # the value of 1 in ``acc``, times WEIGHT_UNITS
    step = tl.arange(0, BN)  # [BN]
    for at in range(0, total, BN):
        real = at + step < total  # [BN]
        if T % BN == 0:
            index = tl.load(blocks + first + at // T)
            inner = tl.multiple_of(at % T, BN)  # otherwise values are read byte by byte
            inside = inner + step  # [BN]
        else:
            listed = blocks + first + (at + step) // T
            index = tl.load(listed, mask=real, other=0)  # [BN]
            inside = (at + step) % T
        if RING:
            old = index < fill
            in_ring, in_new = head * ring_blocks + index, head * new_blocks + index - fill
            block = tl.where(old, in_ring, in_new)
            k_from = tl.where(old, ring_k, k) + block * (T * D)
            v_from = tl.where(old, ring_v, v) + block * (T * D)
            k_scales_from = tl.where(old, ring_k_scales, k_scales) + block * T
            v_scales_from = tl.where(old, ring_v_scales, v_scales) + block * T
        else:
            block = head * new_blocks + index
            k_from, v_from = k + block * (T * D), v + block * (T * D)
            k_scales_from, v_scales_from = k_scales + block * T, v_scales + block * T
        if T % BN == 0:
            k_at = k_from + inside[:, None] * D + col[None, :]  # [BN, BD]
            v_at = v_from + inside[None, :] + col[:, None] * T  # [BD, BN]
        else:
            k_at = (k_from + inside * D)[:, None] + col[None, :]
            v_at = (v_from + inside)[None, :] + col[:, None] * T

        if T % BN == 0 and D == BD:
            key = tl.load(k_at)
            key_scale = tl.load(k_scales_from + inside)  # [BN]
        else:
            kv_mask = real[:, None] & (col < D)[None, :]
            key = tl.load(k_at, mask=kv_mask, other=0.0)
            key_scale = tl.load(k_scales_from + inside, mask=real, other=0.0)
        qk = tl.dot(query, tl.trans(key)) * key_scale[None, :]
        if T % BN != 0:
            qk = tl.where(real[None, :], qk, -float("inf"))
        m_i, l_i, p, alpha = scaled_softmax_step(m_i, l_i, qk, query_scale)
        if T % BN == 0 and D == BD:
            value = tl.load(v_at)
            value_scale = tl.load(v_scales_from + inside)
        else:
            v_mask = (col < D)[:, None] & real[None, :]
            value = tl.load(v_at, mask=v_mask, other=0.0)
            value_scale = tl.load(v_scales_from + inside, mask=real, other=0.0)
        largest = tl.max(value_scale, axis=0)
        p = p * (value_scale * (WEIGHT_UNITS / largest))[None, :]  # [BM, BN]
        p = p if ON_GPU else rounded_e4m3(p)
        acc = acc * (alpha * (unit / largest))[:, None]
        acc = tl.dot(p.to(value.dtype), tl.trans(value), acc)
        unit = largest

    acc = acc * ((unit / WEIGHT_UNITS) / tl.where(l_i == 0.0, 1.0, l_i))[:, None]
    sample, block = head // heads, row % queries
    to = out + sample * o_sample + head % heads * o_head
    size, grid = (frames, rows, cols), (grid_rows, grid_cols)
    to, q_mask = out_places(
        to, q_mask, block, token, o_block, o_token, size, grid, BLOCK_T, BLOCK_Y, BLOCK_X
    )
    tl.store(to + col[None, :], acc.to(out.dtype.element_ty), mask=q_mask)


@on_its_device
def forward(
    q: Fp8Rows,
    k: Fp8Rows,
    v: Fp8Rows,
    lists: BlockLists,
    ring: tuple[Fp8Rows, Fp8Rows] | None,
    fill: int,
    grid: Sequence[int],
    dtype: torch.dtype,
) -> Tensor:
    """See ``op_fp8.block_list_attention_fp8`` and ``kernel.forward``; nothing is
    checked here."""
    _, heads, queries, tokens, width = q.values.shape
    out = output(q.values, grid, dtype=dtype)
    old_k, old_v = ring if ring is not None and fill > 0 else (k, v)
    q = Fp8Rows(*(x.contiguous() for x in q))

    tile = max(16, min(128, power_of_two(tokens)))
    target = capability(out.device)
    wide = max(32, head_columns(target, width))
    roomy = target[0] in (9, 10) and tile == 128 and width > 32  # 12.x would spill
    keys = 128 if roomy else 64
    attention_fp8_kernel[(lists.order.numel(), triton.cdiv(tokens, tile))](
        *q,
        *k,
        *v,
        *old_k,
        *old_v,
        out,
        lists.starts,
        lists.blocks,
        lists.order,
        heads,
        queries,
        k.values.stride(1) // (tokens * width),
        old_k.values.stride(1) // (tokens * width),
        fill,
        math.log2(math.e) / math.sqrt(width),
        *out.stride()[:4],
        *geometry(grid),
        T=tokens,
        D=width,
        BM=tile,
        BN=keys,
        BD=wide,
        RING=ring is not None and fill > 0,
        **block_sizes(grid),
        ON_GPU=out.device.type != "cpu",
        num_warps=8 if tile == 128 else 4,
        num_stages=5,
    )
    return out
