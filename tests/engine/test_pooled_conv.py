"""Layers of the encoder that are computed together on a GPU: the numbers are those of
the layers one by one."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.contracts.stages import randomise
from tests.parity.vector_set import VectorSet
from ultraflash_cli.engine.layers.memory_block import TimePool, to_clip, to_frames
from ultraflash_cli.engine.profiles import LITE
from ultraflash_cli.engine.stages import encoder as encoder_stage
from ultraflash_cli.engine.stages.encoder import Encoder, EncoderConfig


def clip(patch: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    shape = (2, 3 * patch**2, 8, 16 // patch, 24 // patch)
    return torch.rand(shape, generator=torch.Generator().manual_seed(1)).to(dtype)


def layer_by_layer(encoder: Encoder, frames: Tensor) -> Tensor:
    made, _ = encoder.encoder.stream(to_frames(frames), None, len(frames))
    return to_clip(made, len(frames))


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder_stage, "library_refusal", lambda *_: None)


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize(
    "config",
    [
        pytest.param(EncoderConfig(width=6, blocks=1, latent_channels=4), id="published form"),
        pytest.param(EncoderConfig(width=6, blocks=1, linear_trunk=True), id="no activation before the first pooling"),
        pytest.param(EncoderConfig(width=6, blocks=1, patch=2, strides=(1, 2, 2), time_pools=(1, 4, 1)), id="patches"),
    ],
)
def test_layers_together_compute_what_they_compute_one_by_one(
    config: EncoderConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = Encoder(config)
    randomise(encoder)
    encoder.double()
    unshuffled = clip(config.patch)
    expected = layer_by_layer(encoder, unshuffled)
    shuffled = torch.nn.functional.pixel_shuffle(unshuffled.transpose(1, 2), config.patch).transpose(1, 2)
    monkeypatch.setattr(TimePool, "forward", lambda *_: pytest.fail("a pooling ran on its own"))
    torch.testing.assert_close(encoder.encode(shuffled, None)[0], expected)
    with torch.no_grad():
        encoder.get_parameter("encoder.2.conv.weight").mul_(2)
        encoder.get_parameter("encoder.0.weight").mul_(2)
    changed = encoder.encode(shuffled, None)[0]
    monkeypatch.undo()
    torch.testing.assert_close(changed, layer_by_layer(encoder, unshuffled))


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_stored_weights_round_about_as_much_as_one_by_one(dtype: torch.dtype, repository: Path) -> None:
    vectors = VectorSet(repository / "tests" / "vectors" / "tiny_decoder_small")
    weights = {name: x.to(dtype) for name, x in vectors.weights().items() if name.startswith("encoder.")}
    config = EncoderConfig(width=vectors.config["enc_width"])
    exact, rounded = (Encoder(config).requires_grad_(False) for _ in range(2))
    for each in (exact, rounded):
        each.load_state_dict(weights)
    rounded.to(dtype)
    frames = vectors.io["enc.pixels"].transpose(1, 2)[:, :, :4].to(dtype)
    expected = layer_by_layer(exact.double(), frames.double())
    one_by_one, together = (
        ((made.double() - expected).norm() / expected.norm()).item()
        for made in (layer_by_layer(rounded, frames), rounded.encode(frames, None)[0])
    )
    assert 0 < together < 1.25 * one_by_one


@pytest.mark.parametrize("config", [EncoderConfig(width=8), LITE.encoder], ids=["published", "lite"])
def test_on_a_cpu_every_layer_runs_on_its_own(config: EncoderConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    pooled: list[TimePool] = []
    forward = TimePool.forward
    monkeypatch.setattr(TimePool, "forward", lambda self, x: (pooled.append(self), forward(self, x))[1])
    encoder = Encoder(config).requires_grad_(False)
    encoder.encode(torch.rand(1, 3, 4, 16, 16), None)
    assert len(pooled) == len(config.strides)
