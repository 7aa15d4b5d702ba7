"""Measure a model in a process of its own."""

import multiprocessing
import platform
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ultraflash_cli.bench.cases import BenchCase, drifting_frames
from ultraflash_cli.bench.report import BenchReport, StageTime
from ultraflash_cli.errors import OutOfMemory, UltraflashError

if TYPE_CHECKING:
    import numpy as np
    import torch

__all__ = ["FrameModel", "Prepared", "StageClock", "count_flops", "measure", "measure_in_fresh_process"]

LIMIT_ROUNDS = 5


class FrameModel(Protocol):
    """A model as a measurement sees it."""

    def group_frames(self, *, first: bool) -> int:
        """Count the frames of a group: of the first one of a scene, or of a later one."""
        ...

    def init_state(self, *, seed: int, first_frame: int) -> Any:
        """Give the state before a scene."""
        ...

    def step(self, state: Any, frames: "list[np.ndarray]") -> "tuple[Any, list[np.ndarray]]":
        """Take frames ``[H, W, 3]``; give the new state and the frames that are finished."""
        ...


class StageClock:
    """Sums the time of every stage; waits for the device at both ends of each."""

    def __init__(self, device: "torch.device") -> None:
        self.device = device
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Generator[None]:
        """Time what happens inside."""
        wait_for(self.device)
        started_s = time.perf_counter()
        yield
        wait_for(self.device)
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - started_s


@dataclass(frozen=True)
class Prepared:
    """A model that is ready to run, and where."""

    upscaler: FrameModel
    clock: StageClock
    """Runs while a stage of the model computes."""
    precision: str
    """``fp32`` or ``bf16``."""
    peak_rss_bytes: Callable[[], int]
    """Asks the system for this process's peak."""


Prepare = Callable[[BenchCase], Prepared]
"""Builds the model; a function at module level, so that another process can import it."""


def measure_in_fresh_process(case: BenchCase, prepare: Prepare) -> BenchReport:
    """Run ``measure`` where nothing else has used memory; its errors are raised here."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    worker = context.Process(target=_answer, args=(case, prepare, theirs))
    worker.start()
    theirs.close()
    try:
        answer = ours.recv()
    except EOFError:
        worker.join()
        raise OutOfMemory(f"the measuring process was ended (code {worker.exitcode}); try a smaller --size") from None
    worker.join()
    if isinstance(answer, BaseException):
        raise answer
    return answer


def _answer(case: BenchCase, prepare: Prepare, pipe: Connection) -> None:
    """Send the report, or the error that kept it from being made."""
    try:
        answer: BenchReport | UltraflashError = measure(case, prepare)
    except UltraflashError as error:
        answer = error
    pipe.send(answer)
    pipe.close()


def measure(case: BenchCase, prepare: Prepare) -> BenchReport:
    """Build the model, run one group to warm up, time whole groups, then count the arithmetic of one more."""
    started_s = time.perf_counter()
    ready = prepare(case)
    import torch  # not before: what prepare refuses is refused at once

    device, upscaler = ready.clock.device, ready.upscaler
    source = drifting_frames(case.width_px, case.height_px)
    state = upscaler.init_state(seed=0, first_frame=0)
    state, _ = upscaler.step(state, _take(source, upscaler.group_frames(first=True)))
    wait_for(device)
    load_seconds = time.perf_counter() - started_s

    group = upscaler.group_frames(first=False)
    ready.clock.seconds.clear()
    seconds, frames, height, width = 0.0, 0, 0, 0
    while frames < case.frames:
        group_frames = _take(source, group)
        started_s = time.perf_counter()
        state, sharp = upscaler.step(state, group_frames)
        wait_for(device)
        seconds += time.perf_counter() - started_s
        assert sharp, "a whole group gives frames"
        frames += len(sharp)
        height, width = sharp[0].shape[:2]
    spent = dict(ready.clock.seconds)
    peak_rss_bytes = ready.peak_rss_bytes()
    peak_vram_bytes = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None

    flops = count_flops(lambda: upscaler.step(state, _take(source, group)))
    dtype = torch.bfloat16 if ready.precision == "bf16" else torch.float32
    return BenchReport(
        model=case.model,
        device=str(device),
        device_name=_device_name(device),
        threads=case.threads,
        precision=ready.precision,
        source=(case.width_px, case.height_px),
        output=(width, height),
        frames=frames,
        seconds=seconds,
        load_seconds=load_seconds,
        stages=_shares(spent, seconds),
        peak_rss_bytes=peak_rss_bytes,
        peak_vram_bytes=peak_vram_bytes,
        flops_per_output_pixel=flops / (group * height * width),
        limit_flops_per_second=_convolution_rate(device, dtype),
        versions={name: version(name) for name in ("ultraflash", "torch")} | {"python": platform.python_version()},
    )


def _take(source: "Iterator[np.ndarray]", count: int) -> "list[np.ndarray]":
    return list(islice(source, count))


def wait_for(device: "torch.device") -> None:
    """Let the device finish what it was given."""
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)


def _shares(spent: dict[str, float], seconds: float) -> tuple[StageTime, ...]:
    """Return each stage's part of the whole, and what lies between the stages as ``other``."""
    between = max(seconds - sum(spent.values()), 0.0)
    whole = sum(spent.values()) + between
    parts = {**spent, "other": between}
    return tuple(StageTime(name=name, seconds=part, share=part / whole) for name, part in parts.items())


def count_flops(run: Callable[[], object]) -> int:
    """Count the arithmetic that ``run`` asks torch for; a multiply-add is 2."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

    def attention_flops(query: torch.Size, key: torch.Size, value: torch.Size, *_: object, **__: object) -> int:
        return sdpa_flop_count(query, key, value)

    # torch does not count its own attention on a CPU.
    extra = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention_flops}
    with FlopCounterMode(display=False, custom_mapping=extra) as counter:
        run()
    return counter.get_total_flops()


def _convolution_rate(device: "torch.device", dtype: "torch.dtype") -> float:
    """Return the floating point operations a second that a 3x3 convolution of 64 channels reaches, at its best."""
    import torch

    channels, height, width = 64, 240, 416
    kernel = torch.ones(channels, channels, 3, 3, device=device, dtype=dtype)
    inputs_bchw = torch.ones(1, channels, height, width, device=device, dtype=dtype)
    kernel, inputs_bchw = (each.contiguous(memory_format=torch.channels_last) for each in (kernel, inputs_bchw))
    best_s = float("inf")
    with torch.inference_mode():
        for _ in range(LIMIT_ROUNDS):
            started_s = time.perf_counter()
            torch.nn.functional.conv2d(inputs_bchw, kernel, padding=1)
            wait_for(device)
            best_s = min(best_s, time.perf_counter() - started_s)
    return 2 * 9 * channels**2 * height * width / best_s


def _device_name(device: "torch.device") -> str:
    """Return what people call the device."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
