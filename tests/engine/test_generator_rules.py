"""Fewer steps and skipped context passes."""

import dataclasses
import math

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from tests.engine.generators import SCHEDULE, TINY, advance, build, clip, part, run, start
from ultraflash_cli.engine.sampling import GeneratorInputs, Sampler
from ultraflash_cli.engine.stage import state_from_tensors, state_to_tensors


def test_every_chunk_but_the_first_takes_fewer_steps() -> None:
    config = dataclasses.replace(TINY, later_steps=2)
    first, *later = (config.steps_of_chunk(chunk) for chunk in range(3))
    assert first == (1000.0, 937.5, pytest.approx(833.3333), 625.0)
    assert later == [(1000.0, 625.0)] * 2
    stage, inputs = build(config), clip(9)
    state, out = advance(stage, start(stage), inputs)
    assert state.passes == (4 + 1) + 2 * (2 + 1)
    inputs.draws_bscthw[:, 1:, :, 3:] = math.nan
    assert torch.equal(run(stage, inputs), out), "the later chunks use the first draw alone"
    short = build(dataclasses.replace(TINY, steps=(1000, 250)))
    prefilled = Sampler(short).prefill(start(short), out[:, :, :3])
    later_draws = GeneratorInputs(inputs.noise_bcthw[:, :, 3:], inputs.draws_bscthw[:, :1, :, 3:])
    assert torch.equal(run(short, later_draws, prefilled), out[:, :, 3:])


def test_the_gate_is_asked_about_every_chunk_but_the_first_and_can_spare_its_context_pass() -> None:
    stage, asked = build(), list[tuple[Tensor, Tensor]]()

    def gate(latents: Tensor, anchor: Tensor) -> bool:
        asked.append((latents.clone(), anchor.clone()))
        return len(asked) == 1

    plain = run(stage, clip(9))
    state, out = advance(stage, start(stage), clip(9), gate=gate)
    assert (state.passes, state.refreshes_skipped) == (3 * 5 - 1, 1)
    assert torch.equal(torch.cat([latents for latents, _ in asked], dim=2), out[:, :, 3:])
    assert all(torch.equal(anchor, out[:, :, 2:3]) for _, anchor in asked)
    assert torch.equal(out[:, :, :6], plain[:, :, :6])
    assert not torch.equal(out[:, :, 6:], plain[:, :, 6:])


def test_a_spared_chunk_is_remembered_from_its_last_noisy_run() -> None:
    stage, inputs = build(), clip(6)
    state, out = advance(stage, start(stage), inputs, gate=lambda latents, anchor: True)
    expected = Sampler(stage).prefill(start(stage), out[:, :, :3])
    noise, draws = inputs.noise_bcthw[:, :, 3:], inputs.draws_bscthw[:, :, :, 3:]
    x, rings, clean = noise, expected.rings, noise
    with torch.no_grad():
        for i, timestep in enumerate(TINY.steps_of_chunk(1)):
            x = SCHEDULE.renoise(clean, draws[:, i - 1], timestep) if i else noise
            flow, rings = stage.forward_chunk(x, timestep, rings=rings, context=state.context, first_frame=3)
            clean = SCHEDULE.clean(x, flow, timestep)
    for ring, other in zip(state.rings, rings, strict=True):
        torch.testing.assert_close(ring.used[:2], other.used[:2], rtol=0, atol=1e-5)


def test_counters_and_the_anchor_survive_a_saved_state() -> None:
    stage, inputs = build(dataclasses.replace(TINY, slide=True, later_steps=3)), clip(14)

    def gate(latents: Tensor, anchor: Tensor) -> bool:
        return bool(latents.mean() > anchor.mean() / 4)

    whole, out = advance(stage, start(stage), inputs, gate=gate)
    assert 0 < whole.refreshes_skipped < 4
    context = torch.randn(1, 2, TINY.text_dim)
    for cut in (3, 9, 12):
        state, head = advance(stage, start(stage, context=context * 0), part(inputs, 0, cut), gate=gate)
        loaded = state_from_tensors(start(stage, context=context), load(save(state_to_tensors(state))))
        loaded, tail = advance(stage, loaded, part(inputs, cut, 14), gate=gate)
        assert torch.equal(torch.cat([head, tail], dim=2), out)
        for counter in ("frames", "chunks", "passes", "refreshes_skipped"):
            assert getattr(loaded, counter) == getattr(whole, counter), counter
