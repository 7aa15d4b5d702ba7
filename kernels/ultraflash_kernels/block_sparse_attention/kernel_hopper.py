"""Block-sparse attention for compute capability 9.0 in Gluon: one warp copies blocks by
TMA, two warp groups of 64 queries multiply."""

# pyright: reportMissingParameterType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportAssignmentType=false, reportArgumentType=false, reportAttributeAccessIssue=false
# Gluon allows no annotation but constexpr on a kernel's parameters and constants, and
# takes options such as num_warps beside them.

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia import hopper
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from ultraflash_kernels.block_lists import BlockLists
from ultraflash_kernels.block_sparse_attention.kernel import (
    block_sizes,
    geometry,
    out_places,
    output,
    softmax_step,
)
from ultraflash_kernels.dispatch import on_its_device

__all__ = [
    "REGISTERS",
    "TOKENS",
    "copy_block",
    "dense",
    "descriptor",
    "flat",
    "forward",
    "matrix",
    "multiply_keys",
]

TOKENS = 128
"""Tokens of a block, and channels of a head."""
STAGES = 3
"""Blocks of keys, and of values, in shared memory."""
REGISTERS = {"CONSUMER": 240, "PRODUCER": 24}
"""Registers per thread of the warps that multiply and of the one that copies."""

DTYPES = {
    torch.bfloat16: gl.bfloat16,
    torch.float16: gl.float16,
    torch.float8_e4m3fn: gl.float8e4nv,
}


@gluon.jit
def copy_block(desc, place, full, target):
    """Copy the block at ``place`` to shared memory and arrive at ``full`` when it is
    there."""
    mbarrier.expect(full, target.numel * target.dtype.itemsize)
    tma.async_copy_global_to_shared(desc, place, full, target)


@gluon.jit
def copy_pair(k, v, place, smem, full, empty, at, STAGES: gl.constexpr):
    """Copy keys and values at ``place``, the list's block ``at``, once their buffers
    are free."""
    slot = at % STAGES
    phase = (at // STAGES & 1) ^ 1
    mbarrier.wait(empty[0].index(slot), phase)
    copy_block(k, place, full[1].index(slot), smem[1].index(slot))
    mbarrier.wait(empty[1].index(slot), phase)
    copy_block(v, place, full[2].index(slot), smem[2].index(slot))


@gluon.jit
def produce(
    tensors,
    smem,
    full,
    empty,
    row,
    listed,
    fill,
    DENSE: gl.constexpr,
    T: gl.constexpr,
    STAGES: gl.constexpr,
):
    """Copy the queries of a row, then the keys and values in its list.

    ``row`` is sample, head and query block; ``listed`` the list's address and length.
    Without lists, the last block comes first.
    """
    q, k, v, ring_k, ring_v = tensors
    sample, head, block = row
    blocks, count = listed
    copy_block(q, [sample, head, block * T, 0], full[0], smem[0])
    for at in range(count):
        if DENSE:
            index = (at + count - 1) % count
        else:
            index = gl.load(blocks + at)
        if index < fill:
            place = [sample, head, index * T, 0]
            copy_pair(ring_k, ring_v, place, smem, full, empty, at, STAGES)
        else:
            place = [sample, head, (index - fill) * T, 0]
            copy_pair(k, v, place, smem, full, empty, at, STAGES)


@gluon.jit
def matrix(smem):
    """Return the rows of shared memory ``[..., D]`` as ``[rows, D]``."""
    return smem.reshape([smem.numel // smem.shape[-1], smem.shape[-1]])


@gluon.jit
def multiply_keys(query, keys, zero, at, STAGES: gl.constexpr):
    """Begin the product of queries and the list's block ``at`` of keys."""
    key = matrix(keys.index(at % STAGES)).permute((1, 0))
    return hopper.warpgroup_mma(query, key, zero, use_acc=False, is_async=True)


@gluon.jit
def multiply_values(p, values, v_full, acc, at, STAGES: gl.constexpr):
    """Begin the product of weights and the list's block ``at`` of values, added to
    ``acc``."""
    slot = at % STAGES
    mbarrier.wait(v_full.index(slot), at // STAGES & 1)
    return hopper.warpgroup_mma(p, matrix(values.index(slot)), acc, is_async=True)


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
    """Compute the 64 queries of one half of a block.

    The exponentials of a step run while its predecessor's values are multiplied: the
    keys of the next step are awaited, and weights converted, only between the two,
    because the assembler moves arithmetic across a wait for products, but not across a
    branch, and serialises products whose inputs change while others are in flight.
    """
    MMA: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 128, 16])
    WEIGHTS: gl.constexpr = gl.DotOperandLayout(0, MMA, 2)
    ROWS: gl.constexpr = gl.SliceLayout(1, MMA)
    smem, full, empty, count, keys_left, scale, target = work
    queries, keys, values = smem
    q_full, k_full, v_full = full
    k_empty, v_empty = empty
    dtype: gl.constexpr = queries.dtype
    T: gl.constexpr = queries.shape[2]
    D: gl.constexpr = queries.shape[3]

    mbarrier.wait(q_full, 0)
    query = matrix(queries).slice(64 * HALF, 64)
    zero = gl.full([64, T], 0.0, gl.float32, MMA)
    acc = gl.full([64, D], 0.0, gl.float32, MMA)
    m_i = gl.full([64], -float("inf"), gl.float32, ROWS)
    l_i = gl.full([64], 0.0, gl.float32, ROWS)
    if count > 0:
        mbarrier.wait(k_full.index(0), 0)
        scores = multiply_keys(query, keys, zero, 0, STAGES)
        qk = hopper.warpgroup_mma_wait(0, deps=[scores])
        mbarrier.arrive(k_empty.index(0), count=1)
        if DENSE:
            # Only the first block can be a part of one.
            key = gl.arange(0, T, layout=gl.SliceLayout(0, MMA))
            qk = gl.where((key < keys_left)[None, :], qk, -float("inf"))
        m_i, l_i, p, alpha = softmax_step(m_i, l_i, qk, scale)
        weights = gl.convert_layout(p.to(dtype), WEIGHTS)
        mbarrier.wait(k_full.index(1), 0, pred=count > 1)

        for at in range(1, count):
            scores = multiply_keys(query, keys, zero, at, STAGES)
            sums = multiply_values(weights, values, v_full, acc, at - 1, STAGES)
            qk = hopper.warpgroup_mma_wait(1, deps=[scores])
            mbarrier.arrive(k_empty.index(at % STAGES), count=1)
            m_i, l_i, p, alpha = softmax_step(m_i, l_i, qk, scale)

            following = at + 1
            awaited = k_full.index(following % STAGES)
            mbarrier.wait(awaited, following // STAGES & 1, pred=following < count)
            held = [sums, p, l_i, alpha]
            acc, p, l_i, alpha = hopper.warpgroup_mma_wait(0, deps=held)
            mbarrier.arrive(v_empty.index((at - 1) % STAGES), count=1)
            weights = gl.convert_layout(p.to(dtype), WEIGHTS)
            acc = acc * alpha[:, None]

        sums = multiply_values(weights, values, v_full, acc, count - 1, STAGES)
        acc = hopper.warpgroup_mma_wait(0, deps=[sums])

    # A row with an empty list returns zeros.
    to, block, tokens_left, o_block, o_token, size, grid = target
    acc = acc / gl.where(l_i == 0.0, 1.0, l_i)[:, None]
    token = 64 * HALF + gl.arange(0, 64, layout=ROWS)
    col = gl.arange(0, D, layout=gl.SliceLayout(0, MMA))
    mask = (token < tokens_left)[:, None]
    to, mask = out_places(
        to, mask, block, token, o_block, o_token, size, grid, BLOCK_T, BLOCK_Y, BLOCK_X
    )
    gl.store(to + col[None, :], acc.to(dtype), mask=mask)


# One program for every group of a clip.
@gluon.jit(do_not_specialize=["heads", "queries", "tokens", "keys", "fill", "frames"])
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
    tokens,
    keys,
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
    DENSE: gl.constexpr,
    STAGES: gl.constexpr,
    CONSUMER: gl.constexpr,
    PRODUCER: gl.constexpr,
    BLOCK_T: gl.constexpr,
    BLOCK_Y: gl.constexpr,
    BLOCK_X: gl.constexpr,
):
    """Compute the next row in ``order``: see ``kernel.attention_kernel``. ``q``, ``k``,
    ``v`` and the ring are descriptors of ``[B, H, tokens, D]`` that copy ``[1, 1, T,
    D]``. A head has ``tokens`` queries; with ``DENSE`` they attend to all of its
    ``keys``, and there are no lists. ``CONSUMER`` and ``PRODUCER`` are registers per
    thread.
    """
    T: gl.constexpr = q.block_shape[2]
    D: gl.constexpr = q.block_shape[3]
    if DENSE:
        row = gl.program_id(0)
    else:
        row = gl.load(order + gl.program_id(0))
    sample = row // queries // heads
    head = row // queries % heads
    block = row % queries
    if DENSE:
        count = (keys + T - 1) // T
        listed = (blocks, count)
    else:
        first = gl.load(starts + row)
        count = gl.load(starts + row + 1) - first
        listed = (blocks + first, count)

    smem = (
        gl.allocate_shared_memory(q.dtype, [1, 1, T, D], q.layout),
        gl.allocate_shared_memory(k.dtype, [STAGES, 1, 1, T, D], k.layout),
        gl.allocate_shared_memory(v.dtype, [STAGES, 1, 1, T, D], v.layout),
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
        mbarrier.init(full[1].index(slot), count=1)
        mbarrier.init(full[2].index(slot), count=1)
        # Both consumers release a buffer.
        mbarrier.init(empty[0].index(slot), count=2)
        mbarrier.init(empty[1].index(slot), count=2)
    hopper.fence_async_shared()

    to = out + sample.to(gl.int64) * o_sample + head.to(gl.int64) * o_head
    size = (frames, rows, cols)
    grid = (grid_rows, grid_cols)
    target = (to, block.to(gl.int64), tokens - block * T, o_block, o_token, size, grid)
    work = (smem, full, empty, count, keys - (count - 1) * T, scale, target)
    tensors = (q, k, v, ring_k, ring_v)
    place = (sample, head, block)
    gl.warp_specialize(
        [
            (consume, (work, 0, DENSE, STAGES, BLOCK_T, BLOCK_Y, BLOCK_X)),
            (consume, (work, 1, DENSE, STAGES, BLOCK_T, BLOCK_Y, BLOCK_X)),
            (
                produce,
                (tensors, smem, full, empty, place, listed, fill, DENSE, T, STAGES),
            ),
        ],
        [4, 1],
        [CONSUMER, PRODUCER],
    )


def descriptor(x: Tensor, block: Sequence[int] = ()) -> TensorDescriptor:
    """Describe blocks of ``x`` for TMA, those of 128 tokens of ``[B, H, tokens, D]`` if
    ``block`` is omitted; what lies beyond the end is zero."""
    block = list(block) or [1, 1, TOKENS, x.shape[3]]
    layout = gl.NVMMASharedLayout.get_default_for(block, DTYPES[x.dtype])
    return TensorDescriptor.from_tensor(x, block, layout)


def flat(x: Tensor) -> Tensor:
    """Return ``[B, H, N, T, D]`` as a view ``[B, H, N * T, D]``."""
    samples, heads, count, tokens, width = x.shape
    strides = (*x.stride()[:2], *x.stride()[3:])
    return x.as_strided((samples, heads, count * tokens, width), strides)


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
    ring = ring_k is not None and ring_v is not None and fill > 0
    old_k, old_v = (ring_k, ring_v) if ring else (k, v)
    tensors = [flat(x) for x in (q, k, v, old_k, old_v)]
    _launch(tensors, out, lists.starts, lists.blocks, lists.order, fill, grid)
    return out


@on_its_device
def dense(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """See ``op.dense_attention``; nothing is checked here."""
    samples, heads, tokens, width = q.shape
    out = q.new_empty((samples, tokens, heads, width)).transpose(1, 2)
    _launch([q, k, v, k, v], out.unsqueeze(2), None, None, None, 0, ())
    return out


def _launch(
    tensors: Sequence[Tensor],
    out: Tensor,
    starts: Tensor | None,
    blocks: Tensor | None,
    order: Tensor | None,
    fill: int,
    grid: Sequence[int],
) -> None:
    """Launch the kernel for ``q``, ``k``, ``v`` and a ring ``[B, H, tokens, D]``; to
    all keys if there are no lists."""
    q, k = tensors[:2]
    samples, heads, tokens, width = q.shape
    queries = -(-tokens // TOKENS)
    o_sample, o_head, o_block, o_token = out.stride()[:4]

    attention_kernel[(samples * heads * queries,)](
        *map(descriptor, tensors),
        out,
        starts,
        blocks,
        order,
        heads,
        queries,
        tokens,
        k.shape[2],
        fill,
        math.log2(math.e) / math.sqrt(width),
        o_sample,
        o_head,
        o_block if starts is not None else TOKENS * o_token,
        o_token,
        *geometry(grid),
        DENSE=starts is None,
        STAGES=STAGES,
        **REGISTERS,
        **block_sizes(grid),
        num_warps=4,
    )
