"""Norm and rotation written in 8 bits: bit for bit what quantising afterwards gives."""

import math

import pytest
import torch
from torch import Tensor

from ultraflash_kernels.dispatch import Impl, KernelUnsupportedError
from ultraflash_kernels.fp8_linear import Fp8Rows, quantise_rows
from ultraflash_kernels.rms_norm_rope import (
    AxisTables,
    rms_norm_rope,
    rms_norm_rope_fp8,
    rms_norm_rope_means,
    rms_norm_rope_means_fp8,
)
from ultraflash_kernels.testing import DEVICE
from ultraflash_kernels.token_order import blocks_of

Three = tuple[int, int, int]
Rows = tuple[Fp8Rows, Fp8Rows, Fp8Rows, Tensor, Tensor]
ThreeRows = tuple[Fp8Rows, Fp8Rows, Fp8Rows]

SHAPES = [
    pytest.param(1, 2, (1, 1, 1), (1, 1, 1), torch.float32, id="one pair"),
    pytest.param(3, 16, (3, 1, 3), (2, 2, 2), torch.float32, id="padding on every axis"),
    pytest.param(2, 32, (1, 5, 9), (1, 5, 9), torch.float32, id="45 tokens a block"),
    pytest.param(1, 128, (1, 4, 8), (2, 4, 8), torch.float16, id="heads as published"),
]


def example(
    batch: int, heads: int, head: int, size: Three, dtype: torch.dtype
) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[Tensor, Tensor], AxisTables]:
    """Projections, weights and tables; one token is zero, one is much larger than the
    others."""
    draw = torch.Generator().manual_seed(head)
    shape = (batch, math.prod(size), heads * head)
    q, k, v = (2 * torch.randn(shape, generator=draw) for _ in range(3))
    for x in (q, k, v):
        x[:, -1] = 0.0
        x[:, 0] *= 300.0
    weights = [1 + torch.randn(heads * head, generator=draw) / 4 for _ in range(2)]
    side = head // 6
    turns = [
        torch.randn(count, pairs, dtype=torch.complex64, generator=draw).sgn().to(DEVICE)
        for count, pairs in zip(size, (head // 2 - 2 * side, side, side), strict=True)
    ]
    q, k, v, q_weight, k_weight = (x.to(DEVICE, dtype) for x in (q, k, v, *weights))
    return (q, k, v), (q_weight, k_weight), AxisTables.of(*turns)


def quantised_afterwards(
    qkv: tuple[Tensor, Tensor, Tensor],
    weights: tuple[Tensor, Tensor],
    tables: AxisTables,
    size: Three,
    block: Three,
    impl: Impl,
) -> Rows:
    q, k, v, q_mean, k_mean = rms_norm_rope_means(
        *qkv, *weights, tables, size=size, block=block, impl=impl
    )
    q_rows, k_rows, v_rows = (quantise_rows(x, impl="reference") for x in (q, k, v))
    return q_rows, k_rows, v_rows.turned(), q_mean, k_mean


def assert_same(found: Rows | ThreeRows, expected: Rows | ThreeRows) -> None:
    for got, wanted in zip(found[:3], expected[:3], strict=True):
        assert isinstance(got, Fp8Rows) and isinstance(wanted, Fp8Rows)
        assert torch.equal(got.scales, wanted.scales)
        assert torch.equal(got.values.float(), wanted.values.float())
    for mean, wanted in zip(found[3:], expected[3:], strict=True):
        assert isinstance(mean, Tensor) and isinstance(wanted, Tensor)
        assert torch.equal(mean, wanted)


@pytest.mark.parametrize("impl", ["reference", "triton"])
@pytest.mark.parametrize(("heads", "head", "size", "block", "dtype"), SHAPES)
def test_rows_are_those_that_quantising_afterwards_gives_and_means_are_exact(
    heads: int,
    head: int,
    size: Three,
    block: Three,
    dtype: torch.dtype,
    impl: Impl,
) -> None:
    qkv, weights, tables = example(1, heads, head, size, dtype)
    found = rms_norm_rope_means_fp8(
        *qkv, *weights, tables, size=size, block=block, impl=impl
    )
    assert_same(found, quantised_afterwards(qkv, weights, tables, size, block, impl))


@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_keys_and_values_are_written_to_a_slot_of_a_ring_and_nowhere_else(
    impl: Impl,
) -> None:
    size, block = (2, 2, 3), (2, 2, 2)
    qkv, weights, tables = example(2, 3, 16, size, torch.float32)
    blocks = math.prod(blocks_of(size, block))
    sides = (((8, 16), (8, 1)), ((16, 8), (1, 8)))
    around = [
        Fp8Rows(
            torch.full((2, 3, 4 + blocks, *values), math.nan, device=DEVICE).to(
                torch.float8_e4m3fn
            ),
            torch.full((2, 3, 4 + blocks, *scales), math.nan, device=DEVICE),
        )
        for values, scales in sides
    ]
    k_slot, v_slot = (Fp8Rows(*(x[:, :, 1 : 1 + blocks] for x in rows)) for rows in around)
    found = rms_norm_rope_means_fp8(
        *qkv, *weights, tables, size=size, block=block, kv_out=(k_slot, v_slot), impl=impl
    )
    assert found[1] is k_slot and found[2] is v_slot
    assert_same(found, quantised_afterwards(qkv, weights, tables, size, block, impl))
    for rows in around:
        for x in rows:
            assert x[:, :, :1].float().isnan().all()
            assert x[:, :, 1 + blocks :].float().isnan().all()


def test_destinations_and_heads_that_do_not_fit_are_refused() -> None:
    size = block = (2, 2, 2)
    qkv, weights, tables = example(1, 2, 16, size, torch.float32)
    *_, k_rows, v_rows, _, _ = rms_norm_rope_means_fp8(
        *qkv, *weights, tables, size=size, block=block
    )
    with pytest.raises(ValueError, match="a destination must be float8_e4m3fn"):
        rms_norm_rope_means_fp8(
            *qkv, *weights, tables, size=size, block=block, kv_out=(v_rows, k_rows)
        )
    qkv, weights, tables = example(1, 2, 12, size, torch.float32)
    with pytest.raises(KernelUnsupportedError, match="12 wide, expected a power of two"):
        rms_norm_rope_means_fp8(
            *qkv, *weights, tables, size=size, block=block, impl="triton"
        )
    found = rms_norm_rope_means_fp8(*qkv, *weights, tables, size=size, block=block)
    assert_same(found, quantised_afterwards(qkv, weights, tables, size, block, "reference"))


# Token by token, without blocks


def tokens_quantised_afterwards(
    qkv: tuple[Tensor, Tensor, Tensor],
    weights: tuple[Tensor, Tensor],
    tables: AxisTables,
    size: Three,
    impl: Impl,
) -> ThreeRows:
    frames = (size[0], size[1] * size[2])
    q, k, v = (x.unflatten(1, frames) for x in qkv)
    wide = rms_norm_rope(
        q, k, v, *weights, tables, size=size, block=(1, *size[1:]), impl=impl
    )
    q_rows, k_rows, v_rows = (
        quantise_rows(x.flatten(2, 3), impl="reference") for x in wide
    )
    return q_rows, k_rows, v_rows.turned()


@pytest.mark.parametrize("impl", ["reference", "triton"])
@pytest.mark.parametrize(
    ("heads", "head", "size", "dtype"),
    [
        pytest.param(1, 2, (1, 1, 1), torch.float32, id="one pair"),
        pytest.param(3, 16, (3, 1, 3), torch.float32, id="less than a tile"),
        pytest.param(2, 32, (2, 5, 9), torch.float32, id="90 tokens"),
        pytest.param(1, 128, (1, 4, 8), torch.float16, id="heads as published"),
    ],
)
def test_tokens_are_those_that_quantising_afterwards_gives(
    heads: int, head: int, size: Three, dtype: torch.dtype, impl: Impl
) -> None:
    qkv, weights, tables = example(1, heads, head, size, dtype)
    found = rms_norm_rope_fp8(*qkv, *weights, tables, size=size, impl=impl)
    assert_same(found, tokens_quantised_afterwards(qkv, weights, tables, size, impl))


def caches(tokens: int, capacity: int) -> tuple[list[Fp8Rows], tuple[Fp8Rows, Fp8Rows]]:
    """Return caches of two streams with three heads of 16 that hold NaN, and their
    ``tokens`` from the third on."""
    around = [
        Fp8Rows(
            torch.full((2, 3, *values), math.nan, device=DEVICE).to(torch.float8_e4m3fn),
            torch.full((2, 3, *scales), math.nan, device=DEVICE),
        )
        for values, scales in (
            ((capacity, 16), (capacity, 1)),
            ((16, capacity), (1, capacity)),
        )
    ]
    k_slot = Fp8Rows(*(x[:, :, 2 : 2 + tokens] for x in around[0]))
    v_slot = Fp8Rows(*(x[..., 2 : 2 + tokens] for x in around[1]))
    return around, (k_slot, v_slot)


@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_tokens_are_written_to_their_place_in_a_cache_and_nowhere_else(impl: Impl) -> None:
    size = (2, 2, 3)
    qkv, weights, tables = example(2, 3, 16, size, torch.float32)
    around, slots = caches(12, 20)
    found = rms_norm_rope_fp8(*qkv, *weights, tables, size=size, kv_out=slots, impl=impl)
    assert found[1] is slots[0] and found[2] is slots[1]
    assert_same(found, tokens_quantised_afterwards(qkv, weights, tables, size, impl))
    for rows, axis in zip(around, (2, 3), strict=True):
        for x in rows:
            before, _, after = x.float().split([2, 12, 6], dim=axis)
            assert before.isnan().all() and after.isnan().all()


def test_places_and_tokens_that_do_not_fit_are_refused() -> None:
    size = (2, 2, 3)
    qkv, weights, tables = example(2, 3, 16, size, torch.float32)
    _, (k_slot, v_slot) = caches(12, 20)
    for kv_out in (
        (v_slot, k_slot),
        (k_slot, Fp8Rows(v_slot.values, v_slot.scales.mT)),
        (k_slot, Fp8Rows(v_slot.values.mT.contiguous().mT, v_slot.scales)),
    ):
        with pytest.raises(ValueError, match="rms_norm_rope_fp8: a destination must be"):
            rms_norm_rope_fp8(*qkv, *weights, tables, size=size, kv_out=kv_out)
    with pytest.raises(ValueError, match=r"q, k, v must be \[B, 18, D\]"):
        rms_norm_rope_fp8(*qkv, *weights, tables, size=(3, 2, 3))
