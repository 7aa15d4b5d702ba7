"""The schedule of a stream: groups, chunks, lengths, noise."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ultraflash_cli.engine.schedule import Alignment, group_noise, kv_lengths, latents_for, plan_generation
from ultraflash_cli.errors import ConfigError


def test_the_published_clip_is_81_frames_in_four_groups() -> None:
    plan = plan_generation(21)
    assert plan.chunks == (3,) * 7
    assert plan.group_chunks == ((3, 3), (3, 3), (3, 3), (3,))
    assert plan.groups == (6, 6, 6, 3)
    assert plan.pixel_frames == (21, 24, 24, 12)
    assert (plan.total_latents, plan.total_frames) == (21, 81)


def test_latents_that_do_not_fill_a_chunk_are_left_away() -> None:
    assert plan_generation(120, independent_first=True).total_latents == 118
    assert plan_generation(23).total_latents == 21


@given(latents=st.integers(4, 200), chunk=st.integers(1, 4), first=st.booleans(), per_group=st.integers(1, 4))
def test_a_plan_accounts_for_every_frame(latents: int, chunk: int, first: bool, per_group: int) -> None:
    plan = plan_generation(latents, chunk=chunk, independent_first=first, chunks_per_group=per_group)
    assert latents - chunk < plan.total_latents <= latents
    assert plan.total_frames == 4 * plan.total_latents - 3 == sum(plan.pixel_frames)
    assert plan.chunks == ((1 if first else chunk),) + (chunk,) * (len(plan.chunks) - 1)
    assert [len(group) for group in plan.group_chunks[:-1]] == [per_group] * (len(plan.groups) - 1)
    assert 1 <= len(plan.group_chunks[-1]) <= per_group
    assert sum(plan.groups) == plan.total_latents
    assert plan_generation(plan.total_latents, chunk=chunk, independent_first=first, chunks_per_group=per_group) == plan


def test_a_plan_without_a_chunk_is_refused() -> None:
    assert plan_generation(1, independent_first=True).chunks == (1,)
    for latents in (2, 0, -3):
        with pytest.raises(ConfigError, match="at least 3 latent frames"):
            plan_generation(latents)
    with pytest.raises(ConfigError, match="must not be empty"):
        plan_generation(9, chunk=0)
    with pytest.raises(ConfigError, match="must not be empty"):
        plan_generation(9, chunks_per_group=0)


@pytest.mark.parametrize(
    ("seconds", "first", "latents"),
    [(5, False, 21), (5.0625, False, 21), (5.07, False, 24), (0.01, False, 3), (0.01, True, 1), (5, True, 22)],
    ids=str,
)
def test_a_clip_is_as_long_as_asked_for(seconds: float, first: bool, latents: int) -> None:
    assert latents_for(seconds, independent_first=first) == latents


@given(seconds=st.floats(0.001, 600), chunk=st.integers(1, 4), first=st.booleans())
def test_a_clip_is_no_longer_than_it_has_to_be(seconds: float, chunk: int, first: bool) -> None:
    latents = latents_for(seconds, chunk=chunk, independent_first=first)
    plan = plan_generation(latents, chunk=chunk, independent_first=first)
    assert plan.total_latents == latents
    assert plan.total_frames >= seconds * 16
    if len(plan.chunks) > 1:
        assert plan.total_frames - 4 * chunk < seconds * 16


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.nan, math.inf], ids=str)
def test_a_length_that_is_none_is_refused(seconds: float) -> None:
    with pytest.raises(ConfigError, match="longer than 0 seconds"):
        latents_for(seconds)


def test_the_memory_of_the_sr_transformer_shrinks_after_the_warm_up() -> None:
    assert kv_lengths(7) == (3, 3, 3, 2, 1, 1, 1)
    assert kv_lengths(6, kv=4) == (4, 4, 4, 3, 2, 1)
    assert kv_lengths(4, kv=1) == (1, 1, 1, 1)
    assert kv_lengths(0) == ()


def test_a_stream_s_first_group_stands_in_for_its_front() -> None:
    alignment = Alignment()
    assert [alignment.group_frames(6, first=first) for first in (True, False)] == [21, 24]


def test_noise_depends_on_its_coordinates_alone() -> None:
    def draw(**change: object) -> torch.Tensor:
        place = {"seed": 1, "stage": "generator", "first_frame": 0, "group": 2, **change}
        return group_noise((4, 4), **place)  # pyright: ignore[reportArgumentType]

    torch.manual_seed(0)
    first = draw()
    torch.manual_seed(5)
    assert torch.equal(first, draw())
    for change in ({"seed": 2}, {"stage": "sr_dit"}, {"first_frame": 1}, {"group": 3}):
        assert not torch.equal(first, draw(**change))
