"""Measure a model in a separate process."""

import multiprocessing
import platform
import signal
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ultraflash_cli.bench.cases import WARM_GROUPS, BenchCase
from ultraflash_cli.bench.report import BenchReport, StageTime
from ultraflash_cli.errors import OutOfMemory, UltraflashError

if TYPE_CHECKING:
    import torch

    from ultraflash_cli.bench.limits import Limits
    from ultraflash_cli.bench.streams import Stream
    from ultraflash_cli.engine.counts import CountingClock, Work

__all__ = ["Prepare", "Prepared", "device_name", "in_fresh_process", "measure", "stage_times", "versions"]

GRAPH_ROUNDS = 2
"""Number of times that a shape is seen before its graph is replayed."""

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A model that is ready to run, and its device."""

    start: "Callable[[], Stream]"
    """Starts a clip."""
    clock: "CountingClock"
    """Runs while a stage of the model computes."""
    precision: str
    """``fp32``, ``bf16``, ``fp8``, or ``mixed`` if stages differ."""
    weights: str
    """Source of the weights: ``built in``, ``downloaded`` or ``random``."""
    endless: bool = True
    """Whether groups of one clip are timed in its steady state, rather than whole
    clips."""
    peak_rss_bytes: Callable[[], int] = lambda: 0
    """Returns this process's peak memory as reported by the system."""


Prepare = Callable[[BenchCase], Prepared]
"""Builds the model; a function at module level, so that another process can import it."""


def in_fresh_process(function: Callable[..., T], *arguments: Any) -> T:
    """Call a module-level function in a new process; its errors are raised here.

    Ctrl-C, which a terminal sends to both processes, interrupts this one, which ends the other.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    worker = context.Process(target=_answer, args=(function, arguments, theirs))
    with _ignoring_ctrl_c():
        worker.start()
    theirs.close()
    try:
        answer = ours.recv()
    except EOFError:
        worker.join()  # for its exit code
        raise OutOfMemory(f"the measuring process was killed (code {worker.exitcode}); try a smaller --size") from None
    except BaseException:
        worker.kill()
        raise
    finally:
        worker.join()
    if isinstance(answer, BaseException):
        raise answer
    return answer


@contextmanager
def _ignoring_ctrl_c() -> Generator[None]:
    """Ignore Ctrl-C inside the block, and in processes that begin there; only the main thread can."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _answer(function: Callable[..., object], arguments: tuple[Any, ...], pipe: Connection) -> None:
    """Send the result or the error."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Windows hands down nothing that is ignored
    try:
        answer: object = function(*arguments)
    except UltraflashError as error:
        answer = error
    pipe.send(answer)
    pipe.close()


def measure(case: BenchCase, prepare: Prepare, limits: "Limits | None" = None) -> BenchReport:
    """Build the model; time its first group cold, then after warm-up; count its operations.

    For an endless clip, whole groups are timed after warm-up; otherwise one clip from
    start to end. ``limits`` are those of the device; None measures them here, after the
    model.
    """
    started_s = time.perf_counter()
    ready = prepare(case)
    import torch  # only now, so that errors of prepare are raised immediately

    from ultraflash_cli.bench.limits import measure_limits

    device, clock = ready.clock.device, ready.clock
    loaded_s = time.perf_counter()
    stream = ready.start()
    stream.next_group()
    stream.finish()
    clock.wait()
    first_s = time.perf_counter()

    warm_first_s, kept = None, stream if ready.endless else None
    del stream  # a second stream would double the memory, and graphs serve one at a time
    if kept is not None:
        work = _count(clock, kept, groups=1)
        for _ in range(_warm_groups(case, kept)):
            kept.next_group()
        kept.finish()
    else:
        work = _count(clock, ready.start(), groups=None)
        _warm_up(ready)
        warm_first_s = _first_group(ready)
    clock.clear()
    counted = work.frames

    begun_s = time.perf_counter()
    stream = kept or ready.start()
    frames = 0
    while not (ready.endless and frames >= case.frames) and (count := stream.next_group()):
        frames += count
    stream.finish()
    clock.wait()
    seconds = time.perf_counter() - begun_s
    assert frames, "a whole group gives frames"
    spent = clock.seconds
    width, height = stream.size_px
    limits = limits or measure_limits(device, ready.precision)
    return BenchReport(
        kind=case.kind,
        model=case.model,
        weights=ready.weights,
        device=",".join(map(str, clock.devices)),
        device_name=", ".join(map(device_name, clock.devices)),
        threads=case.threads,
        waiting=case.waiting,
        precision=ready.precision,
        cache_management=case.cache_management,
        source=(case.width_px, case.height_px),
        output=(width, height),
        frames=frames,
        seconds=seconds,
        whole_clip=not ready.endless,
        load_seconds=loaded_s - started_s,
        first_frame_seconds=first_s - started_s,
        warm_first_frame_seconds=warm_first_s,
        stages=stage_times(
            spent, seconds, {name: _scaled(each, frames / counted) for name, each in work.stages.items()}
        ),
        graphs={name: counts._asdict() for graphs in stream.graphs for name, counts in graphs.counts.items()},
        not_recorded=tuple(text for graphs in stream.graphs for text in graphs.refusals.values()),
        lanes=case.lanes and device.type == "cuda" and case.kind == "generate",
        peak_rss_bytes=ready.peak_rss_bytes(),
        peak_vram_bytes=sum(map(torch.cuda.max_memory_allocated, clock.devices)) if device.type == "cuda" else None,
        flops_per_output_pixel=work.total.flops / (counted * height * width),
        bytes_per_output_pixel=work.total.bytes / (counted * height * width),
        limits=limits,
        versions=versions(),
    )


def _warm_up(ready: Prepared) -> None:
    """Run whole clips until every shape has been recorded as a graph, if graphs are used."""
    for _ in range(GRAPH_ROUNDS):
        stream = ready.start()
        if not any(graphs.on for graphs in stream.graphs):
            return
        while stream.next_group():
            pass
        stream.finish()
        del stream


def _first_group(ready: Prepared) -> float:
    """Return the seconds until the first pictures of another clip are on the host."""
    begun_s = time.perf_counter()
    stream = ready.start()
    stream.next_group()
    stream.finish()
    return time.perf_counter() - begun_s


def _warm_groups(case: BenchCase, stream: "Stream") -> int:
    """Return the number of groups until a clip is in its steady state: its graphs
    recorded, and a sliding window full."""
    if case.kind == "generate":
        return WARM_GROUPS
    return GRAPH_ROUNDS if any(graphs.on for graphs in stream.graphs) else 0


@dataclass(frozen=True)
class _Counted:
    frames: int
    total: "Work"
    stages: "dict[str, Work]"


def _count(clock: "CountingClock", stream: "Stream", *, groups: int | None) -> _Counted:
    """Count the work of a stream's next groups, without graphs, which would hide it."""
    from contextlib import ExitStack

    from ultraflash_cli.engine.counts import counting

    frames, left = 0, groups
    with ExitStack() as stack:
        for graphs in stream.graphs:
            stack.enter_context(graphs.paused())
        so_far = stack.enter_context(counting())
        clock.so_far = so_far
        while (left is None or left > 0) and (count := stream.next_group()):
            frames += count
            left = None if left is None else left - 1
        total = so_far()
        clock.so_far = None
    return _Counted(frames, total, dict(clock.work))


def _scaled(work: "Work", factor: float) -> tuple[float, float]:
    return work.flops * factor, work.bytes * factor


def stage_times(spent: dict[str, float], seconds: float, work: dict[str, tuple[float, float]]) -> tuple[StageTime, ...]:
    """Return each stage's share of the total time with its rates, and the rest as
    ``other``. ``work`` is operations and bytes by stage. Stages that ran concurrently
    may sum to more than the total.
    """
    between = max(seconds - sum(spent.values()), 0.0)
    whole = sum(spent.values()) + between
    stages: list[StageTime] = []
    for name, part in {**spent, "other": between}.items():
        flops, moved = work.get(name, (0.0, 0.0))
        rates = (flops / part, moved / part) if part > 0 else (0.0, 0.0)
        stage = StageTime(
            name=name, seconds=part, share=part / whole, flops_per_second=rates[0], bytes_per_second=rates[1]
        )
        stages.append(stage)
    return tuple(stages)


def versions() -> dict[str, str]:
    """Return the versions of the libraries, and of this package if it is installed."""
    found = {"python": platform.python_version()}
    for name in ("ultraflash", "torch", "triton"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def device_name(device: "torch.device") -> str:
    """Return the device's name."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
