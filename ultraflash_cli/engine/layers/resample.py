"""Fixed separable resampling: lanczos to any size, with a faster path for whole factors."""

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["lanczos_resize", "lanczos_upscale"]

LOBES = 3
"""Lobes of the lanczos window on either side."""


def lanczos_upscale(frames_nchw: Tensor, scale: int) -> Tensor:
    """Enlarge [N, C, H, W] by a whole factor with lanczos-3, edges repeated; pixel centres stay aligned."""
    height, width = frames_nchw.shape[2:]
    taps = _phase_taps(scale).tolist()
    enlarged: list[Tensor] = []
    for frame in frames_nchw.split(1):
        padded = F.pad(frame, (LOBES, LOBES, LOBES, LOBES), mode="replicate")
        tall = [_weigh(padded, taps[row], 2, height) for row in range(scale)]
        phases = [_weigh(part, taps[column], 3, width) for part in tall for column in range(scale)]
        enlarged.append(F.pixel_shuffle(torch.stack(phases, dim=2).flatten(1, 2), scale))
    return enlarged[0] if len(enlarged) == 1 else torch.cat(enlarged)


def _weigh(padded: Tensor, taps: list[float], dim: int, size: int) -> Tensor:
    """Correlate along ``dim`` of a padded tensor; taps of weight 0 cost nothing."""
    total: Tensor | None = None
    for k, weight in enumerate(taps):
        if abs(weight) > 1e-9:
            part = padded.narrow(dim, k, size)
            total = part * weight if total is None else total.add_(part, alpha=weight)
    assert total is not None, "a lanczos phase has taps"
    return total


def lanczos_resize(frames_nchw: Tensor, height: int, width: int) -> Tensor:
    """Resize [N, C, H, W] to any ``height`` x ``width`` with lanczos-3, widened where it shrinks, edges repeated."""
    x = frames_nchw
    for dim, size in ((2, height), (3, width)):
        if size == x.shape[dim]:
            continue
        index, weight = _resize_taps(x.shape[dim], size)
        shape = [1, 1, 1, 1]
        shape[dim] = size
        out = torch.zeros((), dtype=x.dtype, device=x.device)
        for k in range(index.shape[1]):
            tap = x.index_select(dim, index[:, k].to(x.device))
            out = out + tap * weight[:, k].to(x).view(shape)
        x = out
    return x


def _lanczos(x: float) -> float:
    if x == 0:
        return 1.0
    if abs(x) >= LOBES:
        return 0.0
    return LOBES * math.sin(math.pi * x) * math.sin(math.pi * x / LOBES) / (math.pi * x) ** 2


@lru_cache(maxsize=8)
def _phase_taps(scale: int) -> Tensor:
    """Taps [scale, 2 * LOBES + 1] of each output phase around its source pixel, each row summing to 1."""
    rows: list[list[float]] = []
    for phase in range(scale):
        centre = (phase + 0.5) / scale - 0.5
        row = [_lanczos(k - centre) for k in range(-LOBES, LOBES + 1)]
        rows.append([value / sum(row) for value in row])
    return torch.tensor(rows, dtype=torch.float32)


@lru_cache(maxsize=16)
def _resize_taps(size_in: int, size_out: int) -> tuple[Tensor, Tensor]:
    """Source indices and weights [size_out, taps] of a resize along one axis."""
    stretch = max(1.0, size_in / size_out)
    reach = math.ceil(LOBES * stretch)
    index = torch.empty((size_out, 2 * reach + 1), dtype=torch.int64)
    weight = torch.empty((size_out, 2 * reach + 1), dtype=torch.float64)
    for i in range(size_out):
        centre = (i + 0.5) * size_in / size_out - 0.5
        first = round(centre) - reach
        for k in range(2 * reach + 1):
            index[i, k] = min(max(first + k, 0), size_in - 1)
            weight[i, k] = _lanczos((first + k - centre) / stretch)
    return index, (weight / weight.sum(dim=1, keepdim=True)).float()
