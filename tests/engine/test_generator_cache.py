"""The generator's KV cache."""

import dataclasses

import pytest
import torch

from tests.engine.generators import TINY, advance, build, clean_latents, clip, run, start
from ultraflash_cli.engine.sampling import Sampler
from ultraflash_cli.engine.stages.generator import Generator
from ultraflash_cli.errors import ConfigError


def test_a_repeated_run_takes_the_place_of_the_one_before(stage: Generator) -> None:
    with torch.no_grad():
        x, context = clean_latents(3), stage.embed_context(None, batch=1)
        once = stage.forward_chunk(x, 0.0, context=context)
        noisy = stage.forward_chunk(clean_latents(3, seed=8), 625.0, context=context)
        again = stage.forward_chunk(x, 0.0, rings=noisy.rings, context=context)
    assert torch.equal(once.flow_bcthw, again.flow_bcthw)
    assert all(torch.equal(a.k, b.k) and a.total == b.total for a, b in zip(once.rings, again.rings, strict=True))


def test_a_clean_prefix_is_remembered_as_if_it_had_been_generated(stage: Generator) -> None:
    inputs, more = clip(6), clip(3, seed=1)
    generated, clean = advance(stage, start(stage), inputs)
    prefilled = Sampler(stage).prefill(start(stage), clean)
    assert (prefilled.frames, prefilled.chunks, prefilled.passes) == (6, 0, 2)
    for a, b in zip(generated.rings, prefilled.rings, strict=True):
        assert torch.equal(a.k, b.k) and torch.equal(a.v, b.v) and (a.fill, a.total) == (b.fill, b.total)
    assert torch.equal(generated.anchor_bcthw, prefilled.anchor_bcthw)
    assert torch.equal(run(stage, more, generated), run(stage, more, prefilled))


def test_after_a_clean_prefix_no_chunk_is_shorter() -> None:
    stage = build(dataclasses.replace(TINY, independent_first_frame=True))
    state = Sampler(stage).prefill(start(stage), clean_latents(4))
    state, out = advance(stage, state, clip(3))
    assert (out.shape[2], state.frames) == (3, 7)


@pytest.mark.parametrize(("independent", "frames"), [(False, 4), (True, 3)])
def test_a_clean_prefix_comes_in_whole_chunks(independent: bool, frames: int) -> None:
    stage = build(dataclasses.replace(TINY, independent_first_frame=independent))
    with pytest.raises(ConfigError, match="whole chunks of 3"):
        Sampler(stage).prefill(start(stage), clean_latents(frames))


def test_a_clean_prefix_may_be_longer_than_a_window_that_slides(stage: Generator) -> None:
    with pytest.raises(ConfigError, match="ends after 9"):
        Sampler(stage).prefill(start(stage), clean_latents(12))
    sliding = build(dataclasses.replace(TINY, slide=True))
    assert Sampler(sliding).prefill(start(sliding), clean_latents(12)).frames == 12
