"""A decoder that also reads low-resolution frames."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.contracts.stages import AHEAD, PLAIN_DECODER, READING_DECODER, TINY, WITH_VAE, randomise, tiny_cascade
from ultraflash_cli.engine.layers.low_frames import GAIN, by_latent
from ultraflash_cli.engine.layers.resample import lanczos_upscale
from ultraflash_cli.engine.profiles import LITE, ULTRAFLASH, Profile
from ultraflash_cli.engine.regroup import run
from ultraflash_cli.engine.stages.decoder import Decoder, DecoderConfig, DecoderInputs

SHUFFLING = replace(TINY.latent_stages[1], reads_low_frames=True)


def drawn(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("config", [READING_DECODER, SHUFFLING], ids=["nearest", "shuffle"])
@pytest.mark.parametrize("scale", [1, 2, 3])
def test_a_fresh_condition_changes_nothing_and_may_be_left_out(config: DecoderConfig, scale: int) -> None:
    decoder = Decoder(config).eval()
    latents, low = drawn(1, 4, 2, 6, 6), by_latent(drawn(1, 3, 8, 48 // scale, 48 // scale))
    plain = Decoder(replace(config, reads_low_frames=False)).eval()
    own = {name: value for name, value in decoder.state_dict().items() if not name.startswith("condition.")}
    plain.load_state_dict(own)
    with torch.no_grad():
        wanted = plain.decode(latents, None)[0]
        torch.testing.assert_close(decoder.decode(latents, None)[0], wanted, rtol=0, atol=0)
        torch.testing.assert_close(decoder.decode(latents, None, low)[0], wanted, rtol=0, atol=1e-6)
        randomise(decoder)
        assert not torch.equal(decoder.decode(latents, None, low)[0], decoder.decode(latents, None)[0])


def test_a_frame_reaches_the_features_of_its_own_latent_alone() -> None:
    decoder = Decoder(READING_DECODER)
    randomise(decoder)
    low = drawn(1, 3, 8, 24, 24)
    features = decoder.condition(by_latent(low), 48)[0]
    low[:, :, 5] += 1
    changed = (decoder.condition(by_latent(low), 48)[0] != features).flatten(1).any(1)
    assert changed.tolist() == [False, False, True, False]  # two frames to a cell


@pytest.mark.parametrize("profile", [TINY, AHEAD, WITH_VAE], ids=lambda profile: profile.name)
@pytest.mark.parametrize("scale", [2, 3])
def test_every_frame_of_a_cascade_gets_the_source_frame_it_is_of(profile: Profile, scale: int) -> None:
    """A decoder that only passes on the frames it reads shows the enlarged source."""
    cascade = tiny_cascade(replace(profile, decoder=READING_DECODER), scale=scale)
    decoder = cascade.refiner.decoder  # pyright: ignore[reportAttributeAccessIssue]
    for parameter in decoder.parameters():
        parameter.zero_()
    decoder.condition.pixels.weight[:, :, 1, 1] = torch.eye(3) / GAIN
    source = drawn(1, 3, 19, 16, 16)
    _, sharp = run(cascade, cascade.init_state(height=16, width=16), source.clone())
    wanted = lanczos_upscale(source[0].transpose(0, 1), scale)
    torch.testing.assert_close(sharp[0].transpose(0, 1), wanted)


def test_decoding_in_pieces_reads_the_same_frames() -> None:
    cascade = tiny_cascade(replace(TINY, decoder=READING_DECODER))
    source = drawn(1, 3, 13, 16, 16)
    _, whole = run(cascade, cascade.init_state(height=16, width=16), source.clone())
    cascade.refiner.decode_latents = 1  # pyright: ignore[reportAttributeAccessIssue]
    _, pieces = run(cascade, cascade.init_state(height=16, width=16), source.clone())
    torch.testing.assert_close(pieces, whole)


def test_pieces_of_a_stream_equal_the_parallel_form_that_training_uses() -> None:
    decoder = Decoder(READING_DECODER)
    randomise(decoder)
    latents, low = drawn(2, 4, 3, 6, 6), by_latent(drawn(2, 3, 12, 24, 24))
    state, parts = decoder.init_state(batch=2, height=6, width=6), list[Tensor]()
    for a, b in ((0, 2), (2, 3)):
        state, frames = decoder.step(state, DecoderInputs(latents[:, :, a:b], low[:, :, a:b]))
        parts.append(frames)
    torch.testing.assert_close(torch.cat(parts, dim=2), decoder.decode(latents, None, low)[0])


def test_the_cells_of_a_decoder_s_last_stage() -> None:
    assert PLAIN_DECODER.last_cell == ULTRAFLASH.base_decoder.last_cell == (2, 2)
    assert SHUFFLING.last_cell == (8, 2)
    assert LITE.base_decoder.last_cell == (4, 1)
