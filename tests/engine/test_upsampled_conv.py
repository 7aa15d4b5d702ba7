"""Layers of the decoder that are computed together: the numbers are those of the layers
one by one, and changed weights count."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.contracts.stages import PLAIN_DECODER, randomise
from tests.parity.vector_set import VectorSet
from ultraflash_cli.engine.counts import counting_flops
from ultraflash_cli.engine.layers.memory_block import to_channels_last, to_clip, to_frames
from ultraflash_cli.engine.layers.upsampled_conv import UpsampledConv
from ultraflash_cli.engine.stages.decoder import Decoder, DecoderConfig, DecoderStage
from ultraflash_kernels.memory_conv import library

SHUFFLED = replace(
    PLAIN_DECODER,
    stages=(DecoderStage(width=6, upsample=False, time_growth=2), *PLAIN_DECODER.stages[1:2], DecoderStage(width=4)),
    last_shuffle=2,
)


def built(config: DecoderConfig, dtype: torch.dtype = torch.float64) -> Decoder:
    decoder = Decoder(config)
    randomise(decoder)
    return decoder.to(dtype)


def latents(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(2, 4, 2, 3, 2, generator=torch.Generator().manual_seed(1)).to(dtype)


def layer_by_layer(decoder: Decoder, clip: Tensor) -> Tensor:
    frames, _ = decoder.decoder.stream(to_frames(clip), None, len(clip))
    return to_clip(frames, len(clip))


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(PLAIN_DECODER, id="published form"),
        pytest.param(replace(PLAIN_DECODER, linear_trunk=True), id="no activation before the last convolution"),
        pytest.param(replace(PLAIN_DECODER, negative_slope=0.1), id="an activation that is not in the convolution"),
        pytest.param(replace(PLAIN_DECODER, out_width=None), id="no convolution before the last"),
        pytest.param(SHUFFLED, id="a shuffle after the last"),
    ],
)
def test_layers_together_compute_what_they_compute_one_by_one(
    config: DecoderConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = built(config)
    expected = layer_by_layer(decoder, latents())
    monkeypatch.setattr(F, "interpolate", lambda *_, **__: pytest.fail("pictures were doubled"))
    torch.testing.assert_close(decoder.decode(latents(), None)[0], expected)


def test_with_gradients_too() -> None:
    decoder = built(PLAIN_DECODER)
    expected = decoder.decode(latents(), None)[0]
    decoder.requires_grad_(True)
    made = decoder.decode(latents(), None)[0]
    torch.testing.assert_close(made, expected)
    made.sum().backward()
    assert all(each.grad is not None for each in decoder.parameters())


def change_in_place(decoder: Decoder, name: str) -> None:
    with torch.no_grad():
        decoder.get_parameter(name).mul_(2)


def load(decoder: Decoder, name: str) -> None:
    decoder.load_state_dict(decoder.state_dict() | {name: 2 * decoder.get_parameter(name)})


def replace_parameter(decoder: Decoder, name: str) -> None:
    owner, _, leaf = name.rpartition(".")
    weight = 2 * decoder.get_parameter(name)
    setattr(decoder.get_submodule(owner), leaf, nn.Parameter(weight, requires_grad=False))


@pytest.mark.parametrize("change", [change_in_place, load, replace_parameter], ids=["in place", "loaded", "replaced"])
@pytest.mark.parametrize("kind", ["growth", "convolution", "head"])
def test_changed_weights_count(change: Callable[[Decoder, str], None], kind: str) -> None:
    decoder = built(PLAIN_DECODER)
    before = decoder.decode(latents(), None)[0]
    at, layer = [item for item in enumerate(decoder.decoder) if isinstance(item[1], UpsampledConv)][-1]
    names = {"growth": f"{at - 1}.conv.weight", "convolution": f"{at}.weight", "head": f"{at + 2}.weight"}
    twin = copy.deepcopy(decoder)
    change(decoder, f"decoder.{names[kind]}")
    after = decoder.decode(latents(), None)[0]
    assert not torch.equal(after, before) and isinstance(layer, UpsampledConv)
    torch.testing.assert_close(after, layer_by_layer(decoder, latents()))
    torch.testing.assert_close(twin.decode(latents(), None)[0], before)


def test_taps_are_not_computed_again_while_weights_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = built(PLAIN_DECODER)
    first = decoder.decode(latents(), None)[0]
    monkeypatch.setattr(torch, "stack", lambda *_: pytest.fail("taps were summed again"))
    assert torch.equal(decoder.decode(latents(), None)[0], first)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_stored_weights_round_about_as_much_as_one_by_one(dtype: torch.dtype, repository: Path) -> None:
    vectors = VectorSet(repository / "tests" / "vectors" / "tiny_decoder_small")
    widths = vectors.config["n_f"]
    stages = (DecoderStage(width=w, time_growth=g) for w, g in zip(widths[:3], (1, 2, 2), strict=True))
    config = DecoderConfig(latent_channels=16, stages=tuple(stages), out_width=widths[3])
    weights = {name: x for name, x in vectors.weights().items() if name.startswith("decoder.")}
    clip = vectors.io["g0.latent"].transpose(1, 2).to(dtype)
    exact, rounded = (Decoder(config).requires_grad_(False) for _ in range(2))
    for each in (exact, rounded):
        each.load_state_dict({name: x.to(dtype) for name, x in weights.items()})
    rounded.to(dtype)
    expected = exact.double().decode(clip.double(), None)[0]
    one_by_one, together = (
        ((made.double() - expected).norm() / expected.norm()).item()
        for made in (layer_by_layer(rounded, clip), rounded.decode(clip, None)[0])
    )
    assert 0 < together < 1.25 * one_by_one


def test_the_arithmetic_of_phases_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four taps of each pixel for a doubled picture and a border, on a GPU as well."""
    layer = to_channels_last(UpsampledConv(5, 7, bias=True, rectifies=True).requires_grad_(False).bfloat16())
    x = torch.randn(2, 5, 3, 4, dtype=torch.bfloat16)
    layer(x)

    def counted() -> int:
        with counting_flops() as so_far:
            layer(x)
            return so_far()

    values = 2 * (4 * 7) * (3 + 1) * (4 + 1)
    flops = 2 * values * (5 * 2 * 2)
    assert counted() == flops
    monkeypatch.setattr(torch, "cudnn_convolution_relu", lambda x, w, b, *_: F.conv2d(x, w, b, padding=1).relu_())
    monkeypatch.setattr(library, "library_refusal", lambda *_: None)
    assert counted() == flops
