"""Colours of a large picture that follow those of the small one it was made from."""

import torch.nn.functional as F
from torch import Tensor

__all__ = ["COLOUR_GRID_PX", "match_colours"]

COLOUR_GRID_PX = 16
"""Side of the source cells whose mean colour the result keeps."""


def match_colours(picture_nchw: Tensor, source_nchw: Tensor) -> Tensor:
    """Shift the picture so that its mean over every cell of a coarse grid is the
    source's, smoothly."""
    height, width = source_nchw.shape[2:]
    grid = (-(-height // COLOUR_GRID_PX), -(-width // COLOUR_GRID_PX))
    drift = F.adaptive_avg_pool2d(source_nchw, grid) - F.adaptive_avg_pool2d(
        picture_nchw, grid
    )
    return picture_nchw + F.interpolate(
        drift, size=picture_nchw.shape[2:], mode="bilinear", align_corners=False
    )
