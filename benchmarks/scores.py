"""Metrics of the quality tables: means over a clip of the per-frame values of
`ultraflash compare`."""

import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np

from ultraflash_cli.metrics.ffmpeg import View, read_planes
from ultraflash_cli.metrics.metric import Metric
from ultraflash_cli.metrics.pairs import compare_planes
from ultraflash_cli.metrics.vmaf import libvmaf_frames

__all__ = ["METRICS", "measure"]

METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        "psnr_y": Metric(title="PSNR-Y", unit="dB", digits=2, higher_is_better=True),
        "ssim": Metric(title="SSIM", unit="", digits=4, higher_is_better=True),
        "vmaf": Metric(title="VMAF", unit="", digits=1, higher_is_better=True),
        "vmaf_neg": Metric(title="VMAF-NEG", unit="", digits=1, higher_is_better=True),
        "tdiff": Metric(title="tdiff", unit="levels", digits=2, higher_is_better=False),
    }
)

_NAMED = {"psnr_y": "psnr_y", "ssim": "float_ssim", "vmaf": "vmaf_v0.6.1", "vmaf_neg": "vmaf_v0.6.1neg"}
"""Their names in libvmaf."""


def measure(output: Path, reference: Path, *, threads: int = 1) -> dict[str, float]:
    """Return every metric of ``output`` against ``reference`` by its name.

    Raises InputError if a clip cannot be read or sizes or frame counts differ.
    """
    views = View(output), View(reference)
    planes = (read_planes(view) for view in views)
    # First, because its errors state clearly what does not match.
    pairs = compare_planes(*planes, crop_px=128, names=(str(output), str(reference)), warped_every=sys.maxsize)
    models = (_NAMED["vmaf"], _NAMED["vmaf_neg"])
    rows = libvmaf_frames(*views, models=models, features=("psnr", "float_ssim"), threads=threads)
    scores = {name: float(np.mean(rows[named])) for name, named in _NAMED.items()}
    return scores | {"tdiff": float(np.mean(pairs.tdiff[1:] or [0.0]))}
