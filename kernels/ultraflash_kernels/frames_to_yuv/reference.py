"""The reference of ``frames_to_yuv`` in plain PyTorch."""

import torch
from torch import Tensor

from ultraflash_kernels.frames_to_yuv.levels import Levels

__all__ = ["forward", "thresholds"]


def thresholds(size: int = 8) -> Tensor:
    """Return the Bayer matrix ``[size, size]`` as fractions inside (0, 1), float32;
    size is a power of two."""
    order = torch.zeros(1, 1)
    while order.shape[0] < size:
        upper, lower = (
            torch.cat([4 * order, 4 * order + 2], dim=1),
            torch.cat([4 * order + 3, 4 * order + 1], dim=1),
        )
        order = torch.cat([upper, lower])
    return (order + 0.5) / size**2


def forward(
    frames_nchw: Tensor,
    planes: tuple[Tensor, Tensor, Tensor],
    levels: Levels,
    *,
    left: bool,
    ordered: bool,
) -> None:
    """Write y, u and v ``[N, rows, cols]``. See ``op.frames_to_yuv``; nothing is
    checked here."""
    wide = frames_nchw.float()
    rgb = torch.where(wide > 0, wide, 0.0).clamp(max=1.0)
    luma = _luma(rgb, levels)
    _store(planes[0], luma * levels.luma + levels.black, levels, ordered)
    r, g, b = _pooled(rgb, left).unbind(1)
    luma = _luma(torch.stack([r, g, b], dim=1), levels)
    _store(planes[1], (b - luma) * levels.blue_difference + levels.grey, levels, ordered)
    _store(planes[2], (r - luma) * levels.red_difference + levels.grey, levels, ordered)


def _luma(rgb: Tensor, levels: Levels) -> Tensor:
    r, g, b = rgb.unbind(1)
    return r * levels.red + g * levels.green + b * levels.blue


def _pooled(rgb: Tensor, left: bool) -> Tensor:
    """Resample ``rgb [N, 3, H, W]`` at the chroma sample positions; each side is
    halved, rounding up."""
    height, width = rgb.shape[2:]
    rows, cols = (
        torch.arange(0, height, 2, device=rgb.device),
        torch.arange(0, width, 2, device=rgb.device),
    )
    rgb = (rgb[:, :, rows] + rgb[:, :, (rows + 1).clamp(max=height - 1)]) * 0.5
    here, after = rgb[..., cols], rgb[..., (cols + 1).clamp(max=width - 1)]
    if not left:
        return (here + after) * 0.5
    return here * 0.5 + (rgb[..., (cols - 1).clamp(min=0)] + after) * 0.25


def _store(plane: Tensor, level: Tensor, levels: Levels, ordered: bool) -> None:
    rows, cols = level.shape[1:]
    if ordered:
        pattern = thresholds().to(level.device)
        level = level + pattern.repeat(-(-rows // 8), -(-cols // 8))[:rows, :cols]
    else:
        level = level + 0.5
    plane.copy_(level.floor().clamp(0, levels.top).to(torch.int32))
