"""The generator as a stage: chunks, window and sink, context passes, fewer steps, clean prefixes."""

import dataclasses
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from ultraflash_cli.engine.stage import state_from_tensors, state_to_tensors
from ultraflash_cli.engine.stages.generator import Generator, GeneratorConfig, GeneratorInputs, GeneratorState
from ultraflash_cli.errors import ConfigError

TINY = GeneratorConfig(
    dim=24,
    num_heads=2,
    num_layers=2,
    ffn_dim=32,
    freq_dim=8,
    text_dim=10,
    text_len=5,
    latent_channels=4,
    window=9,
)
HEIGHT, WIDTH = 4, 6
TOKENS = 6
"""Tokens of a latent frame."""


def build(config: GeneratorConfig = TINY, seed: int = 0) -> Generator:
    """A stage whose head is not zero."""
    torch.manual_seed(seed)
    stage = Generator(config)
    torch.nn.init.normal_(stage.head.head.weight, std=0.2)
    return stage.eval()


def clip(frames: int, *, batch: int = 1, draws: int = 3, seed: int = 0) -> GeneratorInputs:
    draw = torch.Generator().manual_seed(seed)
    noise = torch.randn(batch, 4, frames, HEIGHT, WIDTH, generator=draw)
    return GeneratorInputs(noise, torch.randn(batch, draws, 4, frames, HEIGHT, WIDTH, generator=draw))


def part(inputs: GeneratorInputs, first: int, last: int) -> GeneratorInputs:
    return GeneratorInputs(inputs.noise_bcthw[:, :, first:last], inputs.draws_bscthw[:, :, :, first:last])


def start(stage: Generator, batch: int = 1, **kwargs: Any) -> GeneratorState:
    return stage.init_state(batch=batch, height=HEIGHT, width=WIDTH, **kwargs)


def run(stage: Generator, inputs: GeneratorInputs, state: GeneratorState | None = None) -> Tensor:
    state, out = stage.step(state or start(stage, inputs.noise_bcthw.shape[0]), inputs)
    return torch.cat([out, stage.flush(state)], dim=2)


def clean_latents(frames: int, seed: int = 7) -> Tensor:
    return torch.randn(1, 4, frames, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def stage() -> Generator:
    return build()


# What the network gives


def test_clean_latents_and_the_flow_that_leads_to_them_are_one_thing() -> None:
    """The same last layer: as a flow it is subtracted, as clean latents it is the answer."""
    flow, clean = build(), build(replace(TINY, prediction="clean"))
    clean.load_state_dict(flow.state_dict())
    x, timestep = clean_latents(3), 600.0
    given = flow.forward_chunk(x, timestep).flow_bcthw
    torch.testing.assert_close(clean.forward_chunk(x, timestep).flow_bcthw, (x - given) / 0.6)
    answer = clean.schedule.clean(x, clean.forward_chunk(x, 1000.0).flow_bcthw, 1000.0)
    torch.testing.assert_close(answer, flow.forward_chunk(x, 1000.0).flow_bcthw, rtol=1e-4, atol=1e-4)


def test_frames_of_different_timesteps_have_flows_of_their_own_levels() -> None:
    stage = build(replace(TINY, prediction="clean"))
    x, levels = clean_latents(2), torch.tensor([[900.0, 200.0]])
    flow = stage.forward_chunk(x, levels).flow_bcthw
    clean = x - torch.tensor([0.9, 0.2]).view(1, 1, 2, 1, 1) * flow
    assert clean.abs().max() < 5, "both are answers of the same network, neither is divided by a wrong level"
    assert torch.isfinite(stage.forward_chunk(x, 0.0).flow_bcthw).all()


def test_a_network_that_sees_signal_alone_answers_pure_noise_as_it_answers_any_other() -> None:
    stage = build(replace(TINY, prediction="clean", sees_signal=True))
    x, other = clean_latents(3), clean_latents(3).flip(2)

    def answer(noisy: Tensor, timestep: float) -> Tensor:
        return noisy - timestep / 1000 * stage.forward_chunk(noisy, timestep).flow_bcthw

    torch.testing.assert_close(answer(x, 1000.0), answer(other, 1000.0), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(answer(x, 500.0), answer(other, 500.0), atol=1e-2)
    plain = build(replace(TINY, prediction="clean"))
    plain.load_state_dict(stage.state_dict())
    clean = stage.forward_chunk(x, 0.0), plain.forward_chunk(x, 0.0)
    torch.testing.assert_close(clean[0].flow_bcthw, clean[1].flow_bcthw)
    levels = torch.tensor([[1000.0, 0.0, 0.0]])
    changed = x.clone()
    changed[:, :, 0] += 1
    seen = [stage.forward_chunk(each, levels) for each in (x, changed)]
    torch.testing.assert_close(seen[0].flow_bcthw[:, :, 1:], seen[1].flow_bcthw[:, :, 1:])


def test_a_pooled_prompt_reaches_every_token_at_once() -> None:
    stage = build(replace(TINY, pool_text=True))
    for block in stage.blocks:
        torch.nn.init.zeros_(block.get_parameter("cross_attn.o.weight"))
    words = stage.embed_context(torch.randn(1, 3, TINY.text_dim), batch=1)
    others = stage.embed_context(torch.randn(1, 3, TINY.text_dim), batch=1)
    one, two = (stage.forward_chunk(clean_latents(3), 500.0, context=each).flow_bcthw for each in (words, others))
    assert ((one - two).abs().amax((1, 3, 4)) > 1e-6).all(), "cross-attention is silent, modulation is not"


@pytest.mark.parametrize("drift", [(0, 1), (0, -1), (-1, 0), (1, 0)])
def test_what_moves_a_token_a_chunk_stays_in_one_place_of_a_grid_that_drifts_along(drift: tuple[int, int]) -> None:
    stage = build(replace(TINY, grid=(2, 3), drifts=(drift,), drift_frames=9, slide=True))
    with torch.no_grad():
        for name, value in stage.named_parameters():
            if name.endswith("attn.o.weight") or name in ("row_places", "column_places"):
                value.zero_()  # tokens tell each other nothing, and know only where they are in the moving grid
    x = torch.ones(1, 4, 3, HEIGHT, WIDTH)

    def flow(position: int | Tensor) -> Tensor:
        return stage.forward_chunk(x, 500.0, position=position).flow_bcthw

    now, then = flow(2), flow(5)
    down, right = (2 * step for step in drift)  # two latent pixels a token
    moved = now.roll((down, right), dims=(3, 4))
    here = [slice(max(0, step), step if step < 0 else None) for step in (down, right)]
    torch.testing.assert_close(then[..., here[0], here[1]], moved[..., here[0], here[1]])
    assert not torch.allclose(then, now, atol=1e-2)
    torch.testing.assert_close(flow(torch.tensor(5)), then)
    torch.testing.assert_close(flow(900), flow(903))  # everything that moves has left by then


def test_a_hidden_layer_of_the_head_starts_as_nothing_and_tells_more_than_the_width_of_the_network() -> None:
    plain, hidden = build(replace(TINY, dim=12)), Generator(replace(TINY, dim=12, head_dim=32)).eval()
    left_out = hidden.load_state_dict(plain.state_dict(), strict=False)
    assert sorted({name.split(".")[1] for name in left_out.missing_keys}) == ["detail"]
    noise = clean_latents(3)
    with torch.no_grad():
        before = [each.forward_chunk(noise, 1000.0).flow_bcthw for each in (plain, hidden)]
        assert torch.equal(*before)
        assert hidden.head.detail is not None
        for parameter in hidden.head.detail.parameters():
            torch.nn.init.normal_(parameter)
        tokens, time = torch.randn(1, 1, 500, 12), torch.zeros(1, 1, 12)
        ranks = [int(torch.linalg.matrix_rank(each.head(tokens, time)[0, 0])) for each in (plain, hidden)]
    assert ranks[0] <= 13 and ranks[1] == 16, "at most 12 channels and a bias, or all 16 values of a patch"


def test_drifts_are_single_steps_on_a_grid() -> None:
    for wrong in ((1, 1), (0, 2), (0, 0)):
        with pytest.raises(ConfigError, match="drifts are"):
            replace(TINY, grid=(2, 3), drifts=(wrong,))
    with pytest.raises(ConfigError, match="need a grid"):
        replace(TINY, drifts=((0, 1),))


# Chunks


def test_a_chunk_is_answered_as_soon_as_it_is_complete() -> None:
    stage, inputs = build(dataclasses.replace(TINY, independent_first_frame=True)), clip(9)
    state, lengths = start(stage), list[int]()
    for at in range(9):
        state, out = stage.step(state, part(inputs, at, at + 1))
        lengths.append(out.shape[2])
    assert lengths == [1, 0, 0, 3, 0, 0, 3, 0, 0]
    assert (state.frames, state.chunks, state.waiting) == (7, 3, 2)
    assert stage.flush(state).shape[2] == 2


def test_a_chunk_costs_a_run_a_step_and_one_for_memory(stage: Generator) -> None:
    state, _ = stage.step(start(stage), clip(6))
    assert (state.passes, state.refreshes_skipped) == (2 * (4 + 1), 0)
    assert all(ring.fill == ring.total == 6 * TOKENS for ring in state.rings)


def test_a_network_of_no_flow_gives_back_what_the_last_step_drew() -> None:
    inputs = clip(3)
    stage = Generator(TINY)
    expected = inputs.noise_bcthw
    for i, timestep in enumerate(TINY.steps_of_chunk(0)[1:]):
        expected = stage.schedule.renoise(expected, inputs.draws_bscthw[:, i], timestep)
    assert torch.equal(run(stage, inputs), expected)


def test_shapes_and_addresses_in_the_state_are_fixed_from_the_start() -> None:
    stage = build(dataclasses.replace(TINY, window=6, slide=True))
    state = start(stage)
    shapes = {name: x.shape for name, x in state_to_tensors(state).items()}
    addresses = [ring.k.data_ptr() for ring in state.rings]
    for push in (1, 3, 4, 5):
        state, _ = stage.step(state, clip(push))
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


# The window


def test_a_stream_ends_where_a_window_that_does_not_slide_is_full(stage: Generator) -> None:
    state, out = stage.step(start(stage), clip(9))
    assert out.shape[2] == TINY.longest == 9
    with pytest.raises(ConfigError, match="ends after 9 latent frames, asked for 12"):
        stage.step(state, clip(3))


@pytest.mark.parametrize(
    ("change", "longest"),
    [({}, 21), ({"window": 23}, 21), ({"window": 23, "independent_first_frame": True}, 22), ({"slide": True}, None)],
    ids=str,
)
def test_the_longest_stream_is_whole_chunks(change: dict[str, Any], longest: int | None) -> None:
    assert GeneratorConfig(**change).longest == longest


def test_a_window_that_slides_forgets_what_is_behind_the_sink() -> None:
    stage = build(dataclasses.replace(TINY, num_layers=1, window=6, sink=2, slide=True))
    inputs = clip(3)

    def after(latents: Tensor) -> Tensor:
        return run(stage, inputs, stage.prefill(start(stage), latents))

    plain, changed = clean_latents(9), set[int]()
    for frame in range(9):
        other = plain.clone()
        other[:, :, frame] += 1.0
        if not torch.equal(after(other), after(plain)):
            changed.add(frame)
    assert changed == {0, 1, 8}, "the chunk itself takes the other three places"


def test_positions_go_on_beyond_the_window() -> None:
    stage = build(dataclasses.replace(TINY, window=3, slide=True))
    state, _ = stage.step(start(stage), clip(12))
    assert (state.frames, state.rings[0].total, state.rings[0].fill) == (12, 12 * TOKENS, 3 * TOKENS)


# Memory of a chunk


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
    generated, clean = stage.step(start(stage), inputs)
    prefilled = stage.prefill(start(stage), clean)
    assert (prefilled.frames, prefilled.chunks, prefilled.passes) == (6, 0, 2)
    for a, b in zip(generated.rings, prefilled.rings, strict=True):
        assert torch.equal(a.k, b.k) and torch.equal(a.v, b.v) and (a.fill, a.total) == (b.fill, b.total)
    assert torch.equal(generated.anchor_bcthw, prefilled.anchor_bcthw)
    assert torch.equal(run(stage, more, generated), run(stage, more, prefilled))


def test_behind_a_clean_prefix_no_chunk_is_shorter() -> None:
    stage = build(dataclasses.replace(TINY, independent_first_frame=True))
    state = stage.prefill(start(stage), clean_latents(4))
    state, out = stage.step(state, clip(3))
    assert (out.shape[2], state.frames) == (3, 7)


@pytest.mark.parametrize(("independent", "frames"), [(False, 4), (True, 3)])
def test_a_clean_prefix_comes_in_whole_chunks(independent: bool, frames: int) -> None:
    stage = build(dataclasses.replace(TINY, independent_first_frame=independent))
    with pytest.raises(ConfigError, match="whole chunks of 3"):
        stage.prefill(start(stage), clean_latents(frames))


def test_a_clean_prefix_may_be_longer_than_a_window_that_slides(stage: Generator) -> None:
    with pytest.raises(ConfigError, match="ends after 9"):
        stage.prefill(start(stage), clean_latents(12))
    sliding = build(dataclasses.replace(TINY, slide=True))
    assert sliding.prefill(start(sliding), clean_latents(12)).frames == 12


# Fewer steps, spared context passes


def test_every_chunk_but_the_first_takes_fewer_steps() -> None:
    config = dataclasses.replace(TINY, later_steps=2)
    first, *later = (config.steps_of_chunk(chunk) for chunk in range(3))
    assert first == (1000.0, 937.5, pytest.approx(833.3333), 625.0)
    assert later == [(1000.0, 625.0)] * 2
    stage, inputs = build(config), clip(9)
    state, out = stage.step(start(stage), inputs)
    assert state.passes == (4 + 1) + 2 * (2 + 1)
    inputs.draws_bscthw[:, 1:, :, 3:] = math.nan
    assert torch.equal(run(stage, inputs), out), "the later chunks use the first draw alone"
    short = build(dataclasses.replace(TINY, steps=(1000, 250)))
    prefilled = short.prefill(start(short), out[:, :, :3])
    later_draws = GeneratorInputs(inputs.noise_bcthw[:, :, 3:], inputs.draws_bscthw[:, :1, :, 3:])
    assert torch.equal(run(short, later_draws, prefilled), out[:, :, 3:])


def test_the_gate_is_asked_about_every_chunk_but_the_first_and_can_spare_its_context_pass() -> None:
    stage, asked = build(), list[tuple[Tensor, Tensor]]()

    def gate(latents: Tensor, anchor: Tensor) -> bool:
        asked.append((latents.clone(), anchor.clone()))
        return len(asked) == 1

    plain = run(stage, clip(9))
    stage.gate = gate
    state, out = stage.step(start(stage), clip(9))
    assert (state.passes, state.refreshes_skipped) == (3 * 5 - 1, 1)
    assert torch.equal(torch.cat([latents for latents, _ in asked], dim=2), out[:, :, 3:])
    assert all(torch.equal(anchor, out[:, :, 2:3]) for _, anchor in asked)
    assert torch.equal(out[:, :, :6], plain[:, :, :6])
    assert not torch.equal(out[:, :, 6:], plain[:, :, 6:])


def test_a_spared_chunk_is_remembered_from_its_last_noisy_run() -> None:
    stage, inputs = build(), clip(6)
    stage.gate = lambda latents, anchor: True
    state, out = stage.step(start(stage), inputs)
    expected = stage.prefill(start(stage), out[:, :, :3])
    noise, draws = inputs.noise_bcthw[:, :, 3:], inputs.draws_bscthw[:, :, :, 3:]
    x, rings, clean = noise, expected.rings, noise
    with torch.no_grad():
        for i, timestep in enumerate(TINY.steps_of_chunk(1)):
            x = stage.schedule.renoise(clean, draws[:, i - 1], timestep) if i else noise
            flow, rings = stage.forward_chunk(x, timestep, rings=rings, context=state.context, first_frame=3)
            clean = stage.schedule.clean(x, flow, timestep)
    for ring, other in zip(state.rings, rings, strict=True):
        torch.testing.assert_close(ring.used, other.used, rtol=0, atol=1e-5)


def test_counters_and_the_anchor_survive_a_saved_state() -> None:
    stage, inputs = build(dataclasses.replace(TINY, slide=True, later_steps=3)), clip(14)
    stage.gate = lambda latents, anchor: bool(latents.mean() > anchor.mean() / 4)
    whole, out = stage.step(start(stage), inputs)
    assert 0 < whole.refreshes_skipped < 3
    context = torch.randn(1, 2, TINY.text_dim)
    for cut in (4, 8, 11):
        state, head = stage.step(start(stage, context=context * 0), part(inputs, 0, cut))
        loaded = state_from_tensors(start(stage, context=context), load(save(state_to_tensors(state))))
        loaded, tail = stage.step(loaded, part(inputs, cut, 14))
        assert torch.equal(torch.cat([head, tail], dim=2), out)
        for counter in ("frames", "chunks", "passes", "refreshes_skipped", "waiting"):
            assert getattr(loaded, counter) == getattr(whole, counter), counter


# Network


def test_a_chunk_run_for_training_equals_the_streamed_one_and_passes_gradients_through_memory() -> None:
    stage = build(dataclasses.replace(TINY, window=6, sink=1, slide=True, steps=(1000,)))
    inputs = clip(9, draws=0)
    x = inputs.noise_bcthw.clone().requires_grad_()
    rings, clean = None, list[Tensor]()
    for first in (0, 3, 6):
        noise = x[:, :, first : first + 3]
        result = stage.forward_chunk(noise, 1000.0, rings=rings, first_frame=first)
        clean.append(stage.schedule.clean(noise, result.flow_bcthw, 1000.0))
        rings = stage.forward_chunk(clean[-1], 0.0, rings=result.rings, first_frame=first).rings
    torch.testing.assert_close(torch.cat(clean, dim=2), run(stage, inputs), rtol=0, atol=1e-5)
    clean[-1].square().mean().backward()
    assert x.grad is not None and x.grad[:, :, :3].abs().sum() > 0
    missing = [name for name, p in stage.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not missing


def test_every_frame_may_have_a_timestep_of_its_own(stage: Generator) -> None:
    x = clean_latents(3)
    with torch.no_grad():
        same = stage.forward_chunk(x, 500.0).flow_bcthw
        spread = stage.forward_chunk(x, torch.full((1, 3), 500.0)).flow_bcthw
        mixed = stage.forward_chunk(x, torch.tensor([[500.0, 500.0, 900.0]])).flow_bcthw
    torch.testing.assert_close(spread, same, rtol=0, atol=1e-5)
    change = (mixed - same).abs().amax(dim=(0, 1, 3, 4))
    assert change[2] > 10 * change[:2].max()


def test_no_context_equals_a_context_of_zeros_and_padding_is_added(stage: Generator) -> None:
    inputs, prompt = clip(3), torch.randn(1, 2, TINY.text_dim)
    plain = run(stage, inputs)
    zeros = torch.zeros(1, TINY.text_len, TINY.text_dim)
    assert torch.equal(plain, run(stage, inputs, start(stage, context=zeros)))
    padded = torch.cat([prompt, zeros[:, 2:]], dim=1)
    prompted = run(stage, inputs, start(stage, context=prompt))
    assert torch.equal(prompted, run(stage, inputs, start(stage, context=padded)))
    assert not torch.allclose(plain, prompted, atol=1e-4)


@pytest.mark.parametrize("shape", [(1, 6, 10), (1, 2, 11), (2, 10)], ids=["too long", "too wide", "no batch"])
def test_a_context_that_does_not_fit_is_refused(stage: Generator, shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="a context is"):
        start(stage, context=torch.zeros(shape))


def test_latents_that_are_no_whole_patches_are_refused(stage: Generator) -> None:
    with pytest.raises(ConfigError, match="not whole patches"):
        stage.init_state(batch=1, height=5, width=6)


def test_everything_runs_in_the_dtype_of_the_weights() -> None:
    exact = run(build(), clip(6))
    state, rounded = build().bfloat16().step(start(build().bfloat16()), clip(6))
    assert rounded.dtype == state.rings[0].k.dtype == state.noise_bcthw.dtype == torch.bfloat16
    assert (rounded.float() - exact).abs().max() < 0.2


@pytest.mark.parametrize(
    "change",
    [
        {"dim": 25},
        {"num_heads": 5},
        {"dim": 6, "num_heads": 2},
        {"num_layers": 0},
        {"freq_dim": 7},
        {"text_len": 0},
        {"patch": (2, 2, 2)},
        {"eps": 0.0},
        {"chunk_latents": 0},
        {"steps": ()},
        {"steps": (1001, 500)},
        {"steps": (500, 500)},
        {"steps": (500, 0)},
        {"later_steps": 0},
        {"later_steps": 5},
        {"shift": 0.0},
        {"context_timestep": -1.0},
        {"window": 2},
        {"sink": -1},
        {"window": 5, "sink": 3},
        {"head_dim": -1},
    ],
    ids=str,
)
def test_a_bad_configuration_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="generator"):
        dataclasses.replace(TINY, **change)


def test_the_cache_is_as_large_as_said(stage: Generator) -> None:
    state = start(stage)
    held = sum(x.nbytes for part in (state.rings, state.context) for x in state_to_tensors(part).values() if x.ndim)
    assert TINY.cache_bytes(batch=1, height=HEIGHT, width=WIDTH, value_bytes=4) == held


def test_the_published_cache_takes_6_gigabytes() -> None:
    size = {"batch": 1, "height": 60, "width": 104}
    assert GeneratorConfig().ring_shape(**size) == (1, 12, 32760, 128)
    assert GeneratorConfig(window=12).ring_shape(**size) == (1, 12, 18720, 128)
    assert GeneratorConfig().cache_bytes(**size, value_bytes=2) == pytest.approx(6.04e9 + 0.094e9, rel=1e-3)


def test_names_and_shapes_are_the_published_ones(repository: Path) -> None:
    manifest = repository / "tests" / "manifests" / "self_forcing_dmd.generator.json"
    listed = json.loads(manifest.read_text())
    expected = {name: tuple(shape) for name, shape in listed["tensors"].items()}
    for group in listed["repeated"]:
        for i in range(group["count"]):
            prefix = group["prefix"].format(i=i)
            expected |= {prefix + name: tuple(shape) for name, shape in group["tensors"].items()}
    with torch.device("meta"):
        stage = Generator(GeneratorConfig())
    assert {name: tuple(x.shape) for name, x in stage.state_dict().items()} == expected
