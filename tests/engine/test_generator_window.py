"""The window of the generator."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.engine.generators import TINY, TOKENS, advance, build, clean_latents, clip, run, start
from ultraflash_cli.engine.sampling import Sampler
from ultraflash_cli.engine.stages.generator import Generator, GeneratorConfig
from ultraflash_cli.errors import ConfigError


def test_a_stream_ends_where_a_window_that_does_not_slide_is_full(stage: Generator) -> None:
    state, out = advance(stage, start(stage), clip(9))
    assert out.shape[2] == TINY.longest == 9
    with pytest.raises(ConfigError, match="ends after 9 latent frames, got 12"):
        advance(stage, state, clip(3))


@pytest.mark.parametrize(
    ("change", "longest"),
    [({}, 21), ({"window": 23}, 21), ({"window": 23, "independent_first_frame": True}, 22), ({"slide": True}, None)],
    ids=str,
)
def test_the_longest_stream_is_whole_chunks(change: dict[str, Any], longest: int | None) -> None:
    assert GeneratorConfig(**change).longest == longest


def test_a_window_that_slides_forgets_frames_after_the_sink() -> None:
    stage = build(dataclasses.replace(TINY, num_layers=1, window=6, sink=2, slide=True))
    inputs = clip(3)

    def after(latents: Tensor) -> Tensor:
        return run(stage, inputs, Sampler(stage).prefill(start(stage), latents))

    plain, changed = clean_latents(9), set[int]()
    for frame in range(9):
        other = plain.clone()
        other[:, :, frame] += 1.0
        if not torch.equal(after(other), after(plain)):
            changed.add(frame)
    assert changed == {0, 1, 8}, "the chunk itself takes the other three places"


def test_positions_continue_beyond_the_window() -> None:
    stage = build(dataclasses.replace(TINY, window=3, slide=True))
    state, _ = advance(stage, start(stage), clip(12))
    assert (state.frames, state.rings[0].total, state.rings[0].fill) == (12, 12 * TOKENS, 3 * TOKENS)
