"""The other latent upsampler: names, shapes, scales."""

import json
from pathlib import Path

import pytest
import torch

from tests.contracts.stages import randomise
from ultraflash_cli.engine.stages.latent_upsampler_v3 import LatentUpsamplerV3, LatentUpsamplerV3Config
from ultraflash_cli.errors import ConfigError


def test_the_full_size_has_the_published_names_and_shapes(repository: Path) -> None:
    manifest = repository / "tests" / "manifests" / "latent_upsampler_v3_x2.json"
    with torch.device("meta"):
        network = LatentUpsamplerV3(LatentUpsamplerV3Config())
    assert {name: list(x.shape) for name, x in network.state_dict().items()} == json.loads(manifest.read_text())[
        "tensors"
    ]


@pytest.mark.parametrize("scale", [1, 2, 4, 8])
def test_every_power_of_two_up_to_the_number_of_stages_is_a_scale(scale: int) -> None:
    stage = LatentUpsamplerV3(LatentUpsamplerV3Config(scale=scale, latent_channels=2, widths=(4, 3, 2), blocks=1))
    randomise(stage)
    state = stage.init_state(batch=2, height=3, width=5)
    _, out = stage.step(state, torch.randn((2, 2, 2, 3, 5), generator=torch.Generator().manual_seed(1)))
    assert out.shape == (2, 2, 2, 3 * scale, 5 * scale)


@pytest.mark.parametrize("scale", [0, 3, 6, 16])
def test_any_other_scale_is_refused(scale: int) -> None:
    with pytest.raises(ConfigError, match="power of two"):
        LatentUpsamplerV3Config(scale=scale)


def test_a_clip_at_once_is_the_clip_frame_by_frame() -> None:
    stage = LatentUpsamplerV3(LatentUpsamplerV3Config(latent_channels=2, widths=(8, 4), blocks=2))
    randomise(stage)
    clip = torch.randn((1, 2, 4, 3, 3), generator=torch.Generator().manual_seed(2))
    _, out = stage.step(stage.init_state(batch=1, height=3, width=3), clip)
    torch.testing.assert_close(stage.upsample(clip, None)[0], out)
