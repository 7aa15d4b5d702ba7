"""Norm, rotation and scatter: reference against a loop over tokens and pairs, kernel
against reference."""

import cmath
import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from ultraflash_kernels.dispatch import KERNEL_DTYPES, Impl
from ultraflash_kernels.rms_norm_rope import AxisTables, rms_norm_rope, rms_norm_rope_means
from ultraflash_kernels.testing import DEVICE, DTYPES, TOLERANCE
from ultraflash_kernels.token_order import drop_padding

Three = tuple[int, int, int]
Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]

SHAPES = [
    pytest.param(1, 1, 2, (1, 1, 1), (1, 1, 1), id="one pair"),
    pytest.param(2, 3, 10, (3, 3, 3), (2, 2, 2), id="padding on every axis"),
    pytest.param(1, 5, 12, (2, 4, 4), (1, 4, 4), id="frames as blocks"),
    pytest.param(1, 1, 126, (1, 37, 1), (1, 8, 1), id="odd sizes"),
]


def angle(position: int, pair: int, pairs: int) -> float:
    return position * 10000.0 ** (-pair / pairs)


def tables_for(
    head: int, size: Three, *, first_frame: int = 5, spare: int = 1
) -> AxisTables:
    """Tables of the published split of a head's pairs, a little longer than need be."""
    side = head // 6
    axes: list[Tensor] = []
    for first, count, pairs in zip(
        (first_frame, 0, 0), size, (head // 2 - 2 * side, side, side), strict=True
    ):
        turns = [
            [cmath.rect(1, angle(first + at, pair, pairs)) for pair in range(pairs)]
            for at in range(count + spare)
        ]
        axes.append(
            torch.tensor(turns, dtype=torch.complex128)
            .view(count + spare, pairs)
            .to(DEVICE)
        )
    return AxisTables.of(*axes)


def example(
    batch: int, heads: int, head: int, size: Three, block: Three, dtype: torch.dtype
) -> Inputs:
    """q, k, v with NaN in the padding, and both weights."""
    draw = torch.Generator().manual_seed(head)
    blocks = math.prod(-(-n // b) for n, b in zip(size, block, strict=True))
    shape = (batch, blocks, math.prod(block), heads * head)
    qkv = [2 * torch.randn(shape, generator=draw) for _ in range(3)]
    real = torch.zeros(shape[1:3], dtype=torch.bool)
    for at, _ in places(size, block):
        real[at] = True
    for x in qkv:
        x[:, ~real] = math.nan
    weights = [1 + torch.randn(heads * head, generator=draw) / 4 for _ in range(2)]
    q, k, v, q_weight, k_weight = (x.to(DEVICE, dtype) for x in (*qkv, *weights))
    return q, k, v, q_weight, k_weight


def places(size: Three, block: Three) -> Iterator[tuple[tuple[int, int], Three]]:
    """(block, token in it) and (frame, row, column) of every token that is no
    padding."""
    _, block_rows, block_cols = (-(-n // b) for n, b in zip(size, block, strict=True))
    for t in range(size[0]):
        for y in range(size[1]):
            for x in range(size[2]):
                index = (
                    t // block[0] * block_rows + y // block[1]
                ) * block_cols + x // block[2]
                token = (t % block[0] * block[1] + y % block[1]) * block[2] + x % block[2]
                yield (index, token), (t, y, x)


def oracle(
    x: Tensor,
    weight: Tensor | None,
    heads: int,
    size: Three,
    block: Three,
    first_frame: int = 5,
) -> Tensor:
    """One token at a time, pair by pair in float64; no weight means that x is only
    moved."""
    batch, blocks, inner, width = x.shape
    head, side = width // heads, width // heads // 6
    out = torch.zeros(batch, heads, blocks, inner, head, dtype=torch.float64)
    for (at, token), (frame, row, col) in places(size, block):
        tokens = x[:, at, token].double().cpu()
        if weight is not None:
            mean = (tokens**2).mean(dim=1, keepdim=True)
            tokens = (tokens / (mean + 1e-6).sqrt()).to(
                x.dtype
            ).double() * weight.double().cpu()
            turned = tokens.to(x.dtype).double().view(batch, heads, head // 2, 2).clone()
            split = [(first_frame + frame, head // 2 - 2 * side), (row, side), (col, side)]
            by = [
                cmath.rect(1, angle(n, j, pairs))
                for n, pairs in split
                for j in range(pairs)
            ]
            for j, turn in enumerate(by):
                a, b = turned[:, :, j].clone().unbind(-1)
                turned[:, :, j, 0], turned[:, :, j, 1] = (
                    a * turn.real - b * turn.imag,
                    a * turn.imag + b * turn.real,
                )
            tokens = turned.flatten(1)
        out[:, :, at, token] = tokens.view(batch, heads, head)
    return out


def assert_near(got: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    assert got.dtype == dtype and got.shape == expected.shape
    expected = expected.double().cpu()
    assert (
        (got.double().cpu() - expected).abs() <= 4 * TOLERANCE[dtype] * (1 + expected.abs())
    ).all()


def assert_rounded_alike(got: Tensor, expected: Tensor) -> None:
    """Half precision that is rounded in the same places differs where float32 sums
    straddle a step: hardly ever."""
    if got.dtype != torch.float32:
        assert int((got != expected).sum()) <= 1 + got.numel() // 50


@pytest.mark.parametrize("dtype", KERNEL_DTYPES, ids=str)
@pytest.mark.parametrize(("batch", "heads", "head", "size", "block"), SHAPES)
def test_the_definition_equals_a_loop_over_tokens_and_pairs(
    batch: int, heads: int, head: int, size: Three, block: Three, dtype: torch.dtype
) -> None:
    q, k, v, q_weight, k_weight = example(batch, heads, head, size, block, dtype)
    made = rms_norm_rope(
        q,
        k,
        v,
        q_weight,
        k_weight,
        tables_for(head, size),
        size=size,
        block=block,
        impl="reference",
    )
    assert_near(made[0], oracle(q, q_weight, heads, size, block), dtype)
    assert_near(made[1], oracle(k, k_weight, heads, size, block), dtype)
    assert torch.equal(made[2].double().cpu(), oracle(v, None, heads, size, block))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("batch", "heads", "head", "size", "block"), SHAPES)
def test_the_kernel_equals_the_definition(
    batch: int, heads: int, head: int, size: Three, block: Three, dtype: torch.dtype
) -> None:
    inputs, tables = example(batch, heads, head, size, block, dtype), tables_for(head, size)
    made = rms_norm_rope(*inputs, tables, size=size, block=block, impl="triton")
    expected = rms_norm_rope(*inputs, tables, size=size, block=block, impl="reference")
    for got, want in zip(made, expected, strict=True):
        assert_near(got, want, dtype)
        assert_rounded_alike(got, want)
    assert torch.equal(made[2], expected[2])


@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_it_writes_into_a_slot_of_a_ring_and_nowhere_else(impl: Impl) -> None:
    size, block = (2, 3, 3), (2, 2, 2)
    inputs, tables = example(2, 3, 10, size, block, torch.float32), tables_for(10, size)
    alone = rms_norm_rope(*inputs, tables, size=size, block=block, impl=impl)
    rings = torch.full((3, 2, 3, 9, 8, 10), math.nan, device=DEVICE)
    q_out, k_out, v_out = rings[:, :, :, 2:6]
    made = rms_norm_rope(
        *inputs, tables, size=size, block=block, out=(q_out, k_out, v_out), impl=impl
    )
    assert all(a is b for a, b in zip(made, (q_out, k_out, v_out), strict=True))
    assert torch.equal(rings[:, :, :, 2:6], torch.stack(alone))
    assert rings[:, :, :, :2].isnan().all() and rings[:, :, :, 6:].isnan().all()


@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_projections_may_be_parts_of_one_tensor(impl: Impl) -> None:
    size, block = (2, 3, 3), (2, 2, 2)
    q, k, v, q_weight, k_weight = example(2, 3, 10, size, block, torch.float32)
    tables = tables_for(10, size)
    alone = rms_norm_rope(
        q, k, v, q_weight, k_weight, tables, size=size, block=block, impl=impl
    )
    q_part, k_part, v_part, _ = torch.cat(
        [q, k, v, torch.full_like(q, math.nan)], dim=-1
    ).split(30, dim=-1)
    together = rms_norm_rope(
        q_part,
        k_part,
        v_part,
        q_weight,
        k_weight,
        tables,
        size=size,
        block=block,
        impl=impl,
    )
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))
    q, k, v = (x.transpose(1, 3).contiguous().transpose(1, 3) for x in (q, k, v))
    copied = rms_norm_rope(
        q, k, v, q_weight, k_weight, tables, size=size, block=block, impl=impl
    )
    for got, want in zip(copied, alone, strict=True):
        assert_near(
            got, want, torch.float32
        )  # sums over a row of another stride may run in another order


def test_a_token_of_nan_stays_alone() -> None:
    size, block = (1, 4, 4), (1, 4, 4)
    inputs, tables = example(1, 2, 6, size, block, torch.float32), tables_for(6, size)
    before = rms_norm_rope(*inputs, tables, size=size, block=block, impl="triton")
    inputs[0][:, :, 3, 1] = math.nan
    after = rms_norm_rope(*inputs, tables, size=size, block=block, impl="triton")
    others = [i for i in range(16) if i != 3]
    assert (
        torch.equal(before[0][..., others, :], after[0][..., others, :])
        and after[0][..., 3, :].isnan().all()
    )
    assert torch.equal(before[1], after[1])


def test_the_definition_compiles_into_one_graph() -> None:
    size, block = (1, 2, 3), (1, 2, 2)
    inputs, tables = example(1, 2, 6, size, block, torch.float32), tables_for(6, size)

    def run(q: Tensor) -> tuple[Tensor, ...]:
        return rms_norm_rope(q, *inputs[1:], tables, size=size, block=block)

    compiled = torch.compile(run, backend="eager", fullgraph=True)
    assert all(
        torch.equal(a, b) for a, b in zip(compiled(inputs[0]), run(inputs[0]), strict=True)
    )


def test_a_kernel_is_whole_in_a_compiled_graph() -> None:
    size, block = (1, 2, 3), (1, 2, 2)
    inputs, tables = example(1, 2, 6, size, block, torch.float32), tables_for(6, size)

    def run(q: Tensor) -> tuple[Tensor, ...]:
        return rms_norm_rope(q, *inputs[1:], tables, size=size, block=block, impl="triton")

    compiled = torch.compile(run, backend="eager", fullgraph=True)
    assert all(
        torch.equal(a, b) for a, b in zip(compiled(inputs[0]), run(inputs[0]), strict=True)
    )


def test_gradients_flow_through_the_definition() -> None:
    size, block = (1, 2, 2), (1, 2, 2)
    inputs = example(1, 2, 6, size, block, torch.float32)
    for x in inputs:
        x.requires_grad_()
    made = rms_norm_rope(*inputs, tables_for(6, size), size=size, block=block)
    torch.cat(made).sum().backward()
    assert all(x.grad is not None for x in inputs)


def test_arguments_that_do_not_fit_are_refused() -> None:
    size, block = (1, 2, 3), (1, 2, 2)
    q, k, v, q_weight, k_weight = example(1, 2, 6, size, block, torch.float32)
    tables = tables_for(6, size)
    with pytest.raises(ValueError, match="q, k, v must be"):
        rms_norm_rope(q, k[:, :1], v, q_weight, k_weight, tables, size=size, block=block)
    with pytest.raises(ValueError, match="in heads of 10"):
        rms_norm_rope(
            q, k, v, q_weight, k_weight, tables_for(10, size), size=size, block=block
        )
    with pytest.raises(ValueError, match="weights must be"):
        rms_norm_rope(q, k, v, q_weight[1:], k_weight, tables, size=size, block=block)
    with pytest.raises(ValueError, match="one floating-point dtype"):
        rms_norm_rope(q, k.half(), v, q_weight, k_weight, tables, size=size, block=block)
    with pytest.raises(ValueError, match="positions"):
        rms_norm_rope(
            q,
            k,
            v,
            q_weight,
            k_weight,
            tables_for(6, (1, 1, 3), spare=0),
            size=size,
            block=block,
        )
    with pytest.raises(ValueError, match="a destination must be"):
        rms_norm_rope(
            q, k, v, q_weight, k_weight, tables, size=size, block=block, out=(q, k, v)
        )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("impl", ["reference", "triton"])
@pytest.mark.parametrize(("batch", "heads", "head", "size", "block"), SHAPES)
def test_tokens_without_padding_come_out_alike_with_the_means_of_their_blocks(
    batch: int,
    heads: int,
    head: int,
    size: Three,
    block: Three,
    impl: Impl,
    dtype: torch.dtype,
) -> None:
    *qkv, q_weight, k_weight = example(batch, heads, head, size, block, dtype)
    weights, tables = (q_weight, k_weight), tables_for(head, size)
    expected = rms_norm_rope(
        qkv[0], qkv[1], qkv[2], *weights, tables, size=size, block=block, impl="reference"
    )
    dense = [drop_padding(x.flatten(1, 2), size, block) for x in qkv]
    found = rms_norm_rope_means(
        dense[0], dense[1], dense[2], *weights, tables, size=size, block=block, impl=impl
    )
    for got, wanted in zip(found[:3], expected, strict=True):
        assert_near(got, wanted, dtype)
    for mean, blocks in zip(found[3:], found[:2], strict=True):
        assert mean.dtype == torch.float32
        exact = blocks.double().mean(dim=3)
        torch.testing.assert_close(mean.double(), exact, rtol=0, atol=1e-5)


def test_means_are_rounded_once_and_adjacent_slots_are_written() -> None:
    size, block = (3, 3, 3), (2, 2, 2)
    *qkv, q_weight, k_weight = example(1, 3, 10, size, block, torch.float32)
    dense = [drop_padding(x.flatten(1, 2), size, block) for x in qkv]
    around = torch.full((3, 1, 3, 20, 8, 10), math.nan, device=DEVICE)
    slots = around[:, :, :, 4:12]
    found = rms_norm_rope_means(
        dense[0],
        dense[1],
        dense[2],
        q_weight,
        k_weight,
        tables_for(10, size),
        size=size,
        block=block,
        mean_dtype=torch.bfloat16,
        out=(slots[0], slots[1], slots[2]),
        impl="triton",
    )
    assert found[3].dtype == torch.bfloat16
    exact = slots[0].mean(dim=3)
    torch.testing.assert_close(found[3].float(), exact, rtol=2**-8, atol=1e-6)
    assert slots.isfinite().all()
    assert around[:, :, :, :4].isnan().all() and around[:, :, :, 12:].isnan().all()
    with pytest.raises(ValueError, match="rms_norm_rope_means: q, k, v must be"):
        rms_norm_rope_means(
            qkv[0],
            qkv[1],
            qkv[2],
            q_weight,
            k_weight,
            tables_for(10, size),
            size=size,
            block=block,
        )
