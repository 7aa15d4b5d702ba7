"""Models for `bench` that another process can build; torch is imported only where it is needed."""

import os
import signal
import threading
from typing import TYPE_CHECKING

from ultraflash_cli.bench.cases import BenchCase
from ultraflash_cli.bench.timing import Prepared
from ultraflash_cli.errors import DeviceError

if TYPE_CHECKING:
    import torch

    from ultraflash_cli.engine.counts import CountingClock
    from ultraflash_cli.engine.graphs import Graphs

__all__ = ["CHANNELS", "PEAK_BYTES", "die", "prepare_toy", "prepare_toy_clip", "press_ctrl_c", "refuse"]

CHANNELS = 3
PEAK_BYTES = 123


class ToyStream:
    """Stream with groups of 3 frames after a first one of 1, each computed by one
    convolution; a clip may end after a number of groups."""

    def __init__(
        self, clock: "CountingClock", conv: "torch.nn.Conv2d", size_px: tuple[int, int], groups: int | None
    ) -> None:
        self.size_px = size_px
        self.graphs: tuple[Graphs, ...] = ()
        self._clock, self._conv = clock, conv
        self._left = groups
        self._begun = False

    def next_group(self) -> int:
        import torch

        if self._left == 0:
            return 0
        self._left = None if self._left is None else self._left - 1
        count = 3 if self._begun else 1
        self._begun = True
        width, height = self.size_px
        with torch.inference_mode(), self._clock("decoder"):
            for _ in range(count):
                self._conv(torch.zeros(1, CHANNELS, height, width))
        return count

    def finish(self) -> None:
        pass


def peak_of_a_toy() -> int:
    return PEAK_BYTES


def prepare_toy(case: BenchCase, *, groups: int | None = None) -> Prepared:
    import torch

    from ultraflash_cli.engine.counts import CountingClock

    clock = CountingClock(torch.device("cpu"))
    conv = torch.nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False)
    size = (case.width_px * case.scale, case.height_px * case.scale)
    return Prepared(
        start=lambda: ToyStream(clock, conv, size, groups),
        clock=clock,
        precision="fp32",
        weights="random",
        endless=groups is None,
        peak_rss_bytes=peak_of_a_toy,
    )


def prepare_toy_clip(case: BenchCase) -> Prepared:
    return prepare_toy(case, groups=3)


def refuse(case: BenchCase) -> Prepared:
    raise DeviceError(f"no device for {case.model}")


def die(case: BenchCase) -> Prepared:
    os._exit(9)


def press_ctrl_c(parent: int) -> None:
    """Send the signal that a terminal sends to all its processes, and run forever."""
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(parent, signal.SIGINT)
    threading.Event().wait()
