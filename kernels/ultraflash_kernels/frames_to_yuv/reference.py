"""The reference of ``frames_to_yuv`` in plain PyTorch."""

import torch
from torch import Tensor

from ultraflash_kernels.frames_to_yuv.levels import Levels

__all__ = ["forward"]


def forward(
    frames_nchw: Tensor, planes: tuple[Tensor, Tensor, Tensor], levels: Levels
) -> None:
    """Write y, u and v ``[N, rows, cols]``. See ``op.frames_to_yuv``; nothing is
    checked here."""
    wide = frames_nchw.float()
    rgb = torch.where(wide > 0, wide, 0.0).clamp(max=1.0)
    luma = _luma(rgb, levels)
    _store(planes[0], luma * levels.luma + levels.black, levels)
    r, g, b = _pooled(rgb).unbind(1)
    luma = _luma(torch.stack([r, g, b], dim=1), levels)
    _store(planes[1], (b - luma) * levels.blue_difference + levels.grey, levels)
    _store(planes[2], (r - luma) * levels.red_difference + levels.grey, levels)


def _luma(rgb: Tensor, levels: Levels) -> Tensor:
    r, g, b = rgb.unbind(1)
    return r * levels.red + g * levels.green + b * levels.blue


def _pooled(rgb: Tensor) -> Tensor:
    """Resample ``rgb [N, 3, H, W]`` at the chroma sample positions; each side is
    halved, rounding up."""
    height, width = rgb.shape[2:]
    rows, cols = (
        torch.arange(0, height, 2, device=rgb.device),
        torch.arange(0, width, 2, device=rgb.device),
    )
    rgb = (rgb[:, :, rows] + rgb[:, :, (rows + 1).clamp(max=height - 1)]) * 0.5
    here, after = rgb[..., cols], rgb[..., (cols + 1).clamp(max=width - 1)]
    return here * 0.5 + (rgb[..., (cols - 1).clamp(min=0)] + after) * 0.25


def _store(plane: Tensor, level: Tensor, levels: Levels) -> None:
    plane.copy_((level + 0.5).floor().clamp(0, levels.top).to(torch.int32))
