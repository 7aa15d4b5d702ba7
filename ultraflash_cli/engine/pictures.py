"""Pictures as arrays of integers, and as tensors."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = ["Picture", "to_picture", "to_tensor"]

Picture = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]
"""RGB [H, W, 3], 8 bits or 16 (full scale)."""


def to_tensor(picture_hwc: Picture) -> Tensor:
    """Return [3, H, W] float32 in [0, 1]."""
    top = float(np.iinfo(picture_hwc.dtype).max)
    return torch.from_numpy(np.ascontiguousarray(picture_hwc.transpose(2, 0, 1)).astype(np.float32)).div_(top)


def to_picture(picture_chw: Tensor, *, deep: bool) -> Picture:
    """Return [H, W, 3] integers of full scale, 16 bits if ``deep``; values are rounded and clamped."""
    top = 65535 if deep else 255
    whole = picture_chw.float().mul(top).round_().clamp_(0, top).to(torch.int32 if deep else torch.uint8)
    pixels = whole.permute(1, 2, 0).contiguous().cpu().numpy()
    return pixels.astype(np.uint16) if deep else pixels
