"""Conversion of pictures between integer arrays and tensors."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ultraflash_kernels.frames_to_yuv import Matrix, frames_to_yuv

__all__ = [
    "Picture",
    "YuvFormat",
    "as_picture",
    "put_frames",
    "quantise",
    "to_planes",
    "to_tensor",
    "widen",
]

Picture = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]
"""RGB [H, W, 3], 8 bits or 16 (full scale); or planes of YUV 4:2:0 [3H / 2, W], see
``to_planes``."""


@dataclass(frozen=True, kw_only=True)
class YuvFormat:
    """The format in which a video encoder expects YUV 4:2:0 planes; chroma is on the
    left."""

    matrix: Matrix
    full_range: bool
    bits: int
    """Bits per sample, 8 or 10."""


def to_tensor(picture_hwc: Picture) -> Tensor:
    """Return [3, H, W] float32 in [0, 1]."""
    top = float(np.iinfo(picture_hwc.dtype).max)
    return torch.from_numpy(
        np.ascontiguousarray(picture_hwc.transpose(2, 0, 1)).astype(np.float32)
    ).div_(top)


def put_frames(into_tchw: Tensor, pictures: Sequence[Picture]) -> None:
    """Write pictures of equal depth to [T, 3, H, W] as float32 in [0, 1]. For a GPU the
    integers are copied through pinned memory, without waiting for queued work.
    """
    if not into_tchw.is_cuda:
        for target, picture in zip(into_tchw.unbind(), pictures, strict=True):
            target.copy_(to_tensor(picture))
        return
    deep = pictures[0].dtype == np.uint16
    whole = torch.from_numpy(
        np.stack([picture.view(np.int16) if deep else picture for picture in pictures])
    )
    into_tchw.copy_(
        widen(whole.pin_memory().to(into_tchw.device, non_blocking=True), deep=deep)
    )


def widen(pictures_thwc: Tensor, *, deep: bool) -> Tensor:
    """Convert full-scale integers (16-bit ones stored as int16) to float32 [T, 3, H, W]
    in [0, 1]."""
    whole = pictures_thwc.to(torch.int32) & 0xFFFF if deep else pictures_thwc
    return (
        whole.permute(0, 3, 1, 2)
        .to(torch.float32, memory_format=torch.contiguous_format)
        .div_(65535 if deep else 255)
    )


def quantise(picture_chw: Tensor, *, deep: bool) -> Tensor:
    """Return [H, W, 3] full-scale integers on the same device: uint8, or 16 bits stored
    as int16 if ``deep``. Values are rounded and clamped.
    """
    top = 65535 if deep else 255
    whole = picture_chw.float().mul(top).round_().clamp_(0, top)
    whole = whole.to(torch.int32).to(torch.int16) if deep else whole.to(torch.uint8)
    return whole.permute(1, 2, 0).contiguous()


def to_planes(picture_chw: Tensor, form: YuvFormat) -> Tensor:
    """Return YUV 4:2:0 planes [3H / 2, W], luma above both chroma planes: uint8, or 10
    bits as int16; sides must be even. They are computed on the picture's device, which
    halves the bytes to copy.
    """
    height, width = picture_chw.shape[1:]
    assert height % 2 == 0 and width % 2 == 0, "planes of 4:2:0 have even sides"
    planes = frames_to_yuv(
        picture_chw[None], matrix=form.matrix, full_range=form.full_range, bits=form.bits
    )
    packed = planes.packed if form.bits == 8 else planes.packed.view(torch.int16)
    return packed.view(height * 3 // 2, width)


def as_picture(pixels: Tensor) -> Picture:
    """Return the result of ``quantise`` or ``to_planes`` as an array that shares its
    memory. On a GPU this waits for a copy.
    """
    array = pixels.cpu().numpy()
    return array.view(np.uint16) if array.dtype == np.int16 else array
