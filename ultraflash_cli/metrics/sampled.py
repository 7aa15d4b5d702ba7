"""Metrics that are too expensive for every frame: LPIPS of some frames, ColorVideoVDP
of a few short parts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from types import MappingProxyType

import numpy as np
import torch

from ultraflash_cli.metrics.cvvdp import ColorVideoVdp, missing_packages
from ultraflash_cli.metrics.ffmpeg import Coding, View, read_rgb
from ultraflash_cli.metrics.lpips import PACKAGE as LPIPS_PACKAGE
from ultraflash_cli.metrics.lpips import learned_distance
from ultraflash_cli.metrics.metric import Metric

__all__ = ["SAMPLED", "Sampled", "measure_sampled", "parts", "spread"]

SAMPLED: Mapping[str, Metric] = MappingProxyType(
    {
        "st_lpips_alex": Metric(title="LPIPS, shift-tolerant, AlexNet", unit="", digits=4, higher_is_better=False),
        "cvvdp": Metric(title="ColorVideoVDP, 24-inch full HD", unit="JOD", digits=2, higher_is_better=True),
    }
)
"""Names and formats of these metrics."""

_LPIPS_PIXELS = 10_000_000
_LPIPS_FRAMES = range(5, 25)
"""Bounds of the number of measured frames, which is limited by their total number of
pixels."""
_CVVDP_PIXELS = 12_000_000
_PART_FRAMES = 6
"""Length of a part: a quarter of a second at 24 frames per second, the reach of the
metric's temporal filters."""
_PARTS = range(1, 4)


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """Metrics measured on some of the frames, and reasons for missing ones."""

    series: Mapping[str, list[float | None]]
    """One number per frame by the names of ``SAMPLED``; None for frames that were not measured."""
    left_out: Mapping[str, str]
    """Reasons why metrics were not measured, with the packages to install."""


def measure_sampled(
    output: View, reference: View, *, frames: int, size_wh: tuple[int, int], coding: Coding, fps: float, threads: int
) -> Sampled:
    """Measure every metric of ``SAMPLED`` whose package is installed.

    Args:
        output: The result.
        reference: Clip to compare with, in the same size.
        frames: Number of frames in both.
        size_wh: The size of both views.
        coding: YUV coding of both views.
        fps: Frames per second.
        threads: CPU threads of the networks.
    """
    pixels = size_wh[0] * size_wh[1]
    series: dict[str, list[float | None]] = {}
    left_out: dict[str, str] = {}
    torch.set_num_threads(threads)
    if find_spec(LPIPS_PACKAGE) is None:
        left_out["st_lpips_alex"] = "stlpips-pytorch is not installed; pip install stlpips-pytorch"
    else:
        numbers = spread(frames, _within(_LPIPS_PIXELS // pixels, _LPIPS_FRAMES))
        series["st_lpips_alex"] = _lpips(output, reference, numbers, frames, coding)
    if missing := missing_packages():
        left_out["cvvdp"] = f"not installed: {', '.join(missing)}; pip install --no-deps {' '.join(missing)}"
    else:
        count = _within(_CVVDP_PIXELS // (pixels * _PART_FRAMES), _PARTS)
        series["cvvdp"] = _cvvdp(output, reference, parts(frames, count), frames, coding, fps)
    return Sampled(series=series, left_out=left_out)


def spread(frames: int, count: int) -> list[int]:
    """Return up to ``count`` frame numbers, evenly spaced from the first to the
    last."""
    if count < 2 or frames < 2:
        return [0]
    return sorted({round(index * (frames - 1) / (count - 1)) for index in range(count)})


def parts(frames: int, count: int) -> list[range]:
    """Return up to ``count`` short parts of a clip, each in the middle of one of
    equally many segments."""
    length = min(_PART_FRAMES, frames)
    count = max(1, min(count, frames // length))
    middles = [(2 * index + 1) * frames // (2 * count) for index in range(count)]
    starts = [min(max(0, middle - length // 2), frames - length) for middle in middles]
    return [range(start, start + length) for start in starts]


def _within(count: int, bounds: range) -> int:
    return min(max(count, bounds.start), bounds.stop - 1)


def _lpips(output: View, reference: View, numbers: Sequence[int], frames: int, coding: Coding) -> list[float | None]:
    series: list[float | None] = [None] * frames
    pairs = zip(numbers, *(read_rgb(view, numbers, coding=coding) for view in (output, reference)), strict=True)
    for number, *pair in pairs:
        clips = [torch.from_numpy(np.array(rgb)).permute(2, 0, 1)[None, :, None].float() / 255 for rgb in pair]
        with torch.inference_mode():
            series[number] = float(learned_distance(clips[0], clips[1]))
    return series


def _cvvdp(
    output: View, reference: View, found: Sequence[range], frames: int, coding: Coding, fps: float
) -> list[float | None]:
    metric = ColorVideoVdp()
    series: list[float | None] = [None] * frames
    numbers = [number for part in found for number in part]
    clips = [read_rgb(view, numbers, coding=coding) for view in (output, reference)]
    for index, part in enumerate(found):
        start = index * len(part)
        jod = metric.score(*(np.stack(clip[start : start + len(part)]) for clip in clips), fps=fps)
        series[part.start : part.stop] = [jod] * len(part)
    return series
