"""Compare a result with its original or its source: all metrics for every frame, in one
call."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from ultraflash_cli.metrics.ffmpeg import Coding, View, read_planes
from ultraflash_cli.metrics.metric import Metric
from ultraflash_cli.metrics.pairs import Crop, compare_planes, distinct_crops
from ultraflash_cli.metrics.sampled import SAMPLED, measure_sampled
from ultraflash_cli.metrics.vmaf import libvmaf_frames
from ultraflash_cli.metrics.xpsnr import xpsnr_frames

__all__ = ["COMPARED", "Comparison", "Mode", "compare_clips"]

Mode = Literal["original", "source"]
"""Reference of the result: a clip of the same size, or the smaller clip that it was
made from."""

COMPARED: Mapping[str, Metric] = MappingProxyType(
    {
        "psnr_y": Metric(title="PSNR-Y", unit="dB", digits=2, higher_is_better=True),
        "ssim": Metric(title="SSIM", unit="", digits=4, higher_is_better=True),
        "ms_ssim": Metric(title="MS-SSIM", unit="", digits=4, higher_is_better=True),
        "xpsnr_y": Metric(title="XPSNR-Y", unit="dB", digits=2, higher_is_better=True),
        "vmaf_v0.6.1": Metric(title="VMAF v0.6.1", unit="", digits=1, higher_is_better=True),
        "vmaf_v0.6.1neg": Metric(title="VMAF v0.6.1 NEG", unit="", digits=1, higher_is_better=True),
        "vmaf_v1.0.16_3d0h": Metric(title="VMAF v1.0.16 (3.0 H)", unit="", digits=1, higher_is_better=True),
        **SAMPLED,
        "tdiff": Metric(title="temporal error", unit="levels", digits=2, higher_is_better=False),
        "warping": Metric(title="warping error", unit="levels", digits=2, higher_is_better=False),
        "warping_reference": Metric(
            title="warping error of the reference", unit="levels", digits=2, higher_is_better=False
        ),
        "drift_y": Metric(title="colour drift, luma", unit="levels", digits=2, higher_is_better=False),
        "drift_cb": Metric(title="colour drift, Cb", unit="levels", digits=2, higher_is_better=False),
        "drift_cr": Metric(title="colour drift, Cr", unit="levels", digits=2, higher_is_better=False),
    }
)
"""Names and formats of the metrics in a comparison. Scores of different VMAF models
cannot be compared."""

_MODELS = ("vmaf_v0.6.1", "vmaf_v0.6.1neg")
_LARGE_MODELS = ("vmaf_v1.0.16_3d0h",)
_FEATURES = {"float_ssim": "ssim", "psnr_y": "psnr_y"}
_MS_SSIM_FRAMES = 300
_LARGE_PX = 192
"""Minimum picture side for MS-SSIM and VMAF v1."""
_WARPED_FRAMES = 200
"""Maximum number of frames, spread over the clip, on which the warping error is
measured."""
_CROPS = 6
_WARPED_AT_LEAST = 2
"""Minimum number of frames for temporal differences to be meaningful."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The measured comparison of two clips."""

    mode: Mode
    size_wh: tuple[int, int]
    """Size at which the clips were compared, that of the reference."""
    frames: int
    series: Mapping[str, list[float | None]]
    """One number per frame for each measured name in ``COMPARED``; None for frames that
    were not measured."""
    left_out: Mapping[str, str]
    """Reasons why metrics were not measured, by name."""
    crops: tuple[Crop, ...]
    """Crops of the largest differences, in decreasing order and without repetition."""

    @property
    def means(self) -> dict[str, float]:
        """The mean of each metric over the clip; temporal differences omit the first
        frame."""
        after_first = ("tdiff", "warping", "warping_reference")
        return {
            name: _mean(values[1:] if name in after_first and self.frames >= _WARPED_AT_LEAST else values)
            for name, values in self.series.items()
        }


def compare_clips(
    output: View,
    reference: View,
    *,
    mode: Mode,
    size_wh: tuple[int, int],
    coding: Coding,
    fps: float,
    frames_estimate: int | None = None,
    crop_px: int = 128,
    threads: int = 1,
) -> Comparison:
    """Measure ``output`` against ``reference``; frames are paired by number.

    Raises InputError if a clip cannot be read or frame counts differ.

    Args:
        output: The result, converted to ``size_wh`` and to the coding of the reference.
        reference: The original, or the source that the output was made from.
        mode: Which of the two it is.
        size_wh: Size of both views.
        coding: How both views are coded.
        fps: Frames per second.
        frames_estimate: About how many frames there are; in long clips some scores are measured on some of them.
        crop_px: Side of the places that are looked for.
        threads: CPU threads.
    """
    names = (str(output.path), str(reference.path))
    pairs = compare_planes(
        read_planes(output),
        read_planes(reference),
        crop_px=crop_px,
        names=names,
        warped_every=max(1, (frames_estimate or 0) // _WARPED_FRAMES),
    )
    frames = len(pairs.tdiff)
    is_large = min(size_wh) >= _LARGE_PX
    models = (*_MODELS, *(_LARGE_MODELS if is_large else ()))
    wanted = ["psnr", *(name for name in _FEATURES if name != "psnr_y")]
    rows = libvmaf_frames(output, reference, models=models, features=wanted, threads=threads)
    sampled = measure_sampled(
        output, reference, frames=frames, size_wh=size_wh, coding=coding, fps=fps, threads=threads
    )

    series: dict[str, list[float | None]] = {title: [*rows[name]] for name, title in _FEATURES.items()}
    if is_large:
        series["ms_ssim"] = _ms_ssim(output, reference, frames=frames, threads=threads)
    series["xpsnr_y"] = [*xpsnr_frames(output, reference)]
    series |= {name: [*rows[name]] for name in models}
    series |= sampled.series
    for name in ("tdiff", "warping", "warping_reference", "drift_y", "drift_cb", "drift_cr"):
        series[name] = getattr(pairs, name)

    small = f"pictures of less than {_LARGE_PX} pixels a side are too small for it"
    left_out = {} if is_large else dict.fromkeys(("ms_ssim", *_LARGE_MODELS), small)
    return Comparison(
        mode=mode,
        size_wh=size_wh,
        frames=frames,
        series={name: series[name] for name in COMPARED if name in series},
        left_out=left_out | dict(sampled.left_out),
        crops=tuple(distinct_crops(pairs.crops, count=_CROPS, frames=frames, crop_px=crop_px)),
    )


def _ms_ssim(output: View, reference: View, *, frames: int, threads: int) -> list[float | None]:
    """Measure MS-SSIM, which takes longer than the rest of libvmaf, on a limited number of frames."""
    step = -(-frames // _MS_SSIM_FRAMES)
    thinned = (each._replace(filters=f"{each.filters},select=not(mod(n\\,{step}))") for each in (output, reference))
    one = _MODELS[:1]  # libvmaf wants one
    rows = libvmaf_frames(*thinned, models=one, features=["float_ms_ssim"], threads=threads)
    series: list[float | None] = [None] * frames
    series[::step] = rows["float_ms_ssim"]
    return series


def _mean(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else math.nan
