"""Chunks of a generated stream."""

import dataclasses

import torch

from tests.engine.generators import SCHEDULE, TINY, TOKENS, advance, build, clip, run, start
from ultraflash_cli.engine import regroup
from ultraflash_cli.engine.regroup import Regrouped
from ultraflash_cli.engine.sampling import GeneratorInputs, Sampler
from ultraflash_cli.engine.stage import state_to_tensors
from ultraflash_cli.engine.stages.generator import Generator


def test_the_first_chunk_may_be_a_latent_frame_alone() -> None:
    stage, inputs = build(dataclasses.replace(TINY, independent_first_frame=True)), clip(9)
    before, parts = regroup.push(Sampler(stage), Regrouped(start(stage)), inputs)
    assert [part.shape[2] for part in parts] == [1, 3, 3]
    assert (before.state.frames, before.state.chunks) == (7, 3)
    assert [part.shape[2] for part in regroup.end(Sampler(stage), before)[1]] == [2]


def test_a_chunk_costs_a_run_a_step_and_one_for_memory(stage: Generator) -> None:
    state, _ = advance(stage, start(stage), clip(6))
    assert (state.passes, state.refreshes_skipped) == (2 * (4 + 1), 0)
    assert all(ring.fill == ring.total == 6 * TOKENS for ring in state.rings)


def test_a_network_of_no_flow_gives_back_what_the_last_step_drew() -> None:
    inputs = clip(3)
    stage = Generator(TINY)
    expected = inputs.noise_bcthw
    for i, timestep in enumerate(TINY.steps_of_chunk(0)[1:]):
        expected = SCHEDULE.renoise(expected, inputs.draws_bscthw[:, i], timestep)
    assert torch.equal(run(stage, inputs), expected)


def test_shapes_and_addresses_in_the_state_are_fixed_from_the_start() -> None:
    stage = build(dataclasses.replace(TINY, window=6, slide=True))
    state = start(stage)
    shapes = {name: x.shape for name, x in state_to_tensors(state).items()}
    addresses = [ring.k.data_ptr() for ring in state.rings]
    for push in (1, 3, 2, 3):
        state, _ = Sampler(stage).step(state, clip(push))
        assert {name: x.shape for name, x in state_to_tensors(state).items()} == shapes
        assert [ring.k.data_ptr() for ring in state.rings] == addresses


def test_a_network_built_without_storage_runs_once_its_weights_are_there(stage: Generator) -> None:
    with torch.device("meta"):
        bare = Generator(TINY)
    bare.load_state_dict(stage.state_dict(), assign=True)
    assert torch.equal(run(bare, clip(3)), run(stage, clip(3)))


def test_samples_of_a_batch_do_not_mix(stage: Generator) -> None:
    inputs = clip(6, batch=2)
    second = GeneratorInputs(inputs.noise_bcthw[1:], inputs.draws_bscthw[1:])
    torch.testing.assert_close(run(stage, inputs)[1:], run(stage, second), rtol=0, atol=2e-5)
