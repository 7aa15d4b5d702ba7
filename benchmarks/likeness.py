"""Similarity of clips by networks fitted to human judgement: shift-tolerant LPIPS, by
AlexNet and by VGG.

The weights come in the wheel of stlpips-pytorch (`pip install --no-deps
stlpips-pytorch`). VGG is slow, so only the centre of two frames is compared.
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch

from benchmarks.rgb import read_rgb
from ultraflash_cli.errors import UsageError
from ultraflash_cli.metrics.lpips import Trunk, learned_distance, weights_path
from ultraflash_cli.metrics.metric import Metric

__all__ = ["LIKENESS", "is_there", "likeness"]

LIKENESS: Mapping[str, Metric] = MappingProxyType(
    {
        "lpips_alex": Metric(title="LPIPS Alex", unit="", digits=3, higher_is_better=False),
        "lpips_vgg": Metric(title="LPIPS VGG", unit="", digits=3, higher_is_better=False),
    }
)
"""Columns in addition to the command's metrics."""
TRUNKS: Mapping[str, Trunk] = MappingProxyType({"lpips_alex": "alex", "lpips_vgg": "vgg"})
SIDE_PX = 512
"""Side of the centre crop."""
EVERY = 4
"""Interval of compared frames: the fourth and the eighth of eight, the last of fewer
than four."""


def is_there() -> bool:
    """Return whether the weights are installed."""
    try:
        weights_path("vgg")
    except UsageError:
        return False
    return True


def likeness(output: Path, truth: Path, *, width_px: int, height_px: int) -> dict[str, float]:
    """Return the mean distances of two clips of one size; 0 is equal. Raises UsageError without the weights."""

    def middle(path: Path) -> torch.Tensor:
        y, x = (max(0, (side - SIDE_PX) // 2) for side in (height_px, width_px))
        all_ = read_rgb(path, width_px=width_px, height_px=height_px)
        frames = [frame[y : y + SIDE_PX, x : x + SIDE_PX] for frame in all_]
        shown = frames[EVERY - 1 :: EVERY] or frames[-1:]
        return torch.from_numpy(np.stack(shown)).permute(3, 0, 1, 2)[None].float() / 255

    both = middle(output), middle(truth)
    with torch.inference_mode():
        return {name: float(learned_distance(*both, trunk).mean()) for name, trunk in TRUNKS.items()}
