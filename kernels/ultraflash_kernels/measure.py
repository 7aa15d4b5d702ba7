"""Timing of operations: every implementation of a case, after its test passes, as a
table or as JSON."""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from ultraflash_kernels.dispatch import Impl

__all__ = ["Case", "Measured", "implementations", "main", "measure"]

ROUNDS = {"cuda": 50, "cpu": 5}
WARM_UP = 3
LAUNCH_BOUND_S = 5e-4
"""Shorter GPU calls are timed inside a CUDA graph, because launching them from Python
may take as long."""
GRAPH_CALLS = 20
GRAPH_ROUNDS = 10
CACHE_BYTES = 256 << 20
"""Bytes written between rounds on a GPU, so that no input remains in its cache."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One call of an operation, in every implementation."""

    name: str
    """Operation and sizes."""
    dtype: torch.dtype
    calls: Mapping[str, Callable[[], object]]
    """Functions to time, by implementation."""
    moved_bytes: int
    """Minimum number of bytes to read and write."""
    flops: int = 0
    """Number of operations, a multiply-add as 2; 0 if bytes are the limit."""


@dataclass(frozen=True)
class Measured:
    """Measured times of one implementation."""

    name: str
    impl: str
    dtype: str
    device: str
    median_s: float
    spread_s: float
    """Distance of the quartiles."""
    bytes_per_s: float
    flop_per_s: float


def implementations(device: torch.device) -> tuple[Impl, ...]:
    """Return the implementations that can be timed on ``device``: kernels only on
    GPUs."""
    return ("reference", "triton") if device.type == "cuda" else ("reference",)


def measure(case: Case, device: torch.device) -> list[Measured]:
    """Time every implementation of ``case``."""
    found: list[Measured] = []
    for impl, call in case.calls.items():
        times = _times(call, device)
        median = statistics.median(times)
        low, _, high = statistics.quantiles(times, n=4)
        dtype = str(case.dtype).removeprefix("torch.")
        rates = (case.moved_bytes / median, case.flops / median)
        found.append(
            Measured(case.name, impl, dtype, _name(device), median, high - low, *rates)
        )
    return found


def main(
    bench: str,
    cases: Callable[[torch.device], Sequence[Case]],
    arguments: Sequence[str] | None = None,
) -> None:
    """Run the test next to the file ``bench``, then time and print the ``cases`` of the
    device."""
    parser = argparse.ArgumentParser(
        description=f"Time {Path(bench).parent.name} in every implementation."
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--json", action="store_true", help="a line of JSON for each measurement"
    )
    parser.add_argument("--untested", action="store_true", help="do not run the test first")
    settings = parser.parse_args(arguments)
    if not settings.untested:
        _run_test(Path(bench).parent)
    device = torch.device(settings.device)
    for case in cases(device):
        for found in measure(case, device):
            print(json.dumps(asdict(found)) if settings.json else _line(found), flush=True)


def _run_test(folder: Path) -> None:
    tests = sorted(str(path) for path in folder.glob("test_*.py"))
    if not tests:
        print("the tests are not installed; timing what was not tested", file=sys.stderr)
        return
    # In a separate process, where Triton may run as an interpreter.
    if subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *tests], stdout=sys.stderr, check=False
    ).returncode:
        sys.exit(f"{folder.name} fails its test; nothing is timed")


def _times(call: Callable[[], object], device: torch.device) -> list[float]:
    for _ in range(WARM_UP):
        call()
    if device.type != "cuda":
        return [_seconds(call) for _ in range(ROUNDS["cpu"])]
    cache = torch.empty(CACHE_BYTES, dtype=torch.int8, device=device)
    times = _eager_times(call, cache)
    if statistics.median(times) >= LAUNCH_BOUND_S:
        return times
    return _graph_times(call, cache) or times


def _eager_times(call: Callable[[], object], cache: torch.Tensor) -> list[float]:
    events = [
        [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        for _ in range(ROUNDS["cuda"])
    ]
    for start, stop in events:
        cache.zero_()
        start.record()
        call()
        stop.record()
    torch.cuda.synchronize(cache.device)
    return [start.elapsed_time(stop) / 1000 for start, stop in events]


def _graph_times(call: Callable[[], object], cache: torch.Tensor) -> list[float] | None:
    """Time the call inside a CUDA graph, without Python's launch overhead; None if it
    cannot be recorded. The graph flushes the cache before each call; the time for that
    is measured by a graph without the calls.
    """

    def flushed() -> None:
        cache.zero_()
        call()

    rounds: list[list[float]] = []
    for work in (flushed, cache.zero_):
        graph = _recorded(work, cache.device)
        if graph is None:
            return None
        graph.replay()
        events = [
            [torch.cuda.Event(enable_timing=True) for _ in range(2)]
            for _ in range(GRAPH_ROUNDS)
        ]
        for start, stop in events:
            start.record()
            graph.replay()
            stop.record()
        torch.cuda.synchronize(cache.device)
        rounds.append([start.elapsed_time(stop) / 1000 for start, stop in events])
    alone = statistics.median(rounds[1])
    return [max(0.0, whole - alone) / GRAPH_CALLS for whole in rounds[0]]


def _recorded(
    work: Callable[[], object], device: torch.device
) -> "torch.cuda.CUDAGraph | None":
    """Record ``work`` ``GRAPH_CALLS`` times; None, with the device restored, if it
    cannot be recorded."""
    graph = torch.cuda.CUDAGraph()
    before = torch.cuda.current_stream(device)
    try:
        with torch.cuda.graph(graph, stream=torch.cuda.Stream(device)):
            for _ in range(GRAPH_CALLS):
                work()
    except RuntimeError:
        torch.cuda.set_stream(before)
        return None
    return graph


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def _line(found: Measured) -> str:
    rate = (
        f"{found.flop_per_s / 1e12:8.2f} TFLOP/s"
        if found.flop_per_s
        else f"{found.bytes_per_s / 1e9:8.1f} GB/s"
    )
    time_ms = f"{found.median_s * 1e3:9.3f} ms (quartiles {found.spread_s * 1e3:.3f} apart)"
    return (
        f"{found.name:48} {found.dtype:9} {found.impl:10} {time_ms} {rate}  {found.device}"
    )
