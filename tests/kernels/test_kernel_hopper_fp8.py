"""The attention kernel for Hopper in 8 bits: its source, run in an emulator in many
orders of events, computes the reference."""

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.kernels.gluon_emulator import THREAD, Barrier, FakeGluon, emulated, wait
from ultraflash_kernels.block_lists import BlockLists
from ultraflash_kernels.block_sparse_attention import block_sparse_attention, copies_hopper_fp8
from ultraflash_kernels.block_sparse_attention import kernel_hopper_fp8 as kernel
from ultraflash_kernels.fp8_linear import Fp8Rows, quantise_rows
from ultraflash_kernels.token_order import drop_padding

WIDTH = 16
DTYPE = torch.float16
MOST_OFF = 0.04
"""Allowed norm of the error relative to the norm: weights have three bits of mantissa."""


@pytest.fixture
def emulator(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeGluon]:
    """The emulator that runs the kernel, in poisoned memory."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield emulated(monkeypatch)
    torch.use_deterministic_algorithms(False)


def uneven(*shape: int, seed: int) -> Tensor:
    """Draw tokens of very different sizes."""
    random_ = torch.Generator().manual_seed(seed)
    drawn = torch.randn(*shape, WIDTH, generator=random_)
    return drawn * 2.0 ** torch.randn(*shape, 1, generator=random_)


def small(x: Tensor) -> Fp8Rows:
    return quantise_rows(x, impl="reference")


def part(rows: Fp8Rows, start: int, end: int) -> Fp8Rows:
    """Return some blocks."""
    return Fp8Rows(*(x[:, :, start:end] for x in rows))


def in_ring(rows: Fp8Rows, capacity: int) -> Fp8Rows:
    """Copy blocks to the start of a ring, whose other blocks are NaN."""
    parts: list[Tensor] = []
    for x in rows:
        ring = x.new_full((*x.shape[:2], capacity, *x.shape[3:]), math.nan)
        ring[:, :, : x.shape[2]] = x
        parts.append(ring)
    return Fp8Rows(*parts)


def assert_near(got: Tensor, expected: Tensor, most: float = MOST_OFF) -> None:
    """Compare with the reference."""
    error = (got.double() - expected).norm() / expected.norm()
    assert error <= most, f"not near: {float(error):.3f}"


class Example:
    """Blocks as in the SR transformer, in a partly filled ring, and a mask."""

    def __init__(self, heads: int, queries: int, *, fill: int = 3) -> None:
        self.fill, self.blocks = fill, fill + queries
        q, k, v = (uneven(1, heads, n, 128, seed=n) for n in (queries, self.blocks, self.blocks + 1))
        self.q, self.k, self.v = small(q), small(k), small(v[:, :, :-1])
        self.mask = torch.rand(1, heads, queries, self.blocks, generator=torch.Generator().manual_seed(7)) < 0.4

    def computed(self, grid: tuple[int, ...] = ()) -> Tensor:
        """What the kernel computes; what lies behind the last list is no block."""
        lists = BlockLists.from_mask(self.mask)
        lists.blocks[int(lists.starts[-1]) :] = 2**30
        k, v, fill = self.k, self.v.turned(), self.fill
        ring = (in_ring(part(k, 0, fill), fill + 2), in_ring(part(v, 0, fill), fill + 2)) if fill else None
        k, v = part(k, fill, self.blocks), part(v, fill, self.blocks)
        return kernel.forward(self.q, k, v, lists, ring, fill, grid, DTYPE)

    def expected(self) -> Tensor:
        """The reference in float64."""
        q, k, v = (x.wide(torch.float64) for x in (self.q, self.k, self.v))
        return block_sparse_attention(q, k, v, self.mask, impl="reference")


def test_its_source_computes_the_reference(emulator: FakeGluon) -> None:
    case = Example(2, 4)
    got = case.computed()
    assert got.dtype == DTYPE
    assert_near(got, case.expected())


def test_lists_of_every_length_in_many_orders_of_events(emulator: FakeGluon) -> None:
    case = Example(1, 14, fill=2)
    lengths = torch.arange(14)
    case.mask[:] = (torch.arange(16)[None, :] * 7 + lengths[:, None]) % 16 < lengths[:, None]
    assert sorted(case.mask.sum(-1).flatten().tolist()) == lengths.tolist()
    expected = case.expected()
    first = case.computed()
    assert (first[:, :, 0] == 0).all(), "an empty list gives zeros"
    for block in range(1, 14):
        assert_near(first[:, :, block], expected[:, :, block])
    for emulator.seed in range(1, 6):
        assert torch.equal(case.computed(), first), "the order of events changes no bit"


def test_without_a_ring_and_without_padding(emulator: FakeGluon) -> None:
    case = Example(1, 8, fill=0)
    size, block = (3, 12, 13), (2, 8, 8)
    got = case.computed((*size, *block))
    tokens = case.expected().permute(0, 2, 3, 1, 4).flatten(1, 2)
    assert_near(got[:, :, 0].transpose(1, 2), drop_padding(tokens, size, block))


def dense_case(tokens: int, keys: int, capacity: int) -> tuple[tuple[Fp8Rows, Fp8Rows, Fp8Rows], Tensor]:
    """Return queries, and the first keys and values of a buffer whose other ones are
    NaN, and the reference in float64."""
    q, k, v = (small(uneven(2, 2, n, seed=n + at)) for at, n in enumerate((tokens, keys, keys)))
    wide = [x.wide(torch.float64) for x in (q, k, v)]
    expected = F.scaled_dot_product_attention(wide[0], wide[1], wide[2])
    k, v = (in_ring(x, capacity) for x in (k, v))
    turned = v.turned()
    return (q, part(k, 0, keys), Fp8Rows(*(x[..., :keys] for x in turned))), expected


@pytest.mark.parametrize(
    ("tokens", "keys", "capacity"), [(200, 300, 304), (128, 128, 128), (130, 1, 16), (1, 517, 640)], ids=str
)
def test_dense_attention_takes_any_number_of_tokens(emulator: FakeGluon, tokens: int, keys: int, capacity: int) -> None:
    rows, expected = dense_case(tokens, keys, capacity)
    got = kernel.dense(*rows, DTYPE)
    assert got.transpose(1, 2).is_contiguous(), "heads of a token are next to each other"
    assert_near(got, expected)


@pytest.mark.parametrize("task", [0, 1, 2, 3], ids=["first half", "second half", "copies", "scales"])
def test_the_emulator_finds_a_task_that_does_not_wait(
    emulator: FakeGluon, monkeypatch: pytest.MonkeyPatch, task: int
) -> None:
    case = Example(1, 7)
    case.mask[:] = True
    expected = case.expected()

    def hasty(barrier: Barrier, phase: int, pred: Any = True) -> None:
        wait(barrier, phase, pred and THREAD.task is not THREAD.task.program.tasks[task])

    monkeypatch.setattr(kernel.mbarrier, "wait", hasty)
    with pytest.raises(AssertionError, match=r"while it is read|not near|than the barrier"):
        for emulator.seed in range(5):
            assert_near(case.computed(), expected)


@pytest.mark.parametrize("call", ["arrive", "fence_async_shared"])
def test_the_emulator_finds_a_missing_arrival_and_a_missing_fence(
    emulator: FakeGluon, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    case = Example(1, 6)
    case.mask[:] = True
    module = kernel.mbarrier if call == "arrive" else kernel.hopper
    monkeypatch.setattr(module, call, lambda *_, **__: None)
    with pytest.raises(AssertionError, match=r"a deadlock|may not see"):
        case.computed()


def test_other_orders_of_keys_and_units_of_weights_give_other_results(
    emulator: FakeGluon, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Example(1, 3)
    case.mask[:] = True
    assert_near(case.computed(), case.expected())

    described = kernel.described_keys

    def in_order(k: Tensor) -> object:
        found = described(k)
        strides = (16 * WIDTH, 8 * WIDTH, 2 * WIDTH, WIDTH, 1)
        return kernel.descriptor(found.base.as_strided(found.shape, strides), found.block_shape)

    with monkeypatch.context() as changed:
        changed.setattr(kernel, "described_keys", in_order)
        with pytest.raises(AssertionError, match="not near"):
            assert_near(case.computed(), case.expected())
    for module in (kernel, copies_hopper_fp8):
        monkeypatch.setattr(module, "WEIGHT_UNITS", 2.0**-8)
    with pytest.raises(AssertionError, match="not near"):
        assert_near(case.computed(), case.expected())
