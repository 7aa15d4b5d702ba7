"""The Wan VAE: published names, the order of frames, the effect of the first frame on
later ones."""

import dataclasses
import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.contracts.stages import TINY_VAE, randomise
from ultraflash_cli.engine.stages.wan_vae import WanVaeConfig, WanVaeDecoder, WanVaeEncoder
from ultraflash_cli.errors import ConfigError


def vae(config: WanVaeConfig = TINY_VAE) -> tuple[WanVaeEncoder, WanVaeDecoder]:
    encoder, decoder = WanVaeEncoder(config), WanVaeDecoder(config)
    randomise(encoder, 1)
    randomise(decoder, 2)
    return encoder, decoder


def clip_of(frames: int, *, batch: int = 1, channels: int = 3, side: int = 16) -> Tensor:
    return torch.rand((batch, channels, frames, side, side), generator=torch.Generator().manual_seed(5))


def decode(decoder: WanVaeDecoder, latents: Tensor) -> Tensor:
    batch, _, _, height, width = latents.shape
    return decoder.step(decoder.init_state(batch=batch, height=height, width=width), latents)[1]


def test_the_full_size_has_the_published_names_and_shapes(repository: Path) -> None:
    manifest = repository / "tests" / "manifests" / "wan2.1_vae.json"
    with torch.device("meta"):
        networks = (WanVaeEncoder(WanVaeConfig()), WanVaeDecoder(WanVaeConfig()))
    found = {name: list(x.shape) for network in networks for name, x in network.state_dict().items()}
    assert found == json.loads(manifest.read_text())["tensors"]
    assert sum(len(network.state_dict()) for network in networks) == len(found), "the halves share no name"


@pytest.mark.parametrize(("frames", "latents"), [(1, 1), (4, 2), (5, 2), (8, 3), (9, 3)])
def test_the_first_frame_makes_a_latent_and_every_four_another(frames: int, latents: int) -> None:
    encoder, decoder = vae()
    _, out = encoder.step(encoder.init_state(batch=2, height=16, width=16), clip_of(frames, batch=2))
    assert out.shape == (2, 4, latents, 2, 2)
    assert decode(decoder, out).shape == (2, 3, 4 * latents - 3, 16, 16)


def test_a_tail_is_encoded_with_its_last_frame_repeated() -> None:
    encoder, _ = vae()
    clip = clip_of(7)
    _, short = encoder.step(encoder.init_state(batch=1, height=16, width=16), clip)
    padded = torch.cat([clip, clip[:, :, -1:].expand(-1, -1, 2, -1, -1)], dim=2)
    _, whole = encoder.step(encoder.init_state(batch=1, height=16, width=16), padded)
    assert torch.equal(short, whole)


@settings(max_examples=10)
@given(cuts=st.sets(st.integers(1, 3)))
def test_the_decoder_produces_the_same_frames_for_any_split(cuts: set[int]) -> None:
    _, decoder = vae()
    latents = clip_of(4, channels=4, side=2)
    state, out = decoder.init_state(batch=1, height=2, width=2), list[Tensor]()
    for a, b in pairwise([0, *sorted(cuts), 4]):
        state, frames = decoder.step(state, latents[:, :, a:b])
        out.append(frames)
    assert torch.equal(torch.cat(out, dim=2), decode(decoder, latents))


def test_later_latents_decode_at_once_as_they_do_one_by_one() -> None:
    _, decoder = vae()
    latents = clip_of(4, channels=4, side=2)
    first, memories = decoder.decode(latents[:, :, :1], None)
    rest, _ = decoder.decode(latents[:, :, 1:], memories)
    torch.testing.assert_close(torch.cat([first, rest], dim=2), decode(decoder, latents))


def test_the_first_latent_reaches_the_rest_through_convolutions_but_not_through_time_growth() -> None:
    """With the past removed from every 3x3x3 kernel, only time growth has memory, and
    it ignores the first latent."""
    _, decoder = vae()
    for name, weight in decoder.named_parameters():
        if name.endswith("weight") and tuple(weight.shape[2:]) == (3, 3, 3):
            weight[:, :, :2] = 0.0
    latents = clip_of(3, channels=4, side=2)
    others = {t: latents.clone() for t in (0, 1)}
    for t, other in others.items():
        other[:, :, t] += 1.0
    plain = decode(decoder, latents)
    assert torch.equal(decode(decoder, others[0])[:, :, 1:], plain[:, :, 1:])
    assert not torch.equal(decode(decoder, others[1])[:, :, 5:], plain[:, :, 5:]), "the second latent is remembered"


def test_latents_leave_normalised_and_are_taken_back() -> None:
    encoder, decoder = vae()
    shifted = dataclasses.replace(TINY_VAE, mean=(1.0, 2.0, 3.0, 4.0), std=(2.0, 4.0, 8.0, 0.5))
    other_encoder, other_decoder = vae(shifted)
    state = encoder.init_state(batch=1, height=16, width=16)
    raw = encoder.step(state, clip_of(5))[1]
    mean, std = (torch.tensor(x).view(1, 4, 1, 1, 1) for x in (shifted.mean, shifted.std))
    normalised = other_encoder.step(state, clip_of(5))[1]
    torch.testing.assert_close(normalised, (raw - mean) / std)
    torch.testing.assert_close(decode(other_decoder, normalised), decode(decoder, raw))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.1), (torch.float16, 0.02)], ids=["bf16", "fp16"])
def test_half_precision_stays_close(dtype: torch.dtype, tolerance: float) -> None:
    encoder, decoder = vae()
    clip = clip_of(5)
    clip[:, :, :, :8] = 0.5  # grey is 0 inside: a norm of zeros must not become NaN
    latents = encoder.step(encoder.init_state(batch=1, height=16, width=16), clip)[1]
    frames = decode(decoder, latents)
    encoder, decoder = encoder.to(dtype), decoder.to(dtype)
    half = encoder.step(encoder.init_state(batch=1, height=16, width=16), clip)[1]
    assert half.dtype == dtype
    torch.testing.assert_close(half.float(), latents, atol=tolerance, rtol=0.0)
    torch.testing.assert_close(decode(decoder, latents.to(dtype)).float(), frames, atol=tolerance, rtol=0.0)


@pytest.mark.parametrize(
    "change",
    [
        {"time_downsample": (True, True)},
        {"time_downsample": (True, True, True)},
        {"multipliers": (1, 2, 4)},
        {"width": 0},
        {"latent_channels": 8},
        {"std": (0.0,) * 4},
    ],
    ids=lambda change: next(iter(change)),
)
def test_sizes_that_do_not_fit_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        dataclasses.replace(TINY_VAE, **change)
