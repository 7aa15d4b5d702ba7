"""A pixel path's shuffle leaves no grid on smooth pictures once its biases are centred."""

import torch
from safetensors.torch import load_file

from ultraflash_cli.engine.profiles import LITE
from ultraflash_cli.engine.stages.pixel_path import PixelPath, PixelPathConfig
from ultraflash_cli.train.centring import centred_phases, phase_pattern
from ultraflash_cli.weights.manifest import read_manifest


def test_centring_takes_the_grid_out_and_leaves_all_else() -> None:
    torch.manual_seed(3)
    config = PixelPathConfig(width=8, blocks=1, residual_gain=0.5)
    network = PixelPath(config)
    for scale in config.scales:
        torch.nn.init.normal_(network.get_parameter(f"project.{scale}.bias"), std=0.1)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert all(phase_pattern(network, scale).abs().max() > 0.02 for scale in config.scales)
    after = centred_phases(before, residual_gain=0.5)
    network.load_state_dict(after)
    assert all(phase_pattern(network, scale).abs().max() < 1e-5 for scale in config.scales)
    assert {name for name in before if not torch.equal(before[name], after[name])} == {
        f"project.{scale}.bias" for scale in config.scales
    }


def test_the_shipped_detail_puts_no_grid_on_smooth_pictures() -> None:
    assert LITE.pixels is not None
    tensors = load_file(read_manifest()["lite/pixels_detail"].path)
    network = PixelPath(LITE.pixels)
    network.load_state_dict({name: value.float() for name, value in tensors.items()})
    for scale in LITE.pixels.scales:
        assert float(phase_pattern(network.eval(), scale).abs().max()) * 255 < 0.05, f"levels of 255 at x{scale}"
