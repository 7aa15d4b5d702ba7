"""The attention kernel for Hopper: its source, run in an emulator in many orders of
events, computes the reference."""

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.kernels.gluon_emulator import THREAD, Barrier, FakeGluon, emulated, wait
from ultraflash_kernels.block_lists import BlockLists
from ultraflash_kernels.block_sparse_attention import block_sparse_attention, kernel_hopper
from ultraflash_kernels.testing import TOLERANCE
from ultraflash_kernels.token_order import drop_padding


@pytest.fixture
def emulator(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeGluon]:
    """The emulator that runs the kernel, in poisoned memory."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield emulated(monkeypatch)
    torch.use_deterministic_algorithms(False)


class Example:
    """Blocks as in the SR transformer, in a partly filled ring, and a mask."""

    def __init__(
        self,
        heads: int,
        queries: int,
        width: int,
        *,
        dtype: torch.dtype = torch.float16,
        fill: int = 3,
        strided: bool = False,
    ) -> None:
        random_ = torch.Generator().manual_seed(heads + queries)
        shape = (3, 1, heads, queries, 128, width)
        new = 2 * torch.randn(shape, generator=random_).to(dtype)
        if strided:
            # Heads of a token next to each other.
            new = new.permute(0, 1, 3, 4, 2, 5).contiguous().permute(0, 1, 4, 2, 3, 5)
        self.q, self.k, self.v = new
        old = torch.randn(2, 1, heads, fill + 2, 128, width, generator=random_).to(dtype)
        old[:, :, :, fill:] = math.nan
        self.ring, self.fill = (old[0], old[1]), fill
        self.mask = torch.rand(1, heads, queries, fill + queries, generator=random_) < 0.4

    def given(self) -> tuple[Any, ...]:
        """Arguments of ``forward``; what lies behind the last list is no block."""
        lists = BlockLists.from_mask(self.mask)
        lists.blocks[int(lists.starts[-1]) :] = 2**30
        return self.q, self.k, self.v, lists, *self.ring, self.fill

    def expected(self) -> Tensor:
        """The reference in float64."""
        k, v = (
            torch.cat([old[:, :, : self.fill], new], dim=2).double()
            for old, new in zip(self.ring, (self.k, self.v), strict=True)
        )
        return block_sparse_attention(self.q.double(), k, v, self.mask, impl="reference")


def assert_close(got: Tensor, expected: Tensor) -> None:
    """Compare with the reference as the Triton kernel's tests do."""
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=4 * TOLERANCE[got.dtype])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("strided", [False, True], ids=["blocks apart", "heads together"])
def test_its_source_computes_the_reference(emulator: FakeGluon, dtype: torch.dtype, strided: bool) -> None:
    case = Example(2, 4, 128, dtype=dtype, strided=strided)
    assert_close(kernel_hopper.forward(*case.given()), case.expected())


def test_lists_of_every_length_in_many_orders_of_events(
    emulator: FakeGluon,
) -> None:
    case = Example(1, 14, 16, fill=2)
    lengths = torch.arange(14)
    case.mask[:] = (torch.arange(16)[None, :] * 7 + lengths[:, None]) % 16 < lengths[:, None]
    assert sorted(case.mask.sum(-1).flatten().tolist()) == lengths.tolist()
    expected = case.expected()
    for emulator.seed in range(12):
        assert_close(kernel_hopper.forward(*case.given()), expected)


def test_without_a_ring_and_without_padding(emulator: FakeGluon) -> None:
    case = Example(1, 8, 16, fill=0)
    q, k, v, lists, *_ = case.given()
    size, block = (3, 12, 13), (2, 8, 8)
    got = kernel_hopper.forward(q, k, v, lists, None, None, 0, [*size, *block])
    tokens = case.expected().permute(0, 2, 3, 1, 4).flatten(1, 2)
    assert_close(got[:, :, 0].transpose(1, 2), drop_padding(tokens, size, block))


@pytest.mark.parametrize(
    ("tokens", "keys", "width"), [(200, 300, 128), (128, 128, 16), (130, 1, 16), (1, 513, 16)], ids=str
)
def test_dense_attention_takes_any_number_of_tokens(emulator: FakeGluon, tokens: int, keys: int, width: int) -> None:
    random_ = torch.Generator().manual_seed(keys)
    drawn = torch.randn(3, 2, 2, tokens + keys, width, generator=random_).half()
    # What is behind the keys must not matter.
    drawn[1:, :, :, keys:] = math.nan
    q, k, v = 2 * drawn[0, :, :, :tokens], drawn[1, :, :, :keys], drawn[2, :, :, :keys]
    got = kernel_hopper.dense(q, k, v)
    assert got.transpose(1, 2).is_contiguous(), "heads of a token are next to each other"
    assert_close(got, F.scaled_dot_product_attention(q.double(), k.double(), v.double()))


@pytest.mark.parametrize("task", [0, 1, 2], ids=["first half", "second half", "copies"])
def test_the_emulator_finds_a_task_that_does_not_wait(
    emulator: FakeGluon, monkeypatch: pytest.MonkeyPatch, task: int
) -> None:
    case = Example(1, 6, 16)
    case.mask[:] = True

    def hasty(barrier: Barrier, phase: int, pred: Any = True) -> None:
        wait(barrier, phase, pred and THREAD.task is not THREAD.task.program.tasks[task])

    monkeypatch.setattr(kernel_hopper.mbarrier, "wait", hasty)
    with pytest.raises(AssertionError, match=r"while it is read|not close|than the barrier"):
        for emulator.seed in range(5):
            assert_close(kernel_hopper.forward(*case.given()), case.expected())


def test_the_emulator_finds_a_deadlock(emulator: FakeGluon, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Example(1, 6, 16)
    case.mask[:] = True

    def unheard(barrier: Barrier, count: int = 1) -> None:
        THREAD.task.pause()

    monkeypatch.setattr(kernel_hopper.mbarrier, "arrive", unheard)
    with pytest.raises(AssertionError, match="a deadlock"):
        kernel_hopper.forward(*case.given())
