"""When attention uses the kernel for Hopper: where a measurement says so, and only after
its results have been compared with another implementation's."""

import warnings
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.kernels.hopper_stand_ins import CAN_RUN, Calls, by_reference, pretended
from ultraflash_kernels.block_lists import BlockLists
from ultraflash_kernels.block_sparse_attention import (
    block_list_attention,
    dense_attention,
    hopper,
    kernel,
    kernel_hopper,
    reference,
)
from ultraflash_kernels.dispatch import KernelUnsupportedError

GPU = torch.device("cuda")
HALF = torch.float16
MEASURED = hopper.HOPPER_WINS


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[Calls]:
    """A pretended Hopper GPU on which the kernel was measured to win; it runs in the
    emulator, and the reference stands for the Triton kernel."""
    launchers: list[tuple[ModuleType, str, str, object]] = [
        (kernel, "forward", "triton", by_reference),
        (kernel_hopper, "forward", "hopper", kernel_hopper.forward),
        (kernel_hopper, "dense", "hopper", kernel_hopper.dense),
    ]
    yield from pretended(monkeypatch, HALF, launchers)


class Group:
    """Queries, keys and values of a small group, its lists, and the result."""

    def __init__(self, dtype: torch.dtype = HALF) -> None:
        random = torch.Generator().manual_seed(0)
        self.q, self.k, self.v = torch.randn(3, 1, 1, 4, 128, 128, generator=random).to(dtype)
        ring = torch.randn(2, 1, 1, 2, 128, 128, generator=random).to(dtype)
        self.ring = ring[0], ring[1]
        self.lists = BlockLists.from_mask(torch.rand(1, 1, 4, 6, generator=random) < 0.5)
        given = (self.q, self.k, self.v, self.lists)
        self.expected = reference.from_lists(*given, *self.ring, 2)

    def attend(self, **options: object) -> Tensor:
        """Call the operation."""
        given = (self.q, self.k, self.v, self.lists)
        return block_list_attention(*given, ring=self.ring, fill=2, **options)  # pyright: ignore

    def assert_right(self) -> None:
        """Call the operation and compare its result."""
        torch.testing.assert_close(self.attend(), self.expected, rtol=0.01, atol=0.01)


def test_what_has_not_been_measured_is_not_chosen(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hopper, "HOPPER_WINS", MEASURED)
    Group().assert_right()
    assert calls == ["triton"]


def test_the_kernel_is_chosen_after_one_comparison(calls: Calls) -> None:
    group = Group()
    before = torch.random.get_rng_state()
    group.assert_right()
    assert torch.equal(torch.random.get_rng_state(), before), "it has random numbers of its own"
    checked = 2 * hopper.CHECKS
    assert calls == ["hopper", "triton"] * checked + ["hopper"]
    group.assert_right()
    assert calls[2 * checked :] == ["hopper", "hopper"], "compared once a process"


def test_dense_attention_is_compared_with_torch(calls: Calls) -> None:
    drawn = torch.randn(3, 1, 2, 200, 128, generator=torch.Generator().manual_seed(1)).half()
    q, k, v = drawn[0, :, :, :150], drawn[1], drawn[2]
    expected = F.scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(dense_attention(q, k, v), expected, rtol=0.01, atol=0.01)
    assert calls == ["hopper"] * (hopper.CHECKS + 1)
    again = dense_attention(q.requires_grad_(), k, v)
    assert again.requires_grad and len(calls) == hopper.CHECKS + 1, "SDPA has a backward pass"


def spoiled(name: str, value: float) -> object:
    """Return a launcher whose result has a wrong block."""

    def launch(q: Tensor, *given: Tensor) -> Tensor:
        out = by_reference(q, *given) if name == "forward" else F.scaled_dot_product_attention(q, *given)  # pyright: ignore
        out[:, :, -1, :3] = value
        return out

    return launch


def refused(*given: Tensor) -> Tensor:
    raise RuntimeError("PassManager::run failed\nand much more")


@pytest.mark.parametrize(
    ("launch", "said"),
    [
        (spoiled("forward", 0.5), r"computes wrong results \(a token is off by"),
        (spoiled("forward", torch.nan), "computes wrong results"),
        (refused, r"fails \(PassManager::run failed\)"),
    ],
    ids=["wrong numbers", "NaN", "an error"],
)
def test_a_kernel_that_fails_its_comparison_is_never_used(
    calls: Calls, monkeypatch: pytest.MonkeyPatch, launch: object, said: str
) -> None:
    monkeypatch.setattr(kernel_hopper, "forward", calls.of("hopper", launch))
    group = Group()
    with pytest.warns(RuntimeWarning, match=f"for Hopper {said}.*; the Triton kernel runs instead"):
        group.assert_right()
    tried = calls.count("hopper")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        group.assert_right()
    assert calls[-2:] == ["triton", "triton"] and calls.count("hopper") == tried


def test_dense_attention_that_fails_its_comparison_is_left_to_torch(
    calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel_hopper, "dense", spoiled("dense", 0.5))
    q, k, v = torch.randn(3, 1, 1, 150, 128, generator=torch.Generator().manual_seed(1)).half()
    with pytest.warns(RuntimeWarning, match="SDPA runs instead"):
        got = dense_attention(q, k, v)
    assert torch.equal(got, F.scaled_dot_product_attention(q, k, v))


def test_nothing_is_compared_while_a_graph_is_recorded(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    group = Group()
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    group.assert_right()
    assert calls == ["triton"]
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    group.assert_right()
    assert calls[-1] == "hopper"


def test_other_shapes_and_layouts_are_left_to_other_kernels(calls: Calls) -> None:
    group = Group()
    q = group.q
    for other, said in (
        (q.float(), "bfloat16 or float16, got torch.float32"),
        (q[..., :64], "blocks and heads of 128, got [1, 1, 4, 128, 64]"),
        (q[:, :, :, :64], "blocks and heads of 128, got [1, 1, 4, 64, 128]"),
        (q.transpose(3, 4), "cannot read tokens with strides"),
        (torch.empty(1, 1, 4, 129, 128, dtype=HALF)[:, :, :, :128], "cannot read tokens with strides"),
        (torch.empty(1, 1, 2, 128, 129, dtype=HALF)[..., :128], "cannot read tokens with strides"),
        (torch.empty(4 * 16384 + 1, dtype=HALF)[1:].view(q.shape), "cannot read tokens with strides"),
        (q[:, :0], "needs tokens"),
    ):
        reason = hopper.refusal(other, other, other)
        assert reason is not None and said in reason
    assert hopper.refusal(q, group.k, group.v, *group.ring) is None


def test_an_explicit_choice_never_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    if CAN_RUN:
        pytest.skip("there is a Hopper GPU here")
    group = Group()
    with pytest.raises(KernelUnsupportedError, match=r"Hopper needs (an NVIDIA GPU|compute capability 9.0)"):
        group.attend(impl="hopper")
    with pytest.raises(KernelUnsupportedError, match="dense_attention: the kernel for Hopper needs"):
        dense_attention(group.q[:, :, 0], group.k[:, :, 0], group.v[:, :, 0], impl="hopper")
    with pytest.raises(ValueError, match="got 'triton'"):
        dense_attention(group.q[:, :, 0], group.k[:, :, 0], group.v[:, :, 0], impl="triton")  # pyright: ignore


@pytest.mark.parametrize(
    ("capability", "wins", "path"),
    [
        ((9, 0), False, "Triton kernel, as the one for Hopper has not been measured"),
        ((9, 0), True, "Gluon kernel for block lists and dense, else Triton kernel and SDPA"),
        ((10, 0), True, "Triton kernel"),
    ],
    ids=["unmeasured", "measured", "another GPU"],
)
def test_the_report_says_which_kernel_runs(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], wins: bool, path: str
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    monkeypatch.setattr(hopper, "fault", lambda *_: None)
    if wins:
        monkeypatch.setattr(hopper, "HOPPER_WINS", {("block lists", HALF), ("dense", HALF)})
    assert hopper.path(GPU) == (path, None)


def test_the_report_says_what_the_kernel_does_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    monkeypatch.setattr(hopper, "HOPPER_WINS", {("dense", HALF)})
    monkeypatch.setattr(hopper, "fault", lambda *_: "computes wrong results")
    assert hopper.path(GPU) == ("Triton kernel", "the one for Hopper computes wrong results")
