"""Alignment in time of output and input frames, which depends on the encoder's pools
and the decoder's groups. This is the question of reference/cascade.md 6.4. With the
published weights, a moving clip answers it.
"""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.contracts.stages import PLAIN_DECODER, TINY, randomise
from ultraflash_cli.engine.profiles import ULTRAFLASH, Profile
from ultraflash_cli.engine.schedule import Alignment
from ultraflash_cli.engine.stages.decoder import Decoder
from ultraflash_cli.engine.stages.encoder import Encoder, EncoderConfig
from ultraflash_cli.errors import WeightsError
from ultraflash_cli.models.shelf import Shelf
from ultraflash_cli.settings import Settings

FRAMES = 29
SHIFTS = range(-4, 5)


def moving_clip(frames: int = FRAMES, side: int = 64) -> Tensor:
    """Return [1, 3, T, side, side] in [0, 1]: a smooth texture that moves two pixels
    per frame."""
    generator = torch.Generator().manual_seed(3)
    coarse = torch.rand((1, 3, side // 8, side // 8), generator=generator)
    texture = torch.nn.functional.interpolate(coarse, size=side, mode="bicubic").clamp(0, 1)
    return torch.stack([texture.roll(2 * t, dims=-1) for t in range(frames)], dim=2)


def best_shift(clip_bcthw: Tensor, decoded_bcthw: Tensor) -> int:
    """Return the number of frames by which ``decoded`` is late; negative if it is
    early."""
    errors: dict[int, float] = {}
    frames = min(clip_bcthw.shape[2], decoded_bcthw.shape[2])
    inside = range(max(SHIFTS), frames + min(SHIFTS))
    for shift in SHIFTS:
        pairs = [(clip_bcthw[:, :, t - shift], decoded_bcthw[:, :, t]) for t in inside]
        errors[shift] = sum((a - b).square().mean().item() for a, b in pairs)
    return min(errors, key=lambda shift: errors[shift])


def round_trip(profile: Profile, encoder: Encoder, decoder: Decoder, clip_bcthw: Tensor) -> Tensor:
    """Encode and decode a clip at its own size, with the alignment of the profile's
    cascade."""
    _, _, frames, height, width = clip_bcthw.shape
    alignment = profile.alignment
    padded = alignment.pad(clip_bcthw, first=True)
    padded = torch.cat([padded, padded[:, :, -1:].expand(-1, -1, 4, -1, -1)], dim=2)
    state = encoder.init_state(batch=1, height=height, width=width)
    _, latents = encoder.step(state, padded)
    decoding = decoder.init_state(batch=1, height=height // 8, width=width // 8)
    raw = decoder.step(decoding, latents)[1]
    return raw[:, :, alignment.drop_front : alignment.drop_front + frames].float()


@pytest.mark.parametrize("shift", [-3, 0, 3])
def test_the_measure_finds_a_shift(shift: int) -> None:
    clip = moving_clip()
    noise = 0.05 * torch.randn(clip.shape, generator=torch.Generator().manual_seed(1))
    assert best_shift(clip, clip.roll(shift, dims=2) + noise) == shift


@pytest.mark.parametrize("pad_front", [0, 3])
def test_a_round_trip_has_as_many_frames_as_the_clip(pad_front: int) -> None:
    profile = replace(TINY, decoder=PLAIN_DECODER, alignment=Alignment(pad_front=pad_front))
    assert isinstance(profile.encoder, EncoderConfig)
    encoder, decoder = Encoder(profile.encoder), Decoder(profile.latent_stages[1])
    randomise(encoder)
    randomise(decoder)
    assert round_trip(profile, encoder, decoder, moving_clip(side=16)).shape == (1, 3, FRAMES, 16, 16)


@pytest.mark.weights
def test_the_published_coders_lose_no_time() -> None:
    shelf, device = Shelf(Settings.from_environment().home), torch.device("cpu")
    coders = (("encoder", ULTRAFLASH.encoder), ("decoder", ULTRAFLASH.base_decoder))
    try:
        encoder, decoder = (
            shelf.take(ULTRAFLASH, part, config, device=device, dtype=torch.float32) for part, config in coders
        )
    except WeightsError as error:
        pytest.skip(f"needs downloaded weights: {error}")
    assert isinstance(encoder, Encoder) and isinstance(decoder, Decoder)
    clip = moving_clip(side=128)
    found = {
        p: best_shift(clip, round_trip(replace(ULTRAFLASH, alignment=Alignment(pad_front=p)), encoder, decoder, clip))
        for p in (3, 0)
    }
    assert found[ULTRAFLASH.alignment.pad_front] == 0, (
        f"frames late by pad_front: {found}; set pad_front to the one with 0"
    )
