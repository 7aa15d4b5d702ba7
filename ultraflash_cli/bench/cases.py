"""What is measured: a size, a scale, a number of frames, and the made-up clip that goes in."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ultraflash_cli.errors import ConfigError

__all__ = ["BenchCase", "drifting_frames", "parse_size"]

SMALLEST_PX, LARGEST_PX = 16, 8192


@dataclass(frozen=True, kw_only=True)
class BenchCase:
    """One measurement."""

    model: str
    width_px: int = 832
    """Of the source."""
    height_px: int = 480
    scale: int = 2
    frames: int = 24
    """How many frames are timed, rounded up to whole groups; one group more warms up."""
    device: str = "auto"
    precision: str = "auto"
    threads: int = 1
    store: Path | None = None
    """Folder of the downloaded weights; None where only built-in ones may be used."""

    def __post_init__(self) -> None:
        if self.scale not in (2, 3):
            raise ConfigError(f"--scale is 2 or 3, got {self.scale}")
        if self.frames < 1:
            raise ConfigError(f"--frames is at least 1, got {self.frames}")
        for side in (self.width_px, self.height_px):
            if not SMALLEST_PX <= side <= LARGEST_PX:
                raise ConfigError(f"a side is {SMALLEST_PX} to {LARGEST_PX} pixels, got {side}")


def parse_size(text: str) -> tuple[int, int]:
    """Return width and height from ``WxH``; raises ConfigError for anything else."""
    width, cross, height = text.lower().partition("x")
    if not (cross and width.isdecimal() and height.isdecimal()):
        raise ConfigError(f"--size is WIDTHxHEIGHT such as 832x480, got {text!r}")
    return int(width), int(height)


def drifting_frames(width_px: int, height_px: int) -> Iterator[np.ndarray]:
    """Yield 8-bit RGB frames ``[H, W, 3]`` of a coloured texture that moves two pixels a frame, without end."""
    rng = np.random.default_rng(0)
    coarse_hwc = rng.integers(0, 256, (height_px // 8 + 1, width_px // 8 + 1, 3))
    blocks_hwc = coarse_hwc.repeat(8, axis=0).repeat(8, axis=1)[:height_px, :width_px]
    grain_hwc = rng.integers(-16, 17, blocks_hwc.shape)
    texture_hwc = (blocks_hwc + grain_hwc).clip(0, 255).astype(np.uint8)
    while True:
        yield texture_hwc
        texture_hwc = np.roll(texture_hwc, 2, axis=1)
