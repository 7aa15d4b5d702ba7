"""Fixed separable resampling: Lanczos to any size, with a faster path for integer
factors."""

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["lanczos_resize", "lanczos_upscale"]

LOBES = 3
"""Lobes of the Lanczos window on each side."""

BLOCK = 32
"""Outputs per small matmul in a resize."""


def lanczos_upscale(frames_nchw: Tensor, scale: int) -> Tensor:
    """Enlarge [N, C, H, W] by an integer factor with Lanczos-3 and replicated edges;
    pixel centres stay aligned."""
    height, width = frames_nchw.shape[2:]
    taps = _phase_taps(scale).tolist()
    enlarged: list[Tensor] = []
    for frame in frames_nchw.split(1):
        padded = F.pad(frame, (LOBES, LOBES, LOBES, LOBES), mode="replicate")
        tall = [_weigh(padded, taps[row], 2, height) for row in range(scale)]
        phases = [
            _weigh(part, taps[column], 3, width) for part in tall for column in range(scale)
        ]
        enlarged.append(F.pixel_shuffle(torch.stack(phases, dim=2).flatten(1, 2), scale))
    return enlarged[0] if len(enlarged) == 1 else torch.cat(enlarged)


def _weigh(padded: Tensor, taps: list[float], dim: int, size: int) -> Tensor:
    """Correlate a padded tensor along ``dim``; taps of weight 0 are skipped."""
    total: Tensor | None = None
    for k, weight in enumerate(taps):
        if abs(weight) > 1e-9:
            part = padded.narrow(dim, k, size)
            total = part * weight if total is None else total.add_(part, alpha=weight)
    assert total is not None, "a lanczos phase has taps"
    return total


def lanczos_resize(frames_nchw: Tensor, height: int, width: int) -> Tensor:
    """Resize [N, C, H, W] to any ``height`` x ``width`` with Lanczos-3, widened for
    downscaling, with replicated edges."""
    resized: list[Tensor] = []
    for frame in frames_nchw:
        planes = frame.flatten(0, 1)
        if width != frame.shape[2]:
            index, weight = _resize_blocks_on(frame.device, frame.shape[2], width)
            windows = (
                planes.index_select(1, index.flatten())
                .unflatten(1, index.shape)
                .transpose(0, 1)
            )
            planes = (
                torch.bmm(windows, weight.to(frame.dtype).mT)
                .transpose(0, 1)
                .flatten(1)[:, :width]
            )

        planes = planes.unflatten(0, frame.shape[:2])
        if height != frame.shape[1]:
            index, weight = _resize_blocks_on(frame.device, frame.shape[1], height)
            rows = planes.transpose(0, 1).flatten(1)
            windows = rows.index_select(0, index.flatten()).unflatten(0, index.shape)
            rows = torch.bmm(weight.to(frame.dtype), windows).flatten(0, 1)[:height]
            planes = rows.unflatten(1, (frame.shape[0], width)).transpose(0, 1)
        resized.append(planes)
    return torch.stack(resized).contiguous()


def _lanczos(x: float) -> float:
    if x == 0:
        return 1.0
    if abs(x) >= LOBES:
        return 0.0
    return (
        LOBES * math.sin(math.pi * x) * math.sin(math.pi * x / LOBES) / (math.pi * x) ** 2
    )


@lru_cache(maxsize=8)
def _phase_taps(scale: int) -> Tensor:
    """Return the taps [scale, 2 * LOBES + 1] of each output phase around its source
    pixel, normalised to sum to 1."""
    rows: list[list[float]] = []
    for phase in range(scale):
        centre = (phase + 0.5) / scale - 0.5
        row = [_lanczos(k - centre) for k in range(-LOBES, LOBES + 1)]
        rows.append([value / sum(row) for value in row])
    return torch.tensor(rows, dtype=torch.float32)


@lru_cache(maxsize=16)
def _resize_blocks_on(
    device: torch.device, size_in: int, size_out: int
) -> tuple[Tensor, Tensor]:
    """Return ``_resize_blocks`` on a device, cached, as a copy in the loop would wait
    for all queued work."""
    index, weight = _resize_blocks(size_in, size_out)
    return index.to(device), weight.to(device)


@lru_cache(maxsize=16)
def _resize_blocks(size_in: int, size_out: int) -> tuple[Tensor, Tensor]:
    """Return a resize along one axis as a batch of small matmuls: source indices
    [blocks, window] and weights [blocks, BLOCK, window]. Block b produces the outputs b
    * BLOCK ... (b + 1) * BLOCK - 1 from the sources in its window.
    """
    stretch = max(1.0, size_in / size_out)
    reach = math.ceil(LOBES * stretch)
    centres = (torch.arange(size_out, dtype=torch.float64) + 0.5) * size_in / size_out - 0.5
    first = centres.round().long() - reach
    places = first.unsqueeze(1) + torch.arange(2 * reach + 1)
    distance = ((places - centres.unsqueeze(1)) / stretch).abs()
    taps = torch.sinc(distance) * torch.sinc(distance / LOBES) * (distance < LOBES)
    taps = taps / taps.sum(dim=1, keepdim=True)
    blocks = -(-size_out // BLOCK)
    starts = first[::BLOCK]

    ends = (
        torch.stack([first[min((b + 1) * BLOCK, size_out) - 1] for b in range(blocks)])
        + 2 * reach
        + 1
    )
    window = int((ends - starts).max())
    index = (starts.unsqueeze(1) + torch.arange(window)).clamp(0, size_in - 1)
    weight = torch.zeros((blocks * BLOCK, window), dtype=torch.float64)
    columns = places - starts.repeat_interleave(BLOCK)[:size_out].unsqueeze(1)
    weight[:size_out].scatter_(1, columns, taps)
    return index, weight.unflatten(0, (blocks, BLOCK)).float()
