"""The SR transformer as a stage: groups, caches, context, precision; and its sparsity
rules."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import Tensor

from ultraflash_cli.engine import regroup
from ultraflash_cli.engine.layers.modulation import float32_layers
from ultraflash_cli.engine.regroup import Regrouped
from ultraflash_cli.engine.stage import state_from_tensors, state_to_tensors
from ultraflash_cli.engine.stages.sr_dit import SrDit, SrDitConfig, SrDitInputs, SrDitState
from ultraflash_cli.errors import ConfigError

TINY = SrDitConfig(
    dim=24,
    num_heads=2,
    num_layers=2,
    ffn_dim=32,
    freq_dim=8,
    text_dim=10,
    text_len=5,
    latent_channels=4,
    block=(2, 2, 2),
    local_range=3,
    ref_spatial_tokens=8,
    group_latents=4,
    kv_len=2,
)
"""Token grid 3 x 5 in blocks of 2 x 2: both sides are padded."""
HEIGHT, WIDTH = 6, 10


def build(config: SrDitConfig = TINY, seed: int = 0) -> SrDit:
    """Build a stage with a nonzero head."""
    torch.manual_seed(seed)
    stage = SrDit(config)
    torch.nn.init.normal_(stage.head.head.weight, std=0.2)
    return stage.eval()


def clip(frames: int, batch: int = 1, seed: int = 0) -> SrDitInputs:
    draw = torch.Generator().manual_seed(seed)
    shape = (batch, TINY.latent_channels, frames, HEIGHT, WIDTH)
    return SrDitInputs(torch.randn(shape, generator=draw), torch.randn(shape, generator=draw))


def start(stage: SrDit, batch: int = 1, **kwargs: Tensor) -> SrDitState:
    return stage.init_state(batch=batch, height=HEIGHT, width=WIDTH, **kwargs)


def part(inputs: SrDitInputs, first: int, last: int) -> SrDitInputs:
    return SrDitInputs(inputs.noise_bcthw[:, :, first:last], inputs.cond_bcthw[:, :, first:last])


def run(stage: SrDit, inputs: SrDitInputs, pushes: list[int], state: SrDitState | None = None) -> Tensor:
    before = Regrouped(state or start(stage, inputs.cond_bcthw.shape[0]))
    done: list[Tensor] = []
    at = 0
    for push in [*pushes, inputs.cond_bcthw.shape[2]]:
        before, parts = regroup.push(stage, before, part(inputs, at, at + push))
        done += parts
        at += push
    return torch.cat([*done, *regroup.end(stage, before)[1]], dim=2)


@pytest.fixture(scope="module")
def stage() -> SrDit:
    return build()


# Streaming


@given(pushes=st.lists(st.integers(0, 6), max_size=6), frames=st.integers(1, 13))
def test_any_split_of_a_clip_produces_the_same_latents(stage: SrDit, pushes: list[int], frames: int) -> None:
    inputs = clip(frames)
    whole = run(stage, inputs, [])
    assert whole.shape == inputs.cond_bcthw.shape
    assert torch.equal(whole, run(stage, inputs, pushes))


@pytest.mark.parametrize("first_bad", [2, 4, 6, 8, 9])
def test_nan_in_a_later_pair_of_latents_never_reaches_an_earlier_one(stage: SrDit, first_bad: int) -> None:
    inputs = clip(10)
    clean = run(stage, inputs, [])
    for x in inputs:
        x[:, :, first_bad:] = math.nan
    spoiled = run(stage, inputs, [])
    pairs = first_bad // 2 * 2
    assert torch.equal(clean[:, :, :pairs], spoiled[:, :, :pairs])
    assert spoiled[:, :, first_bad:].isnan().all()


def test_a_later_group_sees_the_ones_before_it(stage: SrDit) -> None:
    inputs = clip(8)
    later = run(stage, inputs, [])[:, :, 4:]
    assert not torch.allclose(later, run(stage, part(inputs, 4, 8), []), atol=1e-3)


def test_a_fresh_state_forgets_the_last_clip(stage: SrDit) -> None:
    first = run(stage, clip(7), [])
    run(stage, clip(9, seed=1), [])
    assert torch.equal(first, run(stage, clip(7), []))


def test_a_saved_and_loaded_state_continues_bit_for_bit(stage: SrDit) -> None:
    inputs, context = clip(11), torch.randn(1, 3, TINY.text_dim)
    for cut in (3, 4, 9):
        state, _ = stage.step(start(stage, context=context), part(inputs, 0, cut))
        saved = save(state_to_tensors(state))
        going_on = run(stage, part(inputs, cut, 11), [], state)
        loaded = state_from_tensors(start(stage), load(saved))
        assert torch.equal(going_on, run(stage, part(inputs, cut, 11), [], loaded))


def test_shapes_and_addresses_in_the_state_are_fixed_from_the_start(stage: SrDit) -> None:
    state = start(stage)
    shapes = {name: x.shape for name, x in state_to_tensors(state).items()}
    address = state.caches[0].k.data_ptr()
    for push in (1, 3, 6, 4, 5):
        state, _ = stage.step(state, clip(push))
        assert {name: x.shape for name, x in state_to_tensors(state).items()} == shapes
        assert state.caches[0].k.data_ptr() == address


def test_samples_of_a_batch_do_not_mix(stage: SrDit) -> None:
    inputs = clip(6, batch=2)
    both = run(stage, inputs, [])
    second = SrDitInputs(inputs.noise_bcthw[1:], inputs.cond_bcthw[1:])
    torch.testing.assert_close(both[1:], run(stage, second, []), rtol=0, atol=2e-5)


def test_the_cache_follows_the_schedule() -> None:
    stage = build(dataclasses.replace(TINY, kv_schedule=(2, 3, 1)))
    state, spatial_blocks = start(stage), 2 * 3
    assert state.caches[0].k.shape == (1, 2, 3 * spatial_blocks, 8, 12)
    kept: list[int] = []
    for group in range(5):
        state, _ = stage.step(state, clip(4, seed=group))
        kept.append(state.caches[1].fill // spatial_blocks)
    assert kept == [2, 3, 1, 1, 1]


def test_what_the_cache_dropped_is_forgotten() -> None:
    one_layer = dataclasses.replace(TINY, num_layers=1, kv_len=2, group_latents=2)
    stage, inputs = build(one_layer), clip(8)
    before = run(stage, inputs, [])
    inputs.cond_bcthw[:, :, :2] += 1.0
    after = run(stage, inputs, [])
    assert not torch.equal(before[:, :, 2:6], after[:, :, 2:6])
    assert torch.equal(before[:, :, 6:], after[:, :, 6:])


def test_without_a_cache_every_group_is_refined_alone() -> None:
    stage, inputs = build(dataclasses.replace(TINY, kv_len=0, group_latents=2)), clip(4)
    before = run(stage, inputs, [])
    inputs.cond_bcthw[:, :, :2] += 1.0
    after = run(stage, inputs, [])
    assert not torch.equal(before[:, :, :2], after[:, :, :2])
    assert torch.equal(before[:, :, 2:], after[:, :, 2:])


# Network


def test_a_residual_network_starts_as_the_identity() -> None:
    stage = SrDit(dataclasses.replace(TINY, prediction="residual"))
    inputs = clip(6)
    assert torch.equal(run(stage, inputs, [2]), inputs.cond_bcthw)


def test_a_network_that_sees_signal_does_not_see_pure_noise_but_what_is_mixed_with_it() -> None:
    stage = build(dataclasses.replace(TINY, prediction="residual", sees_signal=True))
    first, second = clip(4), clip(4, seed=1)
    answers = {
        level: [
            stage.forward_group(noise, first.cond_bcthw, timestep=torch.tensor([level])).output_bcthw
            for noise in (first.noise_bcthw, second.noise_bcthw)
        ]
        for level in (1000.0, 400.0)
    }
    assert torch.equal(answers[1000.0][0], answers[1000.0][1])
    assert not torch.allclose(answers[400.0][0], answers[400.0][1], atol=1e-3)


def test_pooled_words_join_the_timestep_and_a_hidden_layer_the_head() -> None:
    plain = build()
    rich = build(dataclasses.replace(TINY, pool_text=True, head_dim=16))
    names = set(rich.state_dict()) - set(plain.state_dict())
    assert names == {"text_pool.weight", *(f"head.detail.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias"))}
    rich.load_state_dict(plain.state_dict() | {name: torch.zeros_like(rich.state_dict()[name]) for name in names})
    words, inputs = torch.randn(1, 5, 10, generator=torch.Generator().manual_seed(3)), clip(4)

    def answer(stage: SrDit) -> Tensor:
        return stage.step(start(stage, context=words), inputs)[1]

    torch.testing.assert_close(answer(rich), answer(plain))
    for changed in (rich.text_pool, rich.head.detail):
        assert changed is not None, "the config has both"
        torch.manual_seed(5)
        for parameter in changed.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        assert not torch.allclose(answer(rich), answer(plain), atol=1e-3)
    with pytest.raises(ConfigError, match="pool_text needs a text path"):
        SrDitConfig(text_len=0, pool_text=True)


def test_float32_layers_are_float32_under_autocast() -> None:
    layers, x = build().time_embedding, torch.randn(1, TINY.freq_dim)
    plain = float32_layers(layers, x)
    with torch.autocast("cpu", torch.bfloat16):
        assert layers(x).dtype == torch.bfloat16
        assert torch.equal(float32_layers(layers, x), plain)


def test_a_flow_network_subtracts_from_the_noise() -> None:
    inputs = clip(4)
    assert torch.equal(run(SrDit(TINY), inputs, []), inputs.noise_bcthw)


def test_one_group_alone_equals_the_streamed_one_and_passes_gradients_through_the_cache(stage: SrDit) -> None:
    inputs = clip(8)
    cond = inputs.cond_bcthw.clone().requires_grad_()
    first = stage.forward_group(inputs.noise_bcthw[:, :, :4], cond[:, :, :4])
    second = stage.forward_group(
        inputs.noise_bcthw[:, :, 4:], cond[:, :, 4:], caches=first.caches, first_frame=4, group=1
    )
    output = torch.cat([first.output_bcthw, second.output_bcthw], dim=2)
    clean = stage.clean(inputs.noise_bcthw, inputs.cond_bcthw, output)
    torch.testing.assert_close(clean, run(stage, inputs, []), rtol=0, atol=1e-5)
    second.output_bcthw.square().mean().backward()
    assert cond.grad is not None
    assert cond.grad[:, :, :4].abs().sum() > 0
    missing = [name for name, x in stage.named_parameters() if x.grad is None or not x.grad.isfinite().all()]
    assert not missing
    stage.zero_grad()


def test_no_context_equals_a_context_of_zeros_and_padding_is_added(stage: SrDit) -> None:
    inputs = clip(4)
    plain = run(stage, inputs, [])
    zeros = torch.zeros(1, TINY.text_len, TINY.text_dim)
    assert torch.equal(plain, run(stage, inputs, [], start(stage, context=zeros)))
    prompt = torch.randn(1, 2, TINY.text_dim)
    padded = torch.cat([prompt, zeros[:, 2:]], dim=1)
    prompted = run(stage, inputs, [], start(stage, context=prompt))
    assert torch.equal(prompted, run(stage, inputs, [], start(stage, context=padded)))
    assert not torch.allclose(plain, prompted, atol=1e-4)


def test_a_network_without_text_path_has_no_cross_attention_and_refuses_a_context() -> None:
    stage = build(dataclasses.replace(TINY, text_len=0))
    assert not any("cross_attn" in name or "text" in name or "norm3" in name for name in stage.state_dict())
    assert run(stage, clip(4), []).isfinite().all()
    with pytest.raises(ConfigError, match="no text path"):
        start(stage, context=torch.zeros(1, 1, TINY.text_dim))


@pytest.mark.parametrize("shape", [(1, 6, 10), (1, 2, 11), (2, 10)], ids=["too long", "too wide", "no batch"])
def test_a_context_that_does_not_fit_is_refused(stage: SrDit, shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="the context must be"):
        start(stage, context=torch.zeros(shape))


def test_latents_that_are_no_whole_patches_are_refused(stage: SrDit) -> None:
    with pytest.raises(ConfigError, match="not whole patches"):
        stage.init_state(batch=1, height=5, width=10)


@pytest.mark.parametrize("mask_dtype", ["float32", "bfloat16"])
def test_bfloat16_stays_near_float32(mask_dtype: Any) -> None:
    generous = dataclasses.replace(TINY, top_k=10**6, mask_dtype=mask_dtype)  # every allowed block: masks agree
    inputs = clip(6)
    exact = run(build(generous), inputs, [])
    rounded = run(build(generous).bfloat16(), SrDitInputs(*(x.bfloat16() for x in inputs)), [])
    assert rounded.dtype == torch.bfloat16
    assert (rounded.float() - exact).abs().max() < 0.1


def test_the_timestep_of_each_sample_counts(stage: SrDit) -> None:
    inputs = clip(2, batch=2)
    with torch.no_grad():
        usual = stage.forward_group(*inputs).output_bcthw
        mixed = stage.forward_group(*inputs, timestep=torch.tensor([1000.0, 500.0])).output_bcthw
    assert torch.equal(usual[0], mixed[0])
    assert not torch.allclose(usual[1], mixed[1], atol=1e-4)


@pytest.mark.parametrize(
    "change",
    [
        {"dim": 25},
        {"num_heads": 5},
        {"dim": 6, "num_heads": 2},
        {"num_layers": 0},
        {"freq_dim": 7},
        {"text_len": -1},
        {"local_range": -1},
        {"patch": (2, 2, 2)},
        {"block": (2, 0, 8)},
        {"ref_spatial_tokens": 0},
        {"top_k": 0},
        {"top_k_ratio": 0.0},
        {"kv_len": -1},
        {"kv_schedule": (3, 0)},
        {"group_latents": 0},
        {"prediction": "noise"},
        {"mask_dtype": "float16"},
        {"timestep": 1001.0},
        {"eps": 0.0},
    ],
    ids=str,
)
def test_a_bad_configuration_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        dataclasses.replace(TINY, **change)


def test_names_and_shapes_are_the_published_ones(repository: Path) -> None:
    manifest = repository / "tests" / "manifests" / "sr_dit_sparse.json"
    listed = json.loads(manifest.read_text())
    expected = {name: tuple(shape) for name, shape in listed["tensors"].items()}
    for group in listed["repeated"]:
        for i in range(group["count"]):
            prefix = group["prefix"].format(i=i)
            expected |= {prefix + name: tuple(shape) for name, shape in group["tensors"].items()}
    with torch.device("meta"):
        stage = SrDit(SrDitConfig())
    assert {name: tuple(x.shape) for name, x in stage.state_dict().items()} == expected
