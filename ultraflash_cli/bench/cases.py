"""Benchmark cases: command, sizes, length, and the synthetic input clip."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from ultraflash_cli.errors import ConfigError

__all__ = ["KINDS", "RES", "WARM_GROUPS", "BenchCase", "drifting_frames", "parse_size"]

SMALLEST_PX, LARGEST_PX = 16, 8192
KINDS = ("upscale", "generate", "kernels")
"""Values of the argument of ``bench``."""
RES = {"480p": 1, "1k": 2, "2k": 3}
"""Scale factor over the model's base size, by target."""
WARM_GROUPS = 6
"""Number of groups after which the window of an endless generation is certainly
full."""


@dataclass(frozen=True, kw_only=True)
class BenchCase:
    """One measurement: a model, its output and the device. Raises ConfigError for sizes
    and lengths out of range."""

    model: str
    kind: Literal["upscale", "generate"] = "upscale"
    width_px: int = 832
    """Width of the source, or of the generator's output."""
    height_px: int = 480
    scale: int = 2
    frames: int = 24
    """Minimum number of frames to time in an upscale or an endless generation, in whole
    groups."""
    seconds: float | None = None
    """Duration of the generated clip to time as a whole; None for 81 frames, the
    published length."""
    long: bool = False
    """Whether to generate with the long variant, whose window slides, and time
    ``frames`` once the window is full."""
    cache_management: str = "off"
    """Cache rules, in the syntax of ``engine.cache_policy.CacheManagement.parse``."""
    device: str = "auto"
    precision: str = "auto"
    threads: int = 1
    waiting: str = "passive"
    """Wait policy of the threads."""
    graphs: bool = True
    """Whether to record CUDA graphs on a GPU."""
    lanes: bool = True
    """Whether to generate the next group while the current one is refined, on a GPU."""
    untrained: bool = False
    """Whether to use random weights, with which times and memory are meaningful but
    pictures are not."""
    store: Path | None = None
    """Folder of downloaded weights; None to use built-in ones only."""

    def __post_init__(self) -> None:
        if self.kind == "upscale" and self.scale not in (2, 3):
            raise ConfigError(f"--scale must be 2 or 3, got {self.scale}")
        if self.kind == "generate" and self.scale not in RES.values():
            raise ConfigError(f"generate supports a scale of 1, 2 or 3, got {self.scale}")
        if self.frames < 1:
            raise ConfigError(f"--frames must be at least 1, got {self.frames}")
        if self.seconds is not None and not 0 < self.seconds <= 3600:
            raise ConfigError(f"--seconds must be above 0 and at most 3600, got {self.seconds:g}")
        for side in (self.width_px, self.height_px):
            if not SMALLEST_PX <= side <= LARGEST_PX:
                raise ConfigError(f"--size must be {SMALLEST_PX} to {LARGEST_PX} pixels per side, got {side}")


def parse_size(text: str) -> tuple[int, int]:
    """Return width and height from ``WxH``; raises ConfigError for anything else."""
    width, cross, height = text.lower().partition("x")
    if not (cross and width.isdecimal() and height.isdecimal()):
        raise ConfigError(f"--size must be WIDTHxHEIGHT such as 832x480, got {text!r}")
    return int(width), int(height)


def drifting_frames(width_px: int, height_px: int) -> Iterator[np.ndarray]:
    """Yield 8-bit RGB frames ``[H, W, 3]`` of a coloured texture that moves two pixels per frame, without end."""
    rng = np.random.default_rng(0)
    coarse_hwc = rng.integers(0, 256, (height_px // 8 + 1, width_px // 8 + 1, 3))
    blocks_hwc = coarse_hwc.repeat(8, axis=0).repeat(8, axis=1)[:height_px, :width_px]
    grain_hwc = rng.integers(-16, 17, blocks_hwc.shape)
    texture_hwc = (blocks_hwc + grain_hwc).clip(0, 255).astype(np.uint8)
    while True:
        yield texture_hwc
        texture_hwc = np.roll(texture_hwc, 2, axis=1)
