"""A result beside its original or its source: every number of every frame, by one call."""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from ultraflash_cli.metrics.ffmpeg import read_planes
from ultraflash_cli.metrics.pairs import Crop, compare_planes
from ultraflash_cli.metrics.registry import Metric
from ultraflash_cli.metrics.vmaf import libvmaf_frames
from ultraflash_cli.metrics.xpsnr import xpsnr_frames

__all__ = ["COMPARED", "Comparison", "Mode", "compare_clips"]

Mode = Literal["original", "source"]
"""What the result is compared with: a clip of its own size, or the smaller one that it was made from."""

COMPARED: Mapping[str, Metric] = MappingProxyType(
    {
        "psnr_y": Metric(title="PSNR-Y", unit="dB", digits=2, higher_is_better=True),
        "ssim": Metric(title="SSIM", unit="", digits=4, higher_is_better=True),
        "ms_ssim": Metric(title="MS-SSIM", unit="", digits=4, higher_is_better=True),
        "xpsnr_y": Metric(title="XPSNR-Y", unit="dB", digits=2, higher_is_better=True),
        "vmaf_v0.6.1": Metric(title="VMAF v0.6.1", unit="", digits=1, higher_is_better=True),
        "vmaf_v0.6.1neg": Metric(title="VMAF v0.6.1 NEG", unit="", digits=1, higher_is_better=True),
        "vmaf_v1.0.16_3d0h": Metric(title="VMAF v1.0.16, 3 heights away", unit="", digits=1, higher_is_better=True),
        "tdiff": Metric(title="temporal error", unit="levels", digits=2, higher_is_better=False),
        "warping": Metric(title="warping error", unit="levels", digits=2, higher_is_better=False),
        "warping_reference": Metric(
            title="warping error of the reference", unit="levels", digits=2, higher_is_better=False
        ),
        "drift_y": Metric(title="drift of luma", unit="levels", digits=2, higher_is_better=False),
        "drift_cb": Metric(title="drift of Cb", unit="levels", digits=2, higher_is_better=False),
        "drift_cr": Metric(title="drift of Cr", unit="levels", digits=2, higher_is_better=False),
    }
)
"""How the numbers of a comparison are called and read. Scores of different VMAF models cannot be compared."""

_MODELS = {name: name for name in ("vmaf_v0.6.1", "vmaf_v0.6.1neg")}
_LARGE_MODELS = {"vmaf_v1.0.16_3d0h": "vmaf_v1.0.16_3d0h"}
_FEATURES = {"float_ssim": "ssim", "psnr_y": "psnr_y"}
_LARGE_FEATURES = {"float_ms_ssim": "ms_ssim"}
_LARGE_PX = 192
"""Shorter pictures are too small for MS-SSIM and VMAF v1."""
_WARPED_AT_LEAST = 2
"""Frames below which differences in time mean nothing."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two clips measured against each other."""

    mode: Mode
    size_wh: tuple[int, int]
    """At which size they were compared: the reference's."""
    frames: int
    series: Mapping[str, list[float]]
    """One number a frame for each name of ``COMPARED`` that was measured."""
    crops: tuple[Crop, ...]
    """Where each frame differs most, the largest error first."""

    @property
    def means(self) -> dict[str, float]:
        """The mean of each number over the clip; differences in time leave the first frame out."""
        after_first = ("tdiff", "warping", "warping_reference")
        return {
            name: _mean(values[1:] if name in after_first and self.frames >= _WARPED_AT_LEAST else values)
            for name, values in self.series.items()
        }


def compare_clips(
    output: Path,
    reference: Path,
    *,
    mode: Mode,
    size_wh: tuple[int, int],
    crop_px: int = 128,
    threads: int = os.cpu_count() or 1,
) -> Comparison:
    """Measure ``output`` against ``reference``, whose size is ``size_wh``; in mode ``source`` it is made small first.

    Frames are paired by number. Raises InputError where a clip cannot be read or frame counts differ.
    """
    resized = size_wh if mode == "source" else None
    pairs = compare_planes(
        read_planes(output, size_wh=resized),
        read_planes(reference),
        crop_px=crop_px,
        names=(str(output), str(reference)),
    )
    is_large = min(size_wh) >= _LARGE_PX
    models = _MODELS | (_LARGE_MODELS if is_large else {})
    features = _FEATURES | (_LARGE_FEATURES if is_large else {})
    wanted = ["psnr", *(name for name in features if name != "psnr_y")]
    rows = libvmaf_frames(output, reference, models=models, features=wanted, size_wh=resized, threads=threads)
    series = {title: rows[name] for name, title in features.items()}
    series["xpsnr_y"] = xpsnr_frames(output, reference, size_wh=resized)
    series |= {name: rows[name] for name in models}
    for name in ("tdiff", "warping", "warping_reference", "drift_y", "drift_cb", "drift_cr"):
        series[name] = getattr(pairs, name)
    ordered = {name: series[name] for name in COMPARED if name in series}
    return Comparison(mode=mode, size_wh=size_wh, frames=len(pairs.tdiff), series=ordered, crops=tuple(pairs.crops))


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan
