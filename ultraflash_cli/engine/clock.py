"""Compute time of the stages of a cascade, measured by the device without waiting for
it."""

import time
from collections import defaultdict
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

__all__ = ["StageClock", "StageTimer", "untimed", "wait_for"]

StageTimer = Callable[[str], AbstractContextManager[object]]
"""A function from a stage's name to a context manager that is open while the stage
computes."""


def untimed(_stage: str) -> AbstractContextManager[object]:
    """Do not time anything."""
    return nullcontext()


def wait_for(device: torch.device) -> None:
    """Wait until the device is idle."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type != "cpu":
        torch.accelerator.synchronize(device)


class StageClock:
    """Sums the time of each stage; with CUDA, between two events on its stream.

    Stages run on ``device``, except for those named in ``elsewhere``.
    """

    def __init__(
        self, device: torch.device, elsewhere: Mapping[str, torch.device] | None = None
    ) -> None:
        self.device = device
        self._elsewhere = dict(elsewhere or {})
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._open: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def __call__(self, stage: str) -> Generator[None]:
        """Time the computations inside the block."""
        device = self._elsewhere.get(stage, self.device)
        if device.type != "cuda":
            started_s = time.perf_counter()
            yield
            wait_for(device)
            self._seconds[stage] += time.perf_counter() - started_s
            return
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record(torch.cuda.current_stream(device))
        yield
        stop.record(torch.cuda.current_stream(device))
        self._collect()
        self._open.append((stage, start, stop))

    @property
    def seconds(self) -> dict[str, float]:
        """Time per stage of all finished work; stages on different streams may
        overlap."""
        self._collect()
        return dict(self._seconds)

    @property
    def devices(self) -> tuple[torch.device, ...]:
        """All devices, those of the first stages first."""
        return tuple(dict.fromkeys((*self._elsewhere.values(), self.device)))

    def wait(self) -> None:
        """Wait until all devices are idle."""
        for device in self.devices:
            wait_for(device)

    def clear(self) -> None:
        """Reset all times."""
        self.wait()
        self._open.clear()
        self._seconds.clear()

    def _collect(self) -> None:
        """Add the time of finished stages, oldest first."""
        while self._open and self._open[0][2].query():
            stage, start, stop = self._open.pop(0)
            self._seconds[stage] += start.elapsed_time(stop) / 1000
