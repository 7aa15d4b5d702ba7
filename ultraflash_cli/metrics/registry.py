"""The list of metrics, and a function that measures all of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from ultraflash_cli.metrics.temporal import temporal_difference
from ultraflash_cli.metrics.vmaf import libvmaf_scores

__all__ = ["METRICS", "Metric", "measure"]


@dataclass(frozen=True, kw_only=True)
class Metric:
    """Name and format of a metric."""

    title: str
    unit: str
    digits: int
    """Number of significant decimals."""
    higher_is_better: bool


METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        "psnr_y": Metric(title="PSNR-Y", unit="dB", digits=2, higher_is_better=True),
        "ssim": Metric(title="SSIM", unit="", digits=4, higher_is_better=True),
        "vmaf": Metric(title="VMAF", unit="", digits=1, higher_is_better=True),
        "vmaf_neg": Metric(title="VMAF-NEG", unit="", digits=1, higher_is_better=True),
        "tdiff": Metric(title="tdiff", unit="levels", digits=2, higher_is_better=False),
    }
)


def measure(output: Path, reference: Path, *, threads: int = 1) -> dict[str, float]:
    """Return every metric of ``output`` against ``reference`` by name.

    Raises InputError if a clip cannot be read or sizes or frame counts differ.
    """
    tdiff = temporal_difference(output, reference)  # first, as its errors state clearly what does not match
    scores = libvmaf_scores(output, reference, threads=threads)
    return {
        "psnr_y": scores.psnr_y,
        "ssim": scores.ssim,
        "vmaf": scores.vmaf,
        "vmaf_neg": scores.vmaf_neg,
        "tdiff": tdiff,
    }
