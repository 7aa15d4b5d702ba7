"""Pictures as arrays of integers, and as tensors."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ultraflash_kernels.frames_to_yuv import Matrix, frames_to_yuv

__all__ = ["Picture", "YuvFormat", "to_picture", "to_planes", "to_tensor"]

Picture = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]
"""RGB [H, W, 3], 8 bits or 16 (full scale); or planes of YUV 4:2:0 [3H / 2, W], see ``to_planes``."""


@dataclass(frozen=True, kw_only=True)
class YuvFormat:
    """How a video encoder wants planes of YUV 4:2:0; chroma lies on the left."""

    matrix: Matrix
    full_range: bool
    bits: int
    """8 or 10."""


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


def to_planes(picture_chw: Tensor, form: YuvFormat) -> Picture:
    """Return planes of YUV 4:2:0 [3H / 2, W], luma above both of chroma: uint8, or uint16 for 10 bits; sides are even.

    They are made where the picture is, so that half the bytes cross the bus.
    """
    height, width = picture_chw.shape[1:]
    assert height % 2 == 0 and width % 2 == 0, "planes of 4:2:0 have even sides"
    planes = frames_to_yuv(picture_chw[None], matrix=form.matrix, full_range=form.full_range, bits=form.bits)
    return planes.packed.view(height * 3 // 2, width).cpu().numpy()
