"""When attention in 8 bits uses the kernel for Hopper: where a measurement says so, and
only after its results have been compared with the Triton kernel's."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.kernels.hopper_stand_ins import CAN_RUN, Calls, by_reference, pretended
from ultraflash_cli.engine.cache import KvRing, WindowRing
from ultraflash_kernels.block_lists import BlockLists
from ultraflash_kernels.block_sparse_attention import (
    block_list_attention_fp8,
    dense_attention_fp8,
    hopper,
    hopper_fp8,
    kernel_fp8,
    kernel_fp8_dense,
    kernel_hopper_fp8,
)
from ultraflash_kernels.block_sparse_attention.hopper_fp8 import E4M3
from ultraflash_kernels.dispatch import KernelUnsupportedError
from ultraflash_kernels.fp8_linear import Fp8Rows, quantise_rows

SIDE = hopper.SIDE


def lists_by_reference(
    q: Fp8Rows,
    k: Fp8Rows,
    v: Fp8Rows,
    lists: BlockLists,
    ring: tuple[Fp8Rows, Fp8Rows] | None,
    fill: int,
    grid: Sequence[int],
    dtype: torch.dtype,
) -> Tensor:
    """What the Triton kernel computes."""
    wide = torch.float32
    old = (ring[0].wide(wide), ring[1].wide(wide).mT) if ring else (None, None)
    return by_reference(q.wide(wide), k.wide(wide), v.wide(wide).mT, lists, *old, fill, grid).to(dtype)


def dense_by_reference(q: Fp8Rows, k: Fp8Rows, v: Fp8Rows, dtype: torch.dtype) -> Tensor:
    """What the Triton kernel computes without lists."""
    wide = torch.float32
    return F.scaled_dot_product_attention(q.wide(wide), k.wide(wide), v.wide(wide).mT).to(dtype)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[Calls]:
    """A pretended Hopper GPU on which the kernel was measured to win; it runs in the
    emulator, and the reference stands for the Triton kernels."""
    launchers: list[tuple[ModuleType, str, str, object]] = [
        (kernel_fp8, "forward", "triton", lists_by_reference),
        (kernel_fp8_dense, "forward", "triton", dense_by_reference),
        (kernel_hopper_fp8, "forward", "hopper", kernel_hopper_fp8.forward),
        (kernel_hopper_fp8, "dense", "hopper", kernel_hopper_fp8.dense),
    ]
    yield from pretended(monkeypatch, E4M3, launchers)


def drawn(*shape: int, seed: int = 0) -> Fp8Rows:
    """Draw tokens in 8 bits."""
    random = torch.Generator().manual_seed(seed)
    return quantise_rows(torch.randn(*shape, SIDE, generator=random), impl="reference")


def group(**options: Any) -> Tensor:
    """Attend in a small group with a ring."""
    q, k, v = (drawn(1, 2, n, SIDE, seed=n) for n in (3, 4, 5))
    v = Fp8Rows(*(x[:, :, :4] for x in v)).turned()
    mask = torch.rand(1, 2, 3, 6, generator=torch.Generator().manual_seed(1)) < 0.6
    ring = (drawn(1, 2, 2, SIDE, seed=8), drawn(1, 2, 2, SIDE, seed=9).turned())
    return block_list_attention_fp8(q, k, v, BlockLists.from_mask(mask), ring=ring, fill=2, **options)


def chunk(keys: int = 150, capacity: int = 160) -> tuple[Fp8Rows, Fp8Rows, Fp8Rows]:
    """Return queries, and keys and values at the start of buffers."""
    q, k, v = drawn(1, 2, 130), drawn(1, 2, capacity, seed=1), drawn(1, 2, capacity, seed=2).turned()
    return q, Fp8Rows(*(x[:, :, :keys] for x in k)), Fp8Rows(*(x[..., :keys] for x in v))


def off(got: Tensor, expected: Tensor) -> float:
    return float((got.double() - expected.double()).norm() / expected.double().norm())


def test_both_uses_are_chosen_after_one_comparison_each(calls: Calls) -> None:
    assert off(group(), group(impl="reference")) < 0.04
    assert calls == ["hopper", "triton"] * (2 * hopper.CHECKS) + ["hopper"], "with padding and without"
    calls.clear()
    rows = chunk()
    assert off(dense_attention_fp8(*rows), dense_attention_fp8(*rows, impl="reference")) < 0.04
    assert calls == ["hopper", "triton"] * hopper.CHECKS + ["hopper"]
    calls.clear()
    dense_attention_fp8(*rows)
    group()
    assert calls == ["hopper", "hopper"], "compared once a process"


def test_what_has_not_been_measured_in_8_bits_is_not_chosen(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hopper, "HOPPER_WINS", {("block lists", torch.bfloat16), ("dense", torch.bfloat16)})
    group()
    dense_attention_fp8(*chunk())
    assert calls == ["triton", "triton"]


def test_a_kernel_in_8_bits_that_fails_its_comparison_is_never_used(
    calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoiled(*given: Any) -> Tensor:
        out = dense_by_reference(*given)
        out[:, :, -1, :40] = 0.0
        return out

    monkeypatch.setattr(kernel_hopper_fp8, "dense", calls.of("hopper", spoiled))
    rows = chunk()
    with pytest.warns(RuntimeWarning, match=r"for Hopper in 8 bits computes wrong results.*the Triton kernel runs"):
        got = dense_attention_fp8(*rows)
    assert off(got, dense_attention_fp8(*rows, impl="reference")) < 0.01 and calls[-1] == "triton"


def test_other_shapes_and_layouts_are_left_to_the_triton_kernel(calls: Calls) -> None:
    q, k, v = chunk()
    narrow = Fp8Rows(q.values[..., :64], q.scales)
    apart = Fp8Rows(k.values.contiguous(), k.scales)
    _, odd_k, odd_v = chunk(150, 150)
    late = Fp8Rows(*(x[:, :, 1:] for x in k)), Fp8Rows(*(x[..., 1:] for x in v))
    for given, said in (
        ((narrow, k, v), "blocks and heads of 128, got [1, 2, 130, 64]"),
        ((q, apart, v), "start buffers of equal capacity"),
        ((q, odd_k, odd_v), "a multiple of 16 tokens"),
        ((q, *late), "multiples of 16 bytes"),
        ((q, *chunk(0)[1:]), "needs tokens"),
    ):
        reason = hopper_fp8.refusal(*given)
        assert reason is not None and said in reason
    assert hopper_fp8.refusal(q, k, v) is None
    dense_attention_fp8(q, apart, v)
    assert calls == ["triton"]


def test_the_caches_of_both_transformers_suit_the_kernel(calls: Calls) -> None:
    like: dict[str, Any] = {"dtype": torch.bfloat16, "device": torch.device("cpu"), "fp8": True}
    window = replace(WindowRing.empty((2, 3, 150, SIDE), **like), fill=70)
    assert hopper_fp8.refusal(drawn(2, 3, 130), *window.used.rows) is None
    blocks = KvRing.empty((2, 3, 4, SIDE, SIDE), paired=True, **like).in_use
    assert hopper_fp8.refusal(drawn(2, 3, 2, SIDE), *blocks.part(2, 4).rows, *blocks.rows) is None


def test_an_explicit_choice_never_falls_back() -> None:
    if CAN_RUN:
        pytest.skip("there is a Hopper GPU here")
    with pytest.raises(KernelUnsupportedError, match=r"attention_fp8: the kernel for Hopper needs"):
        group(impl="hopper")
    with pytest.raises(KernelUnsupportedError, match="attention_fp8: the kernel for Hopper needs"):
        dense_attention_fp8(*chunk(), impl="hopper")


def test_the_report_names_what_runs_in_8_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    monkeypatch.setattr(hopper, "fault", lambda *_: None)
    wins = {("block lists", E4M3), ("dense", E4M3), ("dense", torch.bfloat16)}
    monkeypatch.setattr(hopper, "HOPPER_WINS", wins)
    uses = "block lists in 8 bits, dense and dense in 8 bits"
    assert hopper.path(torch.device("cuda")) == (f"Gluon kernel for {uses}, else Triton kernel and SDPA", None)
