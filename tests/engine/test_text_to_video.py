"""Prompts to frames: counts, seeds, saved states, memory-saving settings that change
nothing."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.contracts.stages import PLAIN_DECODER
from tests.engine.videos import CONTEXT, HEIGHT, WIDTH, frames_of, run, start, video
from ultraflash_cli.engine.clock import StageClock
from ultraflash_cli.engine.pictures import YuvFormat
from ultraflash_cli.engine.profiles import LITE, TINY_LITE, TINY_RANDOM
from ultraflash_cli.engine.refiner import Refiner
from ultraflash_cli.engine.schedule import Alignment, GenerationPlan, plan_generation
from ultraflash_cli.engine.stage import state_from_tensors, state_to_tensors
from ultraflash_cli.engine.stages.prompt_encoder import PromptEncoderConfig
from ultraflash_cli.engine.text_to_video import GeneratedGroup, TextToVideo
from ultraflash_cli.errors import ConfigError
from ultraflash_cli.models.frames import GeneratedFrames

LITE_WORDS = PromptEncoderConfig(dim=24)
NO_LATENTS: dict[str, Any] = {"upsampler": None, "sr_dit": None, "decoder": None}
NARROW = replace(PLAIN_DECODER, latent_channels=8)


def test_nine_latents_give_thirty_three_frames_at_both_sizes() -> None:
    plan = plan_generation(9)
    groups = run(video(plan, low=True))
    assert [group.frames_bcthw.shape[2] for group in groups if group.frames_bcthw is not None] == [21, 12]
    assert frames_of(groups).shape == (1, 3, plan.total_frames, 16 * HEIGHT, 16 * WIDTH)
    low = torch.cat([group.low_frames_bcthw for group in groups if group.low_frames_bcthw is not None], dim=2)
    assert low.shape == (1, 3, 33, 8 * HEIGHT, 8 * WIDTH)


@pytest.mark.parametrize("bits", [8, 10])
def test_pictures_of_both_sizes_may_be_planes(bits: int) -> None:
    def pictures(**options: Any) -> list[np.ndarray]:
        model, clock = video(plan_generation(3), low=True), StageClock(torch.device("cpu"))
        frames = GeneratedFrames(model, CONTEXT, None, (8 * HEIGHT, 8 * WIDTH), clock, shows_low=True, **options)
        _, large, small = frames.step(frames.init_state(seed=3))
        return [each.result() for each in (*large, *small) if not isinstance(each, np.ndarray)]

    form = YuvFormat(matrix="bt709", full_range=True, bits=bits)
    shown, planes = pictures(), pictures(yuv=form, low_yuv=form)
    assert len(shown) == len(planes) == 18
    for rgb, yuv in zip(shown, planes, strict=True):
        height, width = rgb.shape[:2]
        assert yuv.shape == (height * 3 // 2, width) and yuv.dtype == (np.uint8 if bits == 8 else np.uint16)
        luma = rgb.astype(float) @ [0.2126, 0.7152, 0.0722] * (2**bits - 1) / 255
        assert np.abs(yuv[:height] - luma).max() <= 0.5 + 0.5 * (2**bits - 1) / 255 + 0.01
    mixed = pictures(low_yuv=form)
    assert [each.ndim for each in mixed] == [3] * 9 + [2] * 9


def test_without_a_refiner_the_base_size_is_the_result() -> None:
    (group,) = run(video(plan_generation(3), refined=False))
    assert group.frames_bcthw is None and group.latents_bcthw is None
    assert group.low_frames_bcthw is not None and group.low_frames_bcthw.shape[2] == 9


def refined_latents(model: TextToVideo, low: Tensor, **options: Any) -> Tensor:
    assert isinstance(model.refiner, Refiner)
    state = model.refiner.init_state(height=HEIGHT, width=WIDTH, **options)
    latents = model.refiner.run_group(state, low)[1].latents_bcthw
    assert latents is not None
    return latents


def test_the_seed_reaches_generator_and_refiner() -> None:
    model = video(plan_generation(3))
    (one,), (other,), (again,) = (run(model, seed=seed) for seed in (0, 1, 0))
    assert torch.equal(frames_of([one]), frames_of([again]))
    assert not torch.equal(one.low_latents_bcthw, other.low_latents_bcthw)
    low = one.low_latents_bcthw
    refined = [refined_latents(model, low, seed=seed, context=CONTEXT) for seed in (0, 1)]
    assert not torch.equal(*refined)


def test_the_prompt_reaches_generator_and_refiner() -> None:
    model = video(plan_generation(3))
    (one,), (other,) = run(model), run(model, context=CONTEXT.flip(1))
    assert not torch.equal(one.low_latents_bcthw, other.low_latents_bcthw)
    low = one.low_latents_bcthw
    refined = [refined_latents(model, low, context=context) for context in (CONTEXT, CONTEXT.flip(1))]
    assert not torch.equal(*refined)


def test_a_saved_state_continues_bit_for_bit() -> None:
    model = video(plan_generation(9), low=True)
    whole = run(model, seed=4)
    state, _ = model.step(start(model, seed=4))
    state = state_from_tensors(start(model, seed=4), state_to_tensors(state))
    _, second = model.step(state)
    assert torch.equal(frames_of([whole[1]]), frames_of([second]))
    assert torch.equal(low_frames_of([whole[1]]), low_frames_of([second]))


def test_parking_the_generator_changes_nothing() -> None:
    plan = plan_generation(9)
    assert torch.equal(frames_of(run(video(plan))), frames_of(run(video(plan, park=torch.device("cpu")))))


def test_smaller_groups_give_as_many_frames() -> None:
    assert TINY_RANDOM.sr_dit is not None
    profile = replace(TINY_RANDOM, group_latents=2, sr_dit=replace(TINY_RANDOM.sr_dit, group_latents=2))
    plan = plan_generation(9)
    assert frames_of(run(video(plan, profile))).shape == frames_of(run(video(plan))).shape


def test_a_clean_prefix_is_remembered_and_not_drawn_again() -> None:
    plan = plan_generation(3)
    model = video(plan, low=True)
    prefix = torch.randn((1, 16, 3, HEIGHT, WIDTH), generator=torch.Generator().manual_seed(2))
    plain, after = run(model), run(model, prefix_bcthw=prefix)
    assert frames_of(after).shape == frames_of(plain).shape
    assert not torch.equal(after[0].low_latents_bcthw, plain[0].low_latents_bcthw)


@pytest.mark.parametrize("latents", [21])
def test_the_published_length_gives_eighty_one_frames(latents: int) -> None:
    assert plan_generation(latents).total_frames == 81


# The built-in model

LITE_CONTEXT = torch.randn((1, 5, 16), generator=torch.Generator().manual_seed(8))


def lite(plan: GenerationPlan, scale: int = 2, **options: Any) -> TextToVideo:
    return video(plan, TINY_LITE.at_scale(scale), **options)


def run_lite(model: TextToVideo, **options: Any) -> list[GeneratedGroup]:
    return run(model, **{"context": LITE_CONTEXT, **options})


def low_frames_of(groups: list[GeneratedGroup]) -> Tensor:
    return torch.cat([group.low_frames_bcthw for group in groups if group.low_frames_bcthw is not None], dim=2)


@pytest.mark.parametrize("scale", [2, 3])
def test_both_sizes_are_made_of_the_same_latents(scale: int) -> None:
    plan = plan_generation(9)
    groups = run_lite(lite(plan, scale, low=True))
    assert frames_of(groups).shape == (1, 3, plan.total_frames, 8 * scale * HEIGHT, 8 * scale * WIDTH)
    assert low_frames_of(groups).shape == (1, 3, plan.total_frames, 8 * HEIGHT, 8 * WIDTH)


def test_how_many_groups_are_made_at_a_time_changes_nothing() -> None:
    plans = [plan_generation(12, chunks_per_group=count) for count in (2, 4)]
    one, other = (run_lite(lite(plan, low=True)) for plan in plans)
    assert (len(one), len(other)) == (2, 1)
    assert torch.equal(frames_of(one), frames_of(other))
    assert torch.equal(low_frames_of(one), low_frames_of(other))


def test_the_states_of_both_decoders_continue_bit_for_bit() -> None:
    model = lite(plan_generation(12), low=True)
    whole = run_lite(model, seed=4)
    fresh = lambda: start(model, context=LITE_CONTEXT, seed=4)  # noqa: E731
    state, _ = model.step(fresh())
    saved = state_to_tensors(state)
    _, second = model.step(state_from_tensors(fresh(), saved))
    assert torch.equal(frames_of([whole[1]]), frames_of([second]))
    assert torch.equal(low_frames_of([whole[1]]), low_frames_of([second]))
    assert any(name.startswith("low_decoder.memories") for name in saved)
    assert any(name.startswith("refiner.decoder.memories") for name in saved)
    forgotten = {name: torch.zeros_like(x) if name.startswith("low_decoder") else x for name, x in saved.items()}
    _, other = model.step(state_from_tensors(fresh(), forgotten))
    assert torch.equal(frames_of([other]), frames_of([whole[1]]))
    assert not torch.equal(low_frames_of([other]), low_frames_of([whole[1]]))


def test_words_reach_the_built_in_model() -> None:
    model = lite(plan_generation(6))
    one, other = frames_of(run_lite(model)), frames_of(run_lite(model, context=LITE_CONTEXT.flip(1)))
    assert not torch.equal(one, other)
    assert torch.equal(one, frames_of(run_lite(model)))


def test_a_window_that_slides_has_no_end() -> None:
    assert TINY_LITE.generator is not None and TINY_LITE.generator.window == 6
    groups = run_lite(lite(plan_generation(24), refined=False))
    assert low_frames_of(groups).shape[2] == 93


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        pytest.param(NO_LATENTS, "requires a decoder", id="nothing makes frames of latents"),
        pytest.param(
            {**NO_LATENTS, "generator": None, "pixels": None}, "a pixel path is required", id="nothing enlarges"
        ),
        pytest.param({**NO_LATENTS, "sr_dit": TINY_LITE.sr_dit}, "SR transformer", id="a transformer without latents"),
        pytest.param({"sr_dit": TINY_RANDOM.sr_dit}, "must have 6 latents", id="other groups"),
        pytest.param({"upsampler": None}, "must be given together", id="a decoder without an upsampler"),
        pytest.param({"alignment": Alignment(pad_front=0)}, "pad_front", id="an encoder that runs ahead"),
        pytest.param({"text_encoder": LITE_WORDS}, "do not match the generator", id="other words"),
        pytest.param({"decoder": NARROW}, "latent channels", id="other latents"),
    ],
)
def test_a_profile_whose_parts_do_not_fit_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        replace(TINY_LITE, **changes)


@pytest.mark.parametrize(("chunk", "together"), [(1, 2), (2, 1), (3, 2), (4, 1)])
def test_as_few_chunks_as_make_whole_groups_are_refined_together(chunk: int, together: int) -> None:
    assert TINY_LITE.generator is not None and LITE.group_latents == 2
    assert LITE.chunks_per_group(replace(TINY_LITE.generator, chunk_latents=chunk)) == together
