"""Colours that follow the source: cell means computed in parallel equal PyTorch's
pooling."""

import pytest
import torch
import torch.nn.functional as F

from ultraflash_cli.engine.layers.colours import cell_means


@pytest.mark.parametrize(
    ("height", "width", "grid"),
    [(60, 104, (30, 52)), (61, 103, (30, 52)), (17, 5, (4, 5)), (3, 7, (1, 2))],
    ids=["whole cells", "cells that overlap", "tall", "small"],
)
def test_means_of_cells_are_those_of_adaptive_pooling(height: int, width: int, grid: tuple[int, int]) -> None:
    picture = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(cell_means(picture, grid), F.adaptive_avg_pool2d(picture, grid), rtol=0, atol=1e-6)
