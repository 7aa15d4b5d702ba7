"""Sample pictures of a run: tensors of clips arranged side by side in one picture."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ultraflash_cli.engine.layers.resample import lanczos_upscale

__all__ = ["Picture", "enlarged", "sheet"]

Picture = npt.NDArray[np.uint8]
"""RGB [H, W, 3]."""

GAP_PX = 4


def enlarged(low_bcthw: Tensor, scale: int) -> Tensor:
    """Return clips enlarged by a Lanczos filter."""
    batch = low_bcthw.shape[0]
    frames = lanczos_upscale(low_bcthw.float().transpose(1, 2).flatten(0, 1), scale)
    return frames.unflatten(0, (batch, -1)).transpose(1, 2)


def sheet(*clips_bcthw: Tensor, most: int = 4) -> Picture:
    """Return a picture with one row per clip of the batch: the middle and the last
    frame of each column, all of equal size, in [0, 1]."""
    columns: list[Tensor] = []
    for clips in clips_bcthw:
        frames = clips.shape[2]
        columns += [clips[:most, :, frames // 2], clips[:most, :, frames - 1]]
    bytes_ = [(column.float().clamp(0, 1) * 255).round().to(torch.uint8).cpu() for column in columns]
    rows, _, height, width = bytes_[0].shape
    picture = torch.full((3, rows * (height + GAP_PX), len(bytes_) * (width + GAP_PX)), 255, dtype=torch.uint8)
    for x, column in enumerate(bytes_):
        for y, frame in enumerate(column):
            at_y, at_x = y * (height + GAP_PX), x * (width + GAP_PX)
            picture[:, at_y : at_y + height, at_x : at_x + width] = frame
    return np.ascontiguousarray(picture.permute(1, 2, 0).numpy())
