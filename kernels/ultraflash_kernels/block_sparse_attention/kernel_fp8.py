"""Attention over listed blocks in 8-bit floating point: rows quantised once, both
matmuls in 8 bits, float32 sums."""

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
    softmax_step,
)
from ultraflash_kernels.dispatch import capability, on_its_device, power_of_two
from ultraflash_kernels.fp8_linear.kernel import rounded_e4m3, to_e4m3

__all__ = ["attention_fp8_kernel", "forward", "quantise_blocks", "quantise_blocks_kernel"]

WEIGHT_UNITS: tl.constexpr = tl.constexpr(256.0)
"""Factor on weights before rounding to 8 bits, so that small ones do not underflow."""


@triton.jit
def quantise_blocks_kernel(
    x,
    values,
    scales,
    heads,
    out_blocks,
    first,
    x_sample,
    x_head,
    x_block,
    x_token,
    T: tl.constexpr,
    D: tl.constexpr,
    BT: tl.constexpr,
    BD: tl.constexpr,
    TURNED: tl.constexpr,
    ON_GPU: tl.constexpr,
):
    """Quantise the tokens of block n of ``x [B, H, blocks, T, D]`` to block ``first`` +
    n of ``values``.

    ``values`` is contiguous ``[B, H, out_blocks, T, D]``, or ``[..., D, T]`` where
    ``TURNED``.
    """
    n = tl.program_id(0).to(tl.int64)
    row = tl.program_id(1).to(tl.int64)
    source = x + (row // heads) * x_sample + (row % heads) * x_head + n * x_block
    token = tl.arange(0, BT)  # [BT]
    col = tl.arange(0, BD)  # [BD]
    inside = (token < T)[:, None] & (col < D)[None, :]  # [BT, BD]
    tile = tl.load(
        source + token[:, None].to(tl.int64) * x_token + col[None, :],
        mask=inside,
        other=0.0,
    )
    scaled, scale = to_e4m3(tile.to(tl.float32))
    scaled = scaled if ON_GPU else rounded_e4m3(scaled)
    block = row * out_blocks + first + n
    to = values + block * (T * D)
    to = to + (
        col[None, :] * T + token[:, None] if TURNED else token[:, None] * D + col[None, :]
    )
    tl.store(to, scaled.to(values.dtype.element_ty), mask=inside)
    tl.store(scales + block * T + token, scale, mask=token < T)


@triton.jit(do_not_specialize=["queries", "keys", "frames"])
def attention_fp8_kernel(
    q,
    q_scales,
    k,
    k_scales,
    v,
    v_scales,
    out,
    starts,
    blocks,
    order,
    heads,
    queries,
    keys,
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
    BLOCK_T: tl.constexpr,
    BLOCK_Y: tl.constexpr,
    BLOCK_X: tl.constexpr,
    ON_GPU: tl.constexpr,
):
    """Compute one tile of queries of the next row in ``order``; see
    ``kernel.attention_kernel``.

    ``q``, ``k [B, H, N, T, D]`` and ``v [B, H, N, D, T]`` are contiguous, with a scale
    for every token. Values of one step share the largest of their scales; the remaining
    factor of each scale is folded into the weights.
    """
    row = tl.load(order + tl.program_id(0)).to(tl.int64)
    head = row // queries
    token = tl.program_id(1) * BM + tl.arange(0, BM)  # [BM]
    col = tl.arange(0, BD)  # [BD]
    q_mask = (token < T)[:, None] & (col < D)[None, :]  # [BM, BD]
    query = tl.load(
        q + row * (T * D) + token[:, None] * D + col[None, :], mask=q_mask, other=0.0
    )  # [BM, BD]
    query_scale = tl.load(q_scales + row * T + token, mask=token < T, other=0.0)
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
            block = head * keys + tl.load(blocks + first + at // T)
            inner = tl.multiple_of(at % T, BN)  # otherwise values are read byte by byte
            place = block * T + (inner + step)  # [BN]
            value_at = block * (T * D) + (inner + step)
        else:
            listed = blocks + first + (at + step) // T
            block = head * keys + tl.load(listed, mask=real, other=0)  # [BN]
            place = block * T + (at + step) % T
            value_at = block * (T * D) + (at + step) % T
        if T % BN == 0 and D == BD:
            key = tl.load(k + place[:, None] * D + col[None, :])  # [BN, BD]
            value = tl.load(v + value_at[None, :] + col[:, None] * T)  # [BD, BN]
            key_scale = tl.load(k_scales + place)  # [BN]
            value_scale = tl.load(v_scales + place)
        else:
            kv_mask = real[:, None] & (col < D)[None, :]
            v_mask = (col < D)[:, None] & real[None, :]
            key = tl.load(k + place[:, None] * D + col[None, :], mask=kv_mask, other=0.0)
            value = tl.load(
                v + value_at[None, :] + col[:, None] * T, mask=v_mask, other=0.0
            )
            key_scale = tl.load(k_scales + place, mask=real, other=0.0)
            value_scale = tl.load(v_scales + place, mask=real, other=0.0)
        qk = tl.dot(query, tl.trans(key)) * query_scale[:, None] * key_scale[None, :]
        if T % BN != 0:
            qk = tl.where(real[None, :], qk, -float("inf"))
        m_i, l_i, p, alpha = softmax_step(m_i, l_i, qk, 1.0)
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
def quantise_blocks(
    parts: Sequence[Tensor], *, turned: bool = False
) -> tuple[Tensor, Tensor]:
    """Quantise blocks ``[B, H, N, T, D]`` token by token, joined along N.

    Returns values ``[B, H, N, T, D]``, with the last two axes exchanged where
    ``turned``, and scales ``[B, H, N, T]``.
    """
    samples, heads, _, tokens, width = parts[0].shape
    blocks = sum(part.shape[2] for part in parts)
    inner = (width, tokens) if turned else (tokens, width)
    values = torch.empty(
        (samples, heads, blocks, *inner), dtype=torch.float8_e4m3fn, device=parts[0].device
    )
    scales = torch.empty(
        (samples, heads, blocks, tokens), dtype=torch.float32, device=parts[0].device
    )

    first = 0
    for part in parts:
        part = part if part.stride(-1) == 1 else part.contiguous()
        if part.numel():
            quantise_blocks_kernel[(part.shape[2], samples * heads)](
                part,
                values,
                scales,
                heads,
                blocks,
                first,
                *part.stride()[:4],
                T=tokens,
                D=width,
                BT=power_of_two(tokens),
                BD=power_of_two(width),
                TURNED=turned,
                ON_GPU=part.device.type != "cpu",
                num_warps=8,
                enable_fp_fusion=False,
            )
        first += part.shape[2]
    return values, scales


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
    """See ``op.block_list_attention`` and ``kernel.forward``; nothing is checked
    here."""
    out = output(q, grid)
    _, heads, queries, tokens, width = q.shape
    k_parts, v_parts = [k], [v]
    if ring_k is not None and ring_v is not None and fill > 0:
        k_parts, v_parts = [ring_k[:, :, :fill], k], [ring_v[:, :, :fill], v]
    small_q, q_scales = quantise_blocks([q])
    small_k, k_scales = quantise_blocks(k_parts)
    small_v, v_scales = quantise_blocks(v_parts, turned=True)

    tile = max(16, min(128, power_of_two(tokens)))
    target = capability(q.device)
    wide = max(32, head_columns(target, width))
    roomy = target[0] in (9, 10) and tile == 128 and width > 32  # 12.x would spill
    keys = 128 if roomy else 64
    attention_fp8_kernel[(lists.order.numel(), triton.cdiv(tokens, tile))](
        small_q,
        q_scales,
        small_k,
        k_scales,
        small_v,
        v_scales,
        out,
        lists.starts,
        lists.blocks,
        lists.order,
        heads,
        queries,
        fill + k.shape[2],
        math.log2(math.e) / math.sqrt(width),
        *out.stride()[:4],
        *geometry(grid),
        T=tokens,
        D=width,
        BM=tile,
        BN=keys,
        BD=wide,
        **block_sizes(grid),
        ON_GPU=q.device.type != "cpu",
        num_warps=8 if tile == 128 else 4,
        num_stages=5,
    )
    return out
