"""Padding of the latent upsampler."""

from dataclasses import replace

import pytest
import torch

from ultraflash_cli.engine.profiles import LITE
from ultraflash_cli.engine.stages.latent_upsampler import LatentUpsampler


@torch.no_grad()
@pytest.mark.parametrize("scale", [2, 3])
def test_with_replicated_edges_the_convolutions_keep_a_flat_picture_flat(scale: int) -> None:
    assert LITE.upsampler is not None
    config = replace(LITE.upsampler, scale=scale)
    flat = torch.ones(1, config.latent_channels, 1, 4, 5)
    spread: dict[str, float] = {}
    for padding in ("zeros", "replicate"):
        torch.manual_seed(0)
        stage = LatentUpsampler(replace(config, padding=padding))
        torch.nn.init.zeros_(stage.pre_shuffle[0].get_parameter("bias"))
        shuffled = stage.pre_shuffle(flat[:, :, 0])
        cells = shuffled.unflatten(3, (-1, scale)).unflatten(2, (-1, scale))
        spread[padding] = float(cells.std(dim=(2, 4)).max())
    assert spread["replicate"] < 1e-5 < 1e-2 < spread["zeros"]
    assert LITE.upsampler.padding == "replicate"
