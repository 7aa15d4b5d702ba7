"""Attention in 8 bits for compute capability 9.0 in Gluon: one warp copies blocks by
TMA, one their scales, two warp groups of 64 queries multiply."""

# pyright: reportMissingParameterType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportAssignmentType=false, reportArgumentType=false, reportAttributeAccessIssue=false
# pyright: reportOperatorIssue=false, reportIndexIssue=false
# Gluon allows no annotation but constexpr on a kernel's parameters and constants, and
# takes options such as num_warps beside them.

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia import hopper
from triton.experimental.gluon.language.nvidia.hopper import mbarrier

from ultraflash_kernels.block_lists import BlockLists
from ultraflash_kernels.block_sparse_attention.copies_hopper_fp8 import (
    WEIGHT_UNITS,
    described_keys,
    described_values,
    produce,
    produce_scales,
)
from ultraflash_kernels.block_sparse_attention.kernel import (
    block_sizes,
    geometry,
    out_places,
    output,
)
from ultraflash_kernels.block_sparse_attention.kernel_hopper import (
    TOKENS,
    descriptor,
    flat,
    matrix,
    multiply_keys,
)
from ultraflash_kernels.dispatch import on_its_device
from ultraflash_kernels.fp8_linear import Fp8Rows

__all__ = ["REGISTERS", "REGISTERS_DENSE", "dense", "forward"]

STAGES = 5
"""Blocks of keys, and of values, in shared memory."""
REGISTERS = {"CONSUMER": 232, "PRODUCER": 40}
"""Registers per thread of the warps that multiply and of those that copy."""
REGISTERS_DENSE = {"CONSUMER": 240, "PRODUCER": 24}
"""The same without lists."""


@gluon.jit
def by_score(smem, MMA: gl.constexpr):
    """Load numbers ``[T]`` of a block's tokens in the order of its scores, ``[1, T]``:
    scores of a group are those of tokens 0, 1, 4, 5, 8, 9, 12, 13, then the others."""
    T: gl.constexpr = smem.shape[0]
    LANES: gl.constexpr = gl.DistributedLinearLayout(
        [[1], [2], [16], [32], [64]], [[4], [8], [0], [0], [0]], [[0], [0]], [], [128]
    )
    x = smem.load(LANES).reshape([T // 16, 4, 2, 2]).permute((0, 2, 1, 3)).reshape([T])
    return gl.convert_layout(x, gl.SliceLayout(0, MMA), assert_trivial=True)[None, :]


@gluon.jit
def round_weights(p, MMA: gl.constexpr):
    """Return ``p [64, T]``, in the order of scores, as 8-bit numbers in the order of
    tokens. No number changes its thread; four of them make a register."""
    ROWS: gl.constexpr = p.shape[0]
    T: gl.constexpr = p.shape[1]
    p = p.reshape([ROWS, T // 16, 2, 4, 2]).permute((0, 1, 3, 2, 4)).reshape([ROWS, T])
    p = gl.convert_layout(p, gl.DotOperandLayout(0, MMA, 4), assert_trivial=True)
    return gl.inline_asm_elementwise(
        """
        {
        .reg .b16 low, high;
        cvt.rn.satfinite.e4m3x2.f32 low, $2, $1;
        cvt.rn.satfinite.e4m3x2.f32 high, $4, $3;
        mov.b32 $0, {low, high};
        }
        """,
        "=r,f,f,f,f",
        [p],
        dtype=gl.float8e4nv,
        is_pure=True,
        pack=4,
    )


@gluon.jit
def weigh(
    qk,
    m_i,
    l_i,
    scale,
    scales,
    slot,
    keys_left,
    PARTIAL: gl.constexpr,
    MMA: gl.constexpr,
):
    """Accumulate scores ``qk [64, T]`` of the block in ``slot`` in the online softmax.

    ``m_i`` and ``l_i`` are its maximum and its sum, ``scale`` is that of each query
    ``[64]``. With ``PARTIAL`` only the first ``keys_left`` keys exist. Returns the next
    maximum and sum, factors on values and the factor ``[64]`` on earlier values.
    """
    key_scales, value_factors, _, ratios = scales
    qk = qk * by_score(key_scales.index(slot), MMA)
    if PARTIAL:
        at = gl.arange(0, qk.shape[1], layout=gl.SliceLayout(0, MMA))
        key = at // 16 * 16 + at % 8 // 2 * 4 + at // 8 % 2 * 2 + at % 2
        qk = gl.where((key < keys_left)[None, :], qk, -float("inf"))
    m_new = gl.maximum(m_i, gl.max(qk, axis=1) * scale)
    p = gl.exp2(qk * scale[:, None] - m_new[:, None])
    alpha = gl.exp2(m_i - m_new)
    l_i = l_i * alpha + gl.sum(p, axis=1)
    p = p * by_score(value_factors.index(slot), MMA)
    alpha = alpha * ratios.index(slot).load(gl.SliceLayout(1, MMA))
    return m_new, l_i, p, alpha


@gluon.jit
def multiply_values(weights, values, zero, at, STAGES: gl.constexpr):
    """Begin the product of weights and the list's block ``at`` of values."""
    value = matrix(values.index(at % STAGES)).permute((1, 0))
    return hopper.warpgroup_mma(weights, value, zero, use_acc=False, is_async=True)


@gluon.jit
def consume(
    work,
    HALF: gl.constexpr,
    DENSE: gl.constexpr,
    STAGES: gl.constexpr,
    BLOCK_T: gl.constexpr,
    BLOCK_Y: gl.constexpr,
    BLOCK_X: gl.constexpr,
):
    """Compute the 64 queries of one half of a block: see ``kernel_hopper.consume``.

    Weights pass through shared memory, since 64 numbers of 8 bits that stay in
    registers from one step to the next take a register each. Values of each block are
    summed on their own, since products in 8 bits are added with fewer bits than float32
    has.
    """
    MMA: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 128, 32])
    ROWS: gl.constexpr = gl.SliceLayout(1, MMA)
    smem, scales, full, empty, count, keys_left, q_scales, scale, target = work
    queries, keys, values, weights = smem
    q_full, k_full, v_full = full
    k_empty, v_empty = empty
    to, block, tokens_left, o_block, o_token, size, grid = target
    T: gl.constexpr = queries.shape[2]
    D: gl.constexpr = queries.shape[3]
    FIRST: gl.constexpr = 2 * HALF

    token = 64 * HALF + gl.arange(0, 64, layout=ROWS)
    scale = scale * gl.load(q_scales + token, mask=token < tokens_left, other=1.0)
    mbarrier.wait(q_full, 0)
    query = matrix(queries).slice(64 * HALF, 64)
    zero = gl.full([64, T], 0.0, gl.float32, MMA)
    none = gl.full([64, D], 0.0, gl.float32, MMA)
    acc = none
    m_i = gl.full([64], -float("inf"), gl.float32, ROWS)
    l_i = gl.full([64], 0.0, gl.float32, ROWS)
    if count > 0:
        mbarrier.wait(k_full.index(0), 0)
        scores = multiply_keys(query, keys, zero, 0, STAGES)
        qk = hopper.warpgroup_mma_wait(0, deps=[scores])
        # Only the first block can be a part of one.
        m_i, l_i, p, alpha = weigh(qk, m_i, l_i, scale, scales, 0, keys_left, DENSE, MMA)
        mbarrier.arrive(k_empty.index(0), count=1)
        weights.index(FIRST).store(round_weights(p, MMA))
        hopper.fence_async_shared()
        mbarrier.wait(v_full.index(0), 0)

        for at in range(1, count):
            slot = at % STAGES
            mbarrier.wait(k_full.index(slot), at // STAGES & 1)
            scores = multiply_keys(query, keys, zero, at, STAGES)
            last = weights.index(FIRST + (at - 1) % 2)
            found = multiply_values(last, values, none, at - 1, STAGES)
            qk = hopper.warpgroup_mma_wait(1, deps=[scores])
            m_i, l_i, p, following = weigh(qk, m_i, l_i, scale, scales, slot, 0, False, MMA)
            mbarrier.arrive(k_empty.index(slot), count=1)
            weights.index(FIRST + at % 2).store(round_weights(p, MMA))
            hopper.fence_async_shared()

            mbarrier.wait(v_full.index(slot), at // STAGES & 1)
            held = [found, l_i, following]
            found, l_i, following = hopper.warpgroup_mma_wait(0, deps=held)
            mbarrier.arrive(v_empty.index((at - 1) % STAGES), count=1)
            acc = acc * alpha[:, None] + found
            alpha = following

        last = weights.index(FIRST + (count - 1) % 2)
        found = multiply_values(last, values, none, count - 1, STAGES)
        found = hopper.warpgroup_mma_wait(0, deps=[found])
        acc = acc * alpha[:, None] + found
        unit = scales[2].index((count - 1) % STAGES).load(ROWS)
        acc = acc * (unit / WEIGHT_UNITS / l_i)[:, None]

    # A row with an empty list returns zeros.
    col = gl.arange(0, D, layout=gl.SliceLayout(0, MMA))
    mask = (token < tokens_left)[:, None]
    to, mask = out_places(
        to, mask, block, token, o_block, o_token, size, grid, BLOCK_T, BLOCK_Y, BLOCK_X
    )
    gl.store(to + col[None, :], acc.to(to.dtype.element_ty), mask=mask)


# One program for every group of a clip.
@gluon.jit(do_not_specialize=["heads", "queries", "tokens", "keys", "fill", "frames"])
def attention_kernel(
    q,
    k,
    v,
    ring_k,
    ring_v,
    q_scales,
    k_scales,
    v_scales,
    ring_k_scales,
    ring_v_scales,
    out,
    starts,
    blocks,
    order,
    heads,
    queries,
    tokens,
    keys,
    fill,
    apart,
    ring_apart,
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
    DENSE: gl.constexpr,
    STAGES: gl.constexpr,
    CONSUMER: gl.constexpr,
    PRODUCER: gl.constexpr,
    BLOCK_T: gl.constexpr,
    BLOCK_Y: gl.constexpr,
    BLOCK_X: gl.constexpr,
):
    """Compute the next row in ``order``: see ``kernel_hopper.attention_kernel``.

    ``q`` describes ``[B, H, tokens, D]``, ``v`` ``[B, H, D, keys]`` or, with lists,
    ``[B, H, N * D, T]``, ``k`` see ``described_keys``; so does the ring. Heads of keys,
    values and their scales are ``apart`` or ``ring_apart`` tokens apart, queries and
    their scales are contiguous.
    """
    T: gl.constexpr = q.block_shape[2]
    D: gl.constexpr = q.block_shape[3]
    if DENSE:
        row = gl.program_id(0)
    else:
        row = gl.load(order + gl.program_id(0))
    line = row // queries
    sample = line // heads
    head = line % heads
    block = row % queries
    if DENSE:
        count = (keys + T - 1) // T
        listed = (blocks, count)
    else:
        first = gl.load(starts + row)
        count = gl.load(starts + row + 1) - first
        listed = (blocks + first, count)

    plain: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    swizzled: gl.constexpr = gl.NVMMASharedLayout(128, 8)
    smem = (
        gl.allocate_shared_memory(q.dtype, [1, 1, T, D], q.layout),
        gl.allocate_shared_memory(k.dtype, [STAGES, T // 16, 2, 4, 2, D], k.layout),
        gl.allocate_shared_memory(v.dtype, [STAGES, 1, 1, D, T], v.layout),
        # Two buffers of each consumer.
        gl.allocate_shared_memory(q.dtype, [4, 64, T], swizzled),
    )
    scales = (
        gl.allocate_shared_memory(gl.float32, [STAGES, T], plain),
        gl.allocate_shared_memory(gl.float32, [STAGES, T], plain),
        gl.allocate_shared_memory(gl.float32, [STAGES, 64], plain),
        gl.allocate_shared_memory(gl.float32, [STAGES, 64], plain),
    )
    barrier: gl.constexpr = mbarrier.MBarrierLayout()
    full = (
        gl.allocate_shared_memory(gl.int64, [1], barrier),
        gl.allocate_shared_memory(gl.int64, [STAGES, 1], barrier),
        gl.allocate_shared_memory(gl.int64, [STAGES, 1], barrier),
    )
    empty = (
        gl.allocate_shared_memory(gl.int64, [STAGES, 1], barrier),
        gl.allocate_shared_memory(gl.int64, [STAGES, 1], barrier),
    )
    mbarrier.init(full[0], count=1)
    for slot in gl.static_range(STAGES):
        # Keys and their scales come from two warps.
        mbarrier.init(full[1].index(slot), count=2)
        mbarrier.init(full[2].index(slot), count=1)
        # Both consumers release a buffer.
        mbarrier.init(empty[0].index(slot), count=2)
        mbarrier.init(empty[1].index(slot), count=2)
    hopper.fence_async_shared()

    to = out + sample.to(gl.int64) * o_sample + head.to(gl.int64) * o_head
    size = (frames, rows, cols)
    grid = (grid_rows, grid_cols)
    target = (to, block.to(gl.int64), tokens - block * T, o_block, o_token, size, grid)
    keys_left = keys - (count - 1) * T
    own = q_scales + line.to(gl.int64) * tokens + block * T
    work = (smem, scales, full, empty, count, keys_left, own, scale, target)
    tensors = (q, k, v, ring_k, ring_v)
    place = (sample, head, block, line * (apart // 16), line * (ring_apart // 16))
    new_at = line.to(gl.int64) * apart
    ring_at = line.to(gl.int64) * ring_apart
    pointers = (
        k_scales + new_at,
        v_scales + new_at,
        ring_k_scales + ring_at,
        ring_v_scales + ring_at,
    )
    ready = (full[1], empty[0])
    gl.warp_specialize(
        [
            (consume, (work, 0, DENSE, STAGES, BLOCK_T, BLOCK_Y, BLOCK_X)),
            (consume, (work, 1, DENSE, STAGES, BLOCK_T, BLOCK_Y, BLOCK_X)),
            (produce, (tensors, smem, full, empty, place, listed, fill, DENSE, STAGES)),
            (
                produce_scales,
                (pointers, scales, ready, listed, fill, keys, DENSE, STAGES),
            ),
        ],
        [4, 1, 1],
        [CONSUMER, PRODUCER, PRODUCER],
    )


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
    """See ``op_fp8.block_list_attention_fp8`` and ``kernel_hopper.forward``; nothing is
    checked here."""
    out = output(q.values, grid, dtype=dtype)
    old_k, old_v = ring if ring is not None and fill > 0 else (k, v)
    rows = [Fp8Rows(flat(x.values), x.scales) for x in (k, v, old_k, old_v)]
    q = Fp8Rows(*(x.contiguous() for x in q))
    q = Fp8Rows(flat(q.values), q.scales)
    _launch([q, *rows], out, lists.starts, lists.blocks, lists.order, fill, grid)
    return out


@on_its_device
def dense(q: Fp8Rows, k: Fp8Rows, v: Fp8Rows, dtype: torch.dtype) -> Tensor:
    """See ``op_dense_fp8.dense_attention_fp8``; nothing is checked here."""
    samples, heads, tokens, width = q.values.shape
    out = q.values.new_empty((samples, tokens, heads, width), dtype=dtype)
    out = out.transpose(1, 2)
    q = Fp8Rows(*(x.contiguous() for x in q))
    _launch([q, k, v, k, v], out.unsqueeze(2), None, None, None, 0, ())
    return out


def _launch(
    rows: Sequence[Fp8Rows],
    out: Tensor,
    starts: Tensor | None,
    blocks: Tensor | None,
    order: Tensor | None,
    fill: int,
    grid: Sequence[int],
) -> None:
    """Launch the kernel for ``q``, ``k``, ``v`` and a ring with tokens of whole heads
    in one axis; to all keys if there are no lists."""
    q, k, v, old_k, old_v = rows
    samples, heads, tokens, width = q.values.shape
    queries = -(-tokens // TOKENS)
    o_sample, o_head, o_block, o_token = out.stride()[:4]
    registers = REGISTERS if starts is not None else REGISTERS_DENSE

    attention_kernel[(samples * heads * queries,)](
        descriptor(q.values),
        described_keys(k.values),
        described_values(v.values, width),
        described_keys(old_k.values),
        described_values(old_v.values, width),
        *(x.scales for x in rows),
        out,
        starts,
        blocks,
        order,
        heads,
        queries,
        tokens,
        k.values.shape[2],
        fill,
        k.values.stride(1) // width,
        old_k.values.stride(1) // width,
        math.log2(math.e) / math.sqrt(width),
        o_sample,
        o_head,
        o_block if starts is not None else TOKENS * o_token,
        o_token,
        *geometry(grid),
        DENSE=starts is None,
        STAGES=STAGES,
        **registers,
        **block_sizes(grid),
        num_warps=4,
    )
