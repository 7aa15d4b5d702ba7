"""Prompts to frames: counts, seeds, saved states, memory-saving ways that change nothing."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.contracts.stages import randomise
from ultraflash_cli.engine.profiles import TINY_RANDOM, Profile
from ultraflash_cli.engine.refiner import Refiner
from ultraflash_cli.engine.schedule import GenerationPlan, plan_generation
from ultraflash_cli.engine.stage import state_from_tensors, state_to_tensors
from ultraflash_cli.engine.stages.decoder import Decoder
from ultraflash_cli.engine.stages.generator import Generator
from ultraflash_cli.engine.stages.latent_upsampler import LatentUpsampler
from ultraflash_cli.engine.stages.sr_dit import SrDit
from ultraflash_cli.engine.text_to_video import GeneratedGroup, TextToVideo

HEIGHT, WIDTH = 4, 4
CONTEXT = torch.randn((1, 5, 24), generator=torch.Generator().manual_seed(8))


def video(
    plan: GenerationPlan, profile: Profile = TINY_RANDOM, *, refined: bool = True, low: bool = False, **options: Any
) -> TextToVideo:
    assert profile.generator is not None and profile.sr_dit is not None
    generator, upsampler = Generator(profile.generator), LatentUpsampler(profile.upsampler)
    sr_dit, decoder = SrDit(profile.sr_dit), Decoder(profile.decoder)
    for seed, network in enumerate((generator, upsampler, sr_dit, decoder)):
        randomise(network, seed)
    refiner = Refiner(profile, upsampler, sr_dit, decoder) if refined else None
    low_decoder = decoder if low or not refined else None
    return TextToVideo(profile, plan, generator, refiner=refiner, low_decoder=low_decoder, **options)


def start(model: TextToVideo, **options: Any) -> Any:
    settings: dict[str, Any] = {"context": CONTEXT, **options}
    return model.init_state(height=HEIGHT, width=WIDTH, **settings)


def run(model: TextToVideo, **options: Any) -> list[GeneratedGroup]:
    state, groups = start(model, **options), list[GeneratedGroup]()
    for _ in model.plan.groups:
        state, group = model.step(state)
        groups.append(group)
    return groups


def frames_of(groups: list[GeneratedGroup]) -> Tensor:
    frames = [group.frames_bcthw for group in groups if group.frames_bcthw is not None]
    return torch.cat(frames, dim=2)


def test_nine_latents_give_thirty_three_frames_at_both_sizes() -> None:
    plan = plan_generation(9)
    groups = run(video(plan, low=True))
    assert [group.frames_bcthw.shape[2] for group in groups if group.frames_bcthw is not None] == [21, 12]
    assert frames_of(groups).shape == (1, 3, plan.total_frames, 16 * HEIGHT, 16 * WIDTH)
    low = torch.cat([group.low_frames_bcthw for group in groups if group.low_frames_bcthw is not None], dim=2)
    assert low.shape == (1, 3, 33, 8 * HEIGHT, 8 * WIDTH)


def test_without_a_refiner_the_base_size_is_the_result() -> None:
    (group,) = run(video(plan_generation(3), refined=False))
    assert group.frames_bcthw is None and group.latents_bcthw is None
    assert group.low_frames_bcthw is not None and group.low_frames_bcthw.shape[2] == 9


def test_the_seed_reaches_generator_and_refiner() -> None:
    model = video(plan_generation(3))
    (one,), (other,), (again,) = (run(model, seed=seed) for seed in (0, 1, 0))
    assert torch.equal(frames_of([one]), frames_of([again]))
    assert not torch.equal(one.low_latents_bcthw, other.low_latents_bcthw)
    low = one.low_latents_bcthw
    assert model.refiner is not None
    refined = [
        model.refiner.run_group(model.refiner.init_state(height=HEIGHT, width=WIDTH, seed=seed, context=CONTEXT), low)
        for seed in (0, 1)
    ]
    assert not torch.equal(refined[0][1].latents_bcthw, refined[1][1].latents_bcthw)


def test_the_prompt_reaches_generator_and_refiner() -> None:
    model = video(plan_generation(3))
    (one,), (other,) = run(model), run(model, context=CONTEXT.flip(1))
    assert not torch.equal(one.low_latents_bcthw, other.low_latents_bcthw)
    assert model.refiner is not None
    low = one.low_latents_bcthw
    refined = [
        model.refiner.run_group(model.refiner.init_state(height=HEIGHT, width=WIDTH, context=context), low)
        for context in (CONTEXT, CONTEXT.flip(1))
    ]
    assert not torch.equal(refined[0][1].latents_bcthw, refined[1][1].latents_bcthw)


def test_a_saved_state_goes_on_bit_for_bit() -> None:
    model = video(plan_generation(9), low=True)
    whole = run(model, seed=4)
    state, _ = model.step(start(model, seed=4))
    state = state_from_tensors(start(model, seed=4), state_to_tensors(state))
    _, second = model.step(state)
    for before, after in zip(whole[1], second, strict=True):
        assert before is not None and after is not None and torch.equal(before, after)


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
