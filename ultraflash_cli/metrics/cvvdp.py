"""ColorVideoVDP: visibility of differences on a display, measured by the package cvvdp
(R. Mantiuk et al., SIGGRAPH 2024)."""

import sys
from collections.abc import Generator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["DISPLAY", "ColorVideoVdp", "missing_packages"]

DISPLAY = "standard_fhd"
"""The assumed display: 24 inches, 1920x1080, viewed from 0.6 m."""

_PACKAGES = {
    "pycvvdp": "cvvdp",
    "einops": "einops",
    "ffmpeg": "ffmpeg-python",
    "imageio": "imageio",
    "scipy": "scipy",
}
"""Imported modules, with the packages that provide them."""


def missing_packages() -> list[str]:
    """Return the packages that ColorVideoVDP needs and that are not installed."""
    return [package for module, package in _PACKAGES.items() if find_spec(module) is None]


class ColorVideoVdp:
    """The metric, ready to measure; see ``missing_packages`` first."""

    def __init__(self) -> None:
        with _blur_without_torchvision():
            package = import_module("pycvvdp")
        self._metric: Any = package.cvvdp(display_name=DISPLAY, device=torch.device("cpu"), quiet=True)

    def score(self, output_thwc_u8: np.ndarray, reference_thwc_u8: np.ndarray, fps: float) -> float:
        """Return the quality in just-objectionable differences (JOD); 10 means no
        visible difference."""
        clips = [torch.from_numpy(np.array(clip)) for clip in (output_thwc_u8, reference_thwc_u8)]
        jod, _ = self._metric.predict(*clips, dim_order="FHWC", frames_per_second=fps)
        return float(jod)


class _GaussianBlur:
    """The only part of torchvision that the metric uses."""

    def __init__(self, kernel_size: int, sigma: float) -> None:
        away = torch.arange(kernel_size, dtype=torch.float32) - (kernel_size - 1) / 2
        weights = torch.exp(-0.5 * (away / sigma) ** 2)
        self._weights = weights / weights.sum()

    def __call__(self, planes: Tensor) -> Tensor:
        planes_nchw = planes.reshape(-1, 1, *planes.shape[-2:])
        padded = F.pad(planes_nchw, (len(self._weights) // 2,) * 4, mode="reflect")
        row = self._weights.to(planes).view(1, 1, 1, -1)
        return F.conv2d(F.conv2d(padded, row), row.mT).reshape(planes.shape)

    forward = __call__


@contextmanager
def _blur_without_torchvision() -> Generator[None]:
    """Make the package importable without torchvision, which has no build for torch's
    CPU builds. The package also extends ``sys.path``, which is undone.
    """
    transforms, ops = ModuleType("torchvision.transforms"), ModuleType("torchvision.ops")
    transforms.GaussianBlur = _GaussianBlur  # pyright: ignore[reportAttributeAccessIssue]
    ops.MLP = nn.Sequential  # pyright: ignore[reportAttributeAccessIssue]  named by a variant that is not used here
    stand_ins = {"torchvision": ModuleType("torchvision"), transforms.__name__: transforms, ops.__name__: ops}
    own = {name: sys.modules.pop(name) for name in stand_ins if name in sys.modules}
    path = list(sys.path)
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        sys.path[:] = path
        for name in stand_ins:
            sys.modules.pop(name, None)
        sys.modules.update(own)
