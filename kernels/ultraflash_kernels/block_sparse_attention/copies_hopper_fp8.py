"""Copies of blocks and their scales to shared memory, for the attention kernel for
compute capability 9.0 in 8 bits."""

# pyright: reportMissingParameterType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportAssignmentType=false, reportArgumentType=false, reportAttributeAccessIssue=false
# pyright: reportOperatorIssue=false
# Gluon allows no annotation but constexpr on a kernel's parameters and constants.

from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from ultraflash_kernels.block_sparse_attention.kernel_hopper import (
    TOKENS,
    copy_block,
    descriptor,
)

__all__ = [
    "WEIGHT_UNITS",
    "described_keys",
    "described_values",
    "produce",
    "produce_scales",
]

WEIGHT_UNITS: gl.constexpr = gl.constexpr(256.0)
"""Factor on weights before rounding to 8 bits, so that small ones do not underflow."""


@gluon.jit
def listed_block(blocks, count, at, DENSE: gl.constexpr):
    """Return block ``at`` of a list; without lists, the last block comes first."""
    if DENSE:
        index = (at + count - 1) % count
    else:
        index = gl.load(blocks + at)
    return index


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
    STAGES: gl.constexpr,
):
    """Copy the queries of a row, then the keys and values in its list: see
    ``kernel_hopper.produce``. ``row`` also holds the first groups of keys of its head
    in the group and in the ring."""
    q, k, v, ring_k, ring_v = tensors
    sample, head, block, new_first, ring_first = row
    blocks, count = listed
    T: gl.constexpr = q.block_shape[2]
    D: gl.constexpr = q.block_shape[3]
    GROUPS: gl.constexpr = k.block_shape[0]

    copy_block(q, [sample, head, block * T, 0], full[0], smem[0])
    for at in range(count):
        index = listed_block(blocks, count, at, DENSE)
        slot = at % STAGES
        phase = (at // STAGES & 1) ^ 1
        k_full = full[1].index(slot)
        v_full = full[2].index(slot)
        to_k = smem[1].index(slot)
        to_v = smem[2].index(slot)

        if index < fill:
            mbarrier.wait(empty[0].index(slot), phase)
            place = [ring_first + index * GROUPS, 0, 0, 0, 0]
            copy_block(ring_k, place, k_full, to_k)
            mbarrier.wait(empty[1].index(slot), phase)
            copy_block(ring_v, [sample, head, index * D, 0], v_full, to_v)
        else:
            mbarrier.wait(empty[0].index(slot), phase)
            place = [new_first + (index - fill) * GROUPS, 0, 0, 0, 0]
            copy_block(k, place, k_full, to_k)
            mbarrier.wait(empty[1].index(slot), phase)
            if DENSE:
                copy_block(v, [sample, head, 0, index * T], v_full, to_v)
            else:
                copy_block(v, [sample, head, (index - fill) * D, 0], v_full, to_v)


@gluon.jit
def produce_scales(
    pointers,
    scales,
    ready,
    listed,
    fill,
    keys,
    DENSE: gl.constexpr,
    STAGES: gl.constexpr,
):
    """Copy the scales of a list's keys and values, which are part of its blocks of
    keys. Those of values become factors on weights in the unit of their block, which is
    its largest scale; ``units`` are these and their ratios to the ones before."""
    LANES: gl.constexpr = gl.BlockedLayout([4], [32], [1], [0])
    k_scales, v_scales, ring_k_scales, ring_v_scales = pointers
    key_scales, value_factors, units, ratios = scales
    k_full, k_empty = ready
    blocks, count = listed
    T: gl.constexpr = key_scales.shape[1]
    UNITS: gl.constexpr = units.shape[1]
    UNIT_LANES: gl.constexpr = gl.BlockedLayout([2], [32], [1], [0])

    token = gl.arange(0, T, layout=LANES)
    previous = 1.0
    for at in range(count):
        index = listed_block(blocks, count, at, DENSE)
        if DENSE:
            place = index * T + token
            real = place < keys
            key_scale = gl.load(k_scales + place, mask=real, other=0.0)
            value_scale = gl.load(v_scales + place, mask=real, other=0.0)
        else:
            old = index < fill
            place = gl.where(old, index, index - fill) * T + token
            key_scale = gl.load(gl.where(old, ring_k_scales, k_scales) + place)
            value_scale = gl.load(gl.where(old, ring_v_scales, v_scales) + place)

        largest = gl.max(value_scale, axis=0)
        slot = at % STAGES
        mbarrier.wait(k_empty.index(slot), (at // STAGES & 1) ^ 1)
        key_scales.index(slot).store(key_scale)
        value_factors.index(slot).store(value_scale * (WEIGHT_UNITS / largest))
        ratio = previous / largest
        units.index(slot).store(gl.full([UNITS], largest, gl.float32, UNIT_LANES))
        ratios.index(slot).store(gl.full([UNITS], ratio, gl.float32, UNIT_LANES))
        previous = largest
        mbarrier.arrive(k_full.index(slot), count=1)


def described_keys(k: Tensor) -> TensorDescriptor:
    """Describe blocks of 128 tokens of ``k [B, H, keys, D]`` for TMA, reordered within
    groups of 16 tokens.

    A thread of a warp group holds scores of two adjacent keys, but needs weights of
    four. Storing each group in the order 0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11,
    14, 15 makes both sets the same keys: TMA reads it as ``[2, 4, 2]`` with the first
    two axes swapped. The last group may extend beyond ``keys``.
    """
    samples, heads, keys, width = k.shape
    apart = k.stride(1) // width
    groups = -(-((samples * heads - 1) * apart + keys) // 16)
    size = (groups, 2, 4, 2, width)
    strides = (16 * width, 2 * width, 4 * width, width, 1)
    return descriptor(k.as_strided(size, strides), [TOKENS // 16, *size[1:]])


def described_values(v: Tensor, width: int) -> TensorDescriptor:
    """Describe ``width`` rows of 128 tokens of ``v [B, H, rows, tokens]`` for TMA."""
    return descriptor(v, [1, 1, width, TOKENS])
