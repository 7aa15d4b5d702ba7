"""The section of the first run on a GPU about the attention kernel for Hopper."""

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from itertools import product
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from ultraflash_kernels.block_sparse_attention import block_list_attention, dense_attention, hopper
from ultraflash_kernels.block_sparse_attention.bench import RULES
from ultraflash_kernels.block_sparse_attention.op_dense import DenseImpl
from ultraflash_kernels.block_topk import choose_blocks

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


@contextmanager
def used_everywhere() -> Generator[None]:
    """Use the kernel inside the block wherever it can run, as if it had been measured
    to win."""
    wins = frozenset(product(("block lists", "dense"), hopper.DTYPES))
    with mock.patch.object(hopper, "HOPPER_WINS", wins):
        yield


def measured(here: Any) -> dict[str, Any]:
    """Compare the kernel with others at published sizes, repeat it, replay it in a CUDA
    graph, and time dense attention, in ms."""
    if (refusal := hopper.device_refusal(here.device)) is not None:
        return {"skipped": refusal}
    found: dict[str, Any] = {}
    for use, dtype in product(("block lists", "dense"), hopper.DTYPES):
        here.tried(found, f"{use}, {dtype}, fault", lambda u=use, d=dtype: str(hopper.fault(u, here.device, d)))

    attend = _group(here.device)
    for padding, shapes in GRIDS.items():
        for impl in ("hopper", "triton"):

            def error(impl: str = impl, shapes: Mapping[str, Any] = shapes) -> float:
                return _off(attend(impl, shapes), attend("reference", shapes))

            here.tried(found, f"block lists, {padding}, {impl}, off", error)
    here.tried(found, f"differing of {REPEATS} calls", lambda: _differing(lambda: attend("hopper", {})))
    here.tried(found, f"differing of {REPEATS} replays", lambda: _differing(_replayed(lambda: attend("hopper", {}))))

    for keys in KEYS:
        q = torch.randn(1, HEADS, CHUNK, 128, device=here.device).bfloat16()
        ring = torch.randn(2, 1, HEADS, max(KEYS), 128, device=here.device).bfloat16()
        k, v = ring[:, :, :, :keys]
        calls: dict[DenseImpl, Callable[[], Tensor]] = {
            "hopper": lambda q=q, k=k, v=v: dense_attention(q, k, v, impl="hopper"),
            "reference": lambda q=q, k=k, v=v: dense_attention(q, k, v, impl="reference"),
        }
        here.tried(found, f"{keys} keys, off", lambda c=calls: _off(c["hopper"](), c["reference"]()))
        for impl, call in calls.items():
            here.tried(found, f"{keys} keys, {impl}, ms", lambda call=call: here.median_ms(call))
    return found


def _group(device: torch.device) -> Callable[[str, Mapping[str, Any]], Tensor]:
    """Return attention of a steady group of the 1K stage, by implementation and
    shapes."""
    rule = RULES["1K"]
    fill = rule.keys - rule.queries
    q, k, v = torch.randn(3, 1, HEADS, rule.queries, 128, 128, device=device).bfloat16()
    old = torch.randn(2, 1, HEADS, fill, 128, 128, device=device).bfloat16()
    q_mean, k_mean = (2 * torch.randn(1, HEADS, n, 128, device=device) for n in (rule.queries, rule.keys))
    lists = choose_blocks(q_mean, k_mean, rule)

    def attend(impl: Any, shapes: Mapping[str, Any]) -> Tensor:
        return block_list_attention(q, k, v, lists, ring=(old[0], old[1]), fill=fill, impl=impl, **shapes)

    return attend


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
