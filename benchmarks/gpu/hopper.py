"""The section of the first run on a GPU about the attention kernels for Hopper."""

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from itertools import product
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from ultraflash_kernels.block_sparse_attention import (
    block_list_attention,
    block_list_attention_fp8,
    dense_attention,
    dense_attention_fp8,
    hopper,
)
from ultraflash_kernels.block_sparse_attention.bench import RULES
from ultraflash_kernels.block_sparse_attention.hopper_fp8 import E4M3
from ultraflash_kernels.block_topk import choose_blocks
from ultraflash_kernels.fp8_linear import Fp8Rows, quantise_rows

__all__ = ["measured", "used_everywhere"]

GRIDS: Mapping[str, Mapping[str, Any]] = {
    "padding": {},
    "no padding": {"size": (6, 60, 104), "block": (2, 8, 8)},
}
REPEATS = 50
"""Calls whose results must be equal bit for bit: tasks that do not wait for each other
differ from time to time."""
HEADS, CHUNK, KEYS = 12, 4680, (512, 4680, 9360, 18720)
"""The generator's heads, queries of a chunk, and keys: 512, and those of one to
four chunks."""
CAPACITY = 18752
"""Tokens of the buffers of keys and values: a multiple of 16."""


@contextmanager
def used_everywhere() -> Generator[None]:
    """Use the kernel inside the block wherever it can run, as if it had been measured
    to win."""
    wins = frozenset(product(("block lists", "dense"), (*hopper.DTYPES, E4M3)))
    with mock.patch.object(hopper, "HOPPER_WINS", wins):
        yield


def measured(here: Any) -> dict[str, Any]:
    """Compare the kernels with others at published sizes, repeat them, replay them in a
    CUDA graph, and time dense attention, in ms."""
    if (refusal := hopper.device_refusal(here.device)) is not None:
        return {"skipped": refusal}
    found: dict[str, Any] = {}
    for use, dtype in product(("block lists", "dense"), (*hopper.DTYPES, E4M3)):
        here.tried(found, f"{use}, {dtype}, fault", lambda u=use, d=dtype: str(hopper.fault(u, here.device, d)))

    for bits, attend in zip(("", "fp8, "), _groups(here.device), strict=True):
        _lists(here, found, bits, attend)
    for keys in KEYS:
        q = torch.randn(1, HEADS, CHUNK, 128, device=here.device).bfloat16()
        ring = torch.randn(2, 1, HEADS, CAPACITY, 128, device=here.device).bfloat16()
        k, v = ring[:, :, :, :keys]
        small_v = Fp8Rows(*(x[..., :keys] for x in _small(ring[1]).turned()))
        small = (_small(q), Fp8Rows(*(x[:, :, :keys] for x in _small(ring[0]))), small_v)

        def wide(impl: Any, given: Any = (q, k, v)) -> Tensor:
            return dense_attention(*given, impl=impl)

        def fp8(impl: Any, given: Any = small) -> Tensor:
            return dense_attention_fp8(*given, impl=impl)

        for bits, call, impls in (("", wide, ("hopper", "reference")), ("fp8, ", fp8, ("hopper", "triton"))):
            name = f"{bits}{keys} keys"
            here.tried(found, f"{name}, off", lambda call=call: _off(call("hopper"), call("reference")))
            for impl in impls:
                timed = lambda call=call, impl=impl: here.median_ms(lambda: call(impl))  # noqa: E731
                here.tried(found, f"{name}, {impl}, ms", timed)
    return found


def _lists(here: Any, found: dict[str, Any], bits: str, attend: Callable[[str, Mapping[str, Any]], Tensor]) -> None:
    """Compare attention to lists with other implementations and with itself."""
    for padding, shapes in GRIDS.items():
        for impl in ("hopper", "triton"):

            def error(impl: str = impl, shapes: Mapping[str, Any] = shapes) -> float:
                return _off(attend(impl, shapes), attend("reference", shapes))

            here.tried(found, f"{bits}block lists, {padding}, {impl}, off", error)

    def call() -> Tensor:
        return attend("hopper", {})

    here.tried(found, f"{bits}differing of {REPEATS} calls", lambda: _differing(call))
    here.tried(found, f"{bits}differing of {REPEATS} replays", lambda: _differing(_replayed(call)))


def _small(x: Tensor) -> Fp8Rows:
    return quantise_rows(x, impl="reference")


def _groups(device: torch.device) -> list[Callable[[str, Mapping[str, Any]], Tensor]]:
    """Return attention of a steady group of the 1K stage in 16 and in 8 bits, by
    implementation and shapes."""
    rule = RULES["1K"]
    fill = rule.keys - rule.queries
    q, k, v = torch.randn(3, 1, HEADS, rule.queries, 128, 128, device=device).bfloat16()
    old = torch.randn(2, 1, HEADS, fill, 128, 128, device=device).bfloat16()
    q_mean, k_mean = (2 * torch.randn(1, HEADS, n, 128, device=device) for n in (rule.queries, rule.keys))
    lists = choose_blocks(q_mean, k_mean, rule)

    def attend(impl: Any, shapes: Mapping[str, Any]) -> Tensor:
        return block_list_attention(q, k, v, lists, ring=(old[0], old[1]), fill=fill, impl=impl, **shapes)

    rows = (_small(q), _small(k), _small(v).turned(), lists)
    ring = (_small(old[0]), _small(old[1]).turned())

    def attend_fp8(impl: Any, shapes: Mapping[str, Any]) -> Tensor:
        return block_list_attention_fp8(*rows, ring=ring, fill=fill, impl=impl, **shapes)

    return [attend, attend_fp8]


def _off(got: Tensor, expected: Tensor) -> float:
    """Return the norm of the difference relative to the norm of the expected tensor."""
    return float((got.double() - expected.double()).norm() / expected.double().norm())


def _differing(call: Callable[[], Tensor]) -> int:
    """Return how many further calls give other bits than the first."""
    first = call().clone()
    return sum(not torch.equal(call(), first) for _ in range(REPEATS))


def _replayed(call: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Record a call in a CUDA graph and return its replay."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = call()

    def replay() -> Tensor:
        graph.replay()
        return out

    return replay
