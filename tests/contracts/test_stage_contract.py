"""The contract of a streaming stage, which every stage must fulfil."""

from itertools import accumulate, pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import Tensor

from tests.contracts.stages import CASES, StageCase
from ultraflash_cli.engine import regroup
from ultraflash_cli.engine.regroup import Regrouped
from ultraflash_cli.engine.stage import Stage, state_from_tensors, state_to_tensors

each_stage = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def clip_of(case: StageCase) -> Any:
    return case.clip(torch.Generator().manual_seed(11))


def tensors_of(clip: Any) -> list[Tensor]:
    parts = clip if isinstance(clip, tuple) else (clip,)
    return [part for part in parts if part is not None]


def feed(
    case: StageCase, stage: Any, before: Regrouped[Any], clip: Any, borders: list[int]
) -> tuple[Regrouped[Any], list[Tensor]]:
    out: list[Tensor] = []
    for a, b in pairwise(borders):
        before, parts = regroup.push(stage, before, case.cut(clip, a, b))
        out += parts
    return before, out


def run(case: StageCase, stage: Any, clip: Any, pushes: list[int]) -> Tensor:
    borders = [0, *[min(b, case.frames) for b in accumulate(pushes)]]
    state, out = feed(case, stage, start(case, stage), clip, [*borders, case.frames])
    return torch.cat([*out, *regroup.end(stage, state)[1]], dim=2)


def start(case: StageCase, stage: Any) -> Regrouped[Any]:
    return Regrouped(stage.init_state(batch=1, **case.size))


def group_borders(case: StageCase, stage: Any, clip: Any) -> list[int]:
    """Return the ends of the groups, except the end of the clip."""
    borders, state = [0], stage.init_state(batch=1, **case.size)
    while (end := borders[-1] + stage.group_size(state)) < case.frames:
        state, _ = stage.step(state, case.cut(clip, borders[-1], end))
        borders.append(end)
    return borders[1:]


@each_stage
def test_a_stage_follows_the_protocol(case: StageCase) -> None:
    assert isinstance(case.build(), Stage)


@each_stage
@settings(max_examples=6)
@given(pushes=st.lists(st.integers(0, 9), min_size=1, max_size=8))
def test_any_split_of_a_clip_into_pushes_produces_the_same_result_bit_for_bit(
    case: StageCase, pushes: list[int]
) -> None:
    stage, clip = case.build(), clip_of(case)
    assert torch.equal(run(case, stage, clip, pushes), run(case, stage, clip, []))


@pytest.mark.parametrize("case", [case for case in CASES if case.joins], ids=lambda case: case.name)
def test_several_groups_at_once_give_what_they_give_one_by_one(case: StageCase) -> None:
    stage, clip = case.build(), clip_of(case)
    whole = stage.step(stage.init_state(batch=1, **case.size), clip)[1]
    assert torch.equal(whole, run(case, stage, clip, []))
    for border in group_borders(case, stage, clip):
        state, head = stage.step(stage.init_state(batch=1, **case.size), case.cut(clip, 0, border))
        tail = stage.step(state, case.cut(clip, border, case.frames))[1]
        assert torch.equal(torch.cat([head, tail], dim=2), whole)


@each_stage
def test_what_comes_later_never_reaches_what_came_earlier(case: StageCase) -> None:
    stage, out = case.build(), torch.zeros(0)
    for spoiled in range(1, case.frames):
        clip = clip_of(case)
        for tensor in tensors_of(clip):
            ratio = tensor.shape[2] // case.frames
            tensor[:, :, spoiled * ratio :] = float("nan")
        out = run(case, stage, clip, [])
        assert out[:, :, : case.out_time(spoiled)].isfinite().all(), f"unit {spoiled} reached back"
    assert out.isnan().any(), "the poison must show somewhere"


@each_stage
def test_shapes_in_the_state_are_fixed_from_the_start(case: StageCase) -> None:
    stage = case.build()
    before = start(case, stage)
    shapes = {name: t.shape for name, t in state_to_tensors(before.state).items()}
    after, _ = feed(case, stage, before, clip_of(case), list(range(case.frames + 1)))
    assert {name: t.shape for name, t in state_to_tensors(after.state).items()} == shapes


@each_stage
def test_a_saved_state_continues_bit_for_bit(case: StageCase) -> None:
    stage, clip = case.build(), clip_of(case)
    whole = run(case, stage, clip, [])
    for stop in group_borders(case, stage, clip):
        before, head = feed(case, stage, start(case, stage), clip, [0, stop])
        saved = load(save(state_to_tensors(before.state)))
        restored = state_from_tensors(stage.init_state(batch=1, **case.size), saved)
        before, tail = feed(case, stage, Regrouped(restored), clip, [stop, case.frames])
        _, end = regroup.end(stage, before)
        assert torch.equal(torch.cat([*head, *tail, *end], dim=2), whole)


@each_stage
def test_a_fresh_state_forgets_the_last_clip(case: StageCase) -> None:
    stage, clip = case.build(), clip_of(case)
    first = run(case, stage, clip, [])
    run(case, stage, case.clip(torch.Generator().manual_seed(99)), [])
    assert torch.equal(run(case, stage, clip, []), first)


@each_stage
def test_an_empty_clip_gives_nothing(case: StageCase) -> None:
    stage = case.build()
    before, out = regroup.push(stage, start(case, stage), case.cut(clip_of(case), 0, 0))
    assert not [*out, *regroup.end(stage, before)[1]]


@each_stage
def test_memory_is_used(case: StageCase) -> None:
    """Clips that differ in their first unit also differ after its group; a stage
    without memory would pass all other tests."""
    stage, clip = case.build(), clip_of(case)
    plain = run(case, stage, clip, [])
    for tensor in tensors_of(clip):
        tensor[:, :, :1] += 1.0
    assert not torch.equal(run(case, stage, clip, [])[:, :, case.group_out :], plain[:, :, case.group_out :])
