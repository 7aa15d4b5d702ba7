"""Models for `bench` that another process can build; torch is imported only where it is needed."""

import os
from typing import TYPE_CHECKING

import numpy as np

from ultraflash_cli.bench.cases import BenchCase
from ultraflash_cli.bench.timing import Prepared, StageClock
from ultraflash_cli.errors import DeviceError

if TYPE_CHECKING:
    import torch

__all__ = ["CHANNELS", "PEAK_BYTES", "die", "prepare_toy", "refuse"]

CHANNELS = 3
PEAK_BYTES = 123


class ToyUpscaler:
    """Doubles frames with one convolution; groups of 3 frames after a first one of 1."""

    def __init__(self, clock: StageClock, conv: "torch.nn.Conv2d") -> None:
        self.clock = clock
        self.conv = conv

    def group_frames(self, *, first: bool) -> int:
        return 1 if first else 3

    def init_state(self, *, seed: int, first_frame: int) -> int:
        return seed + first_frame

    def step(self, state: int, frames: list[np.ndarray]) -> tuple[int, list[np.ndarray]]:
        import torch

        sharp = [frame.repeat(2, axis=0).repeat(2, axis=1) for frame in frames]
        with torch.inference_mode(), self.clock("decoder"):
            for frame in sharp:
                self.conv(torch.from_numpy(frame).permute(2, 0, 1)[None].float())
        return state + len(frames), sharp


def peak_of_a_toy() -> int:
    return PEAK_BYTES


def prepare_toy(case: BenchCase) -> Prepared:
    import torch

    clock = StageClock(torch.device("cpu"))
    conv = torch.nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
    return Prepared(ToyUpscaler(clock, conv), clock, precision="fp32", peak_rss_bytes=peak_of_a_toy)


def refuse(case: BenchCase) -> Prepared:
    raise DeviceError(f"no device for {case.model}")


def die(case: BenchCase) -> Prepared:
    os._exit(9)
