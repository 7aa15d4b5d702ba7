"""Match the colours of a large picture to the small one that it was made from."""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["COLOUR_GRID_PX", "cell_means", "match_colours"]

COLOUR_GRID_PX = 16
"""Side of the source cells whose mean colours the result preserves."""


def match_colours(picture_nchw: Tensor, source_nchw: Tensor) -> Tensor:
    """Shift the picture's colours smoothly, so that its mean over every cell of a
    coarse grid equals the source's."""
    height, width = source_nchw.shape[2:]
    grid = (-(-height // COLOUR_GRID_PX), -(-width // COLOUR_GRID_PX))
    drift = _cell_means(source_nchw, grid) - _cell_means(picture_nchw, grid)
    return picture_nchw + F.interpolate(
        drift, size=picture_nchw.shape[2:], mode="bilinear", align_corners=False
    )


def _cell_means(picture_nchw: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return the means over the cells of ``adaptive_avg_pool2d``.

    On a GPU that function uses only fifteen thread blocks for three channels; here it
    is one matmul per axis, or a reduction if all cells have one size.
    """
    if picture_nchw.device.type == "cpu":
        return F.adaptive_avg_pool2d(picture_nchw, grid)
    return cell_means(picture_nchw, grid)


def cell_means(picture_nchw: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return the result of ``adaptive_avg_pool2d``, summed in parallel."""
    (height, width), (rows, columns) = picture_nchw.shape[2:], grid
    if height % rows == 0 and width % columns == 0:
        cells = picture_nchw.unflatten(3, (columns, -1)).unflatten(2, (rows, -1))
        return cells.mean(dim=(3, 5))
    by_row = _averages(height, rows, picture_nchw.device).to(picture_nchw.dtype)
    by_column = _averages(width, columns, picture_nchw.device).to(picture_nchw.dtype)
    return by_row @ (picture_nchw @ by_column.mT)


@lru_cache(maxsize=16)
def _averages(size: int, cells: int, device: torch.device) -> Tensor:
    """Return weights ``[cells, size]`` of the means over cells, which may overlap by a
    pixel."""
    at, cell = torch.arange(size), torch.arange(cells).unsqueeze(1)
    first, end = cell * size // cells, -((-cell - 1) * size // cells)
    inside = (at >= first) & (at < end)
    return (inside / (end - first)).to(device)
