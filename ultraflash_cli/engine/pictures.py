"""Pictures as arrays of integers, and as tensors."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = ["Picture", "as_picture", "put_frames", "quantise", "to_tensor", "widen"]

Picture = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]
"""RGB [H, W, 3], 8 bits or 16 (full scale)."""


def to_tensor(picture_hwc: Picture) -> Tensor:
    """Return [3, H, W] float32 in [0, 1]."""
    top = float(np.iinfo(picture_hwc.dtype).max)
    return torch.from_numpy(np.ascontiguousarray(picture_hwc.transpose(2, 0, 1)).astype(np.float32)).div_(top)


def put_frames(into_tchw: Tensor, pictures: Sequence[Picture]) -> None:
    """Write pictures of one depth as float32 in [0, 1] into [T, 3, H, W].

    To a GPU their integers travel, through pinned memory, without waiting for what is computed there.
    """
    if not into_tchw.is_cuda:
        for target, picture in zip(into_tchw.unbind(), pictures, strict=True):
            target.copy_(to_tensor(picture))
        return
    deep = pictures[0].dtype == np.uint16
    whole = torch.from_numpy(np.stack([picture.view(np.int16) if deep else picture for picture in pictures]))
    into_tchw.copy_(widen(whole.pin_memory().to(into_tchw.device, non_blocking=True), deep=deep))


def widen(pictures_thwc: Tensor, *, deep: bool) -> Tensor:
    """Return integers of full scale, 16 bits as their bits in int16, as [T, 3, H, W] float32 in [0, 1]."""
    whole = pictures_thwc.to(torch.int32) & 0xFFFF if deep else pictures_thwc
    return (
        whole.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format).div_(65535 if deep else 255)
    )


def quantise(picture_chw: Tensor, *, deep: bool) -> Tensor:
    """Return [H, W, 3] integers of full scale where the picture is: uint8, or the bits of 16 in int16 if ``deep``.

    Values are rounded and clamped.
    """
    top = 65535 if deep else 255
    whole = picture_chw.float().mul(top).round_().clamp_(0, top)
    whole = whole.to(torch.int32).to(torch.int16) if deep else whole.to(torch.uint8)
    return whole.permute(1, 2, 0).contiguous()


def as_picture(pixels_hwc: Tensor) -> Picture:
    """Return what ``quantise`` gave as an array that shares its memory; from a GPU as a copy, which is waited for."""
    array = pixels_hwc.cpu().numpy()
    return array.view(np.uint16) if array.dtype == np.int16 else array
