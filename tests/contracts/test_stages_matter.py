"""Every stage of a shipped model has a visible effect; a stage that could be removed is
detected."""

from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.autoencoder import held_out
from benchmarks.stages import Line, Subject, checked, generated, refined, upscaled
from ultraflash_cli.engine.profiles import LITE


def dead(lines: list[Line]) -> set[str]:
    return {line.name for line in lines if not line.ok}


def test_every_stage_that_upscales_with_lite_matters() -> None:
    clips = [clip.frames_cthw[None, :, :8] for clip in held_out(1, (96, 160), falling=False)]
    lines = list(checked(upscaled(LITE, clips), likeness=False))
    assert lines and not dead(lines)


def test_every_stage_that_generates_with_lite_matters() -> None:
    subject = generated(LITE, count=2, latents=3, size=LITE.base_size)
    lines = list(checked(subject, likeness=False))
    assert {line.name for line in lines} == {"generate/generator", "generate/low_decoder", "text_encoder"}
    assert not dead(lines)


def test_every_stage_that_refines_with_lite_matters() -> None:
    clips = [clip.frames_cthw[None] for clip in held_out(1, (192, 320), falling=False)]
    lines = list(checked(refined(LITE, clips), likeness=False))
    assert {line.name for line in lines} == {f"refine/{part}" for part in ("encoder", "upsampler", "sr_dit", "decoder")}
    assert not dead(lines)


class Stage:
    """A stage that adds a constant to its input."""

    def __init__(self, weight: float) -> None:
        self.weight = weight

    def step(self, state: Any, inputs: Tensor) -> tuple[Any, Tensor]:
        return state, self.weight * inputs


@pytest.mark.parametrize("heard", [pytest.param(0.001, id="hardly"), pytest.param(0.5, id="well")])
def test_a_stage_beside_which_the_picture_is_made_is_found_out(heard: float) -> None:
    clip = torch.rand(1, 3, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    skip, latents = Stage(1 - heard), Stage(heard)

    def run(_number: int, _others_words: bool) -> Tensor:
        return skip.step(None, clip)[1] + latents.step(None, clip)[1] + 0.01 * clip.flip(-2)

    lines = list(checked(Subject({"skip": skip, "latents": latents}, run, [clip]), likeness=False))
    assert dead(lines) == ({"latents"} if heard < 0.1 else set())
    assert run(0, False).equal(skip.step(None, clip)[1] + latents.step(None, clip)[1] + 0.01 * clip.flip(-2))
