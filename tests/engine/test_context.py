"""Padding of a prompt that is folded into keys with weights changes no result beyond
rounding."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from tests.contracts.stages import randomise
from tests.engine import generators
from tests.engine.standins import LateRecorder
from tests.golden import run_set
from ultraflash_cli.engine.footprint.networks import initial_state
from ultraflash_cli.engine.graphs import Graphs
from ultraflash_cli.engine.layers import context as context_module
from ultraflash_cli.engine.layers.context import ContextKv, Folding
from ultraflash_cli.engine.layers.dit import Dit
from ultraflash_cli.engine.profiles import LITE, ULTRAFLASH
from ultraflash_cli.engine.sampling import Sampler
from ultraflash_cli.engine.stage import state_bytes, state_leaves, state_to_tensors
from ultraflash_cli.engine.stages.generator import Generator
from ultraflash_cli.engine.stages.sr_dit import SrDit, SrDitConfig, SrDitInputs
from ultraflash_cli.models.frames import _filled, _kept_bytes, _tensors

TEXT_LEN = 200
GENERATOR = replace(generators.TINY, text_len=TEXT_LEN)
SR = SrDitConfig(
    dim=24,
    num_heads=2,
    num_layers=2,
    ffn_dim=32,
    freq_dim=8,
    text_dim=10,
    text_len=TEXT_LEN,
    latent_channels=4,
    pool_text=True,
    block=(2, 2, 2),
    local_range=3,
    ref_spatial_tokens=8,
    group_latents=4,
    kv_len=2,
)


def prompt(tokens: int, *, batch: int = 1, seed: int = 4) -> Tensor:
    return torch.randn(batch, tokens, 10, generator=torch.Generator().manual_seed(seed))


def padded(context: Tensor) -> Tensor:
    """Return a context with all of its padding, which is not folded."""
    zeros = context.new_zeros(context.shape[0], TEXT_LEN - context.shape[1], context.shape[2])
    return torch.cat([context, zeros], dim=1)


def built(network: Any, dtype: torch.dtype = torch.float32) -> Any:
    randomise(network)
    return network.to(dtype).eval()


def flow(network: Any, context: tuple[ContextKv, ...], dtype: torch.dtype) -> Tensor:
    draw = torch.Generator().manual_seed(5)
    if isinstance(network, Generator):
        noisy = torch.randn(2, 4, 2, 4, 6, generator=draw).to(dtype)
        return network.forward_chunk(noisy, 700.0, context=context).flow_bcthw
    noise, low = (torch.randn(2, 4, 4, 6, 6, generator=draw).to(dtype) for _ in range(2))
    return network.forward_group(noise, low, context=context).output_bcthw


def off(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize(
    ("dtype", "most"),
    [(torch.float64, 5e-7), (torch.float32, 1e-6), (torch.bfloat16, 0.01)],
    ids=["float64", "float32", "bfloat16"],
)
@pytest.mark.parametrize("tokens", [0, 1, 61, 62, 100, 126])
@pytest.mark.parametrize("config", [replace(GENERATOR, pool_text=True), SR], ids=["generator", "SR transformer"])
def test_a_folded_prompt_gives_the_result_of_all_its_padding(
    config: Any, tokens: int, dtype: torch.dtype, most: float
) -> None:
    network = built((Generator if config is not SR else SrDit)(config), dtype)
    with torch.no_grad():
        short = network.embed_context(prompt(tokens), batch=2)
        whole = network.embed_context(padded(prompt(tokens)), batch=2)
        assert short[0].k.shape == (2, 2, 64 if tokens <= 62 else 128, 12)
        assert whole[0].k.shape[2] == TEXT_LEN and whole[0].log_weights is None
        assert off(flow(network, short, dtype), flow(network, whole, dtype)) < most
        # The prompt matters, and so does the number of its padding tokens.
        if tokens:
            (one, *_), assumed = short, torch.zeros(short[0].k.shape[2])
            wrong = tuple(each._replace(log_weights=assumed) for each in (one, *short[1:]))
            assert off(flow(network, wrong, dtype), flow(network, whole, dtype)) > most / 2


@pytest.mark.parametrize("name", ["lr_generator_first_frame", "sr_dit_two_groups", "sr_dit_bf16_small"])
def test_published_vectors_agree_with_folded_prompts(
    name: str, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sets have prompts of 7 tokens, padded to 12."""
    folded: list[tuple[ContextKv, ...]] = []
    embed = Dit.embed_context

    def without_padding(network: Dit, context: Tensor, *, batch: int) -> tuple[ContextKv, ...]:
        used = int(context.ne(0).any(-1).sum(-1).max())
        folded.append(embed(network, context[:, :used], batch=batch))
        return folded[-1]

    monkeypatch.setattr(context_module, "_MULTIPLE", 1)
    monkeypatch.setattr(Dit, "embed_context", without_padding)
    result = run_set(repository / "tests" / "vectors" / name)
    assert result.status == "ok", result.reason
    assert folded and all(each.log_weights is not None and each.k.shape[2] == 9 for (each, *_) in folded)


@pytest.mark.parametrize("network", ["generator", "SR transformer"])
def test_gradients_through_a_folded_prompt_are_those_of_all_its_padding(network: str) -> None:
    made = built(Generator(GENERATOR) if network == "generator" else SrDit(SR), torch.float64).requires_grad_()
    found: list[dict[str, Tensor]] = []
    for context in (prompt(9), padded(prompt(9))):
        out = flow(made, made.embed_context(context, batch=2), torch.float64)
        made.zero_grad()
        out.square().mean().backward()
        found.append({name: p.grad.clone() for name, p in made.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    for name, value in found[1].items():
        assert (found[0][name] - value).norm() <= 1e-4 * value.norm() + 1e-7, name


def test_nothing_is_folded_where_it_saves_no_multiple_of_64_keys() -> None:
    assert LITE.sr_dit is not None and LITE.generator is not None
    for text_len in (LITE.sr_dit.text_len, LITE.generator.text_len):
        assert all(Folding.of(tokens, text_len) is None for tokens in range(text_len + 1))
    assert [Folding.of(tokens, 512) for tokens in (447, 512)] == [None, None]
    assert Folding.of(446, 512) == (446, 66, 448)
    assert Folding.of(62, 65) == (62, 3, 64) and Folding.of(63, 65) is None


@pytest.mark.parametrize("text_len", [512, 200, 66])
def test_weights_count_every_token_also_when_a_library_rounds_them(text_len: int) -> None:
    for tokens in range(text_len):
        folding = Folding.of(tokens, text_len)
        if folding is None:
            continue
        weights = folding.log_weights(torch.device("cpu"))
        assert weights.dtype == torch.float32 and weights.shape == (folding.keys,)
        assert float(weights.double().exp().sum()) == pytest.approx(text_len, rel=1e-7)
        rounded = float(weights[folding.tokens :].bfloat16().double().exp().sum())
        assert rounded == pytest.approx(text_len - tokens, rel=3e-4)


def test_prompts_with_as_many_keys_replay_one_recording() -> None:
    recorder = LateRecorder()
    network = built(Generator(GENERATOR))
    recorded, plain = Sampler(network, graphs=Graphs(recorder)), Sampler(network)

    def made(sampler: Sampler, context: Tensor) -> Tensor:
        state = sampler.init_state(batch=1, height=generators.HEIGHT, width=generators.WIDTH, context=context)
        clips: list[Tensor] = []
        for first in (0, 3):
            state, clean = sampler.step(state, generators.part(generators.clip(6), first, first + 3))
            clips.append(clean)
        return torch.cat(clips, dim=2)

    first = made(recorded, prompt(10))
    torch.testing.assert_close(first, made(plain, prompt(10)), rtol=0, atol=0)
    made(recorded, prompt(10))
    before = recorder.recordings
    other = made(recorded, prompt(50, seed=9))
    torch.testing.assert_close(other, made(plain, prompt(50, seed=9)), rtol=0, atol=0)
    assert before and recorder.recordings == before
    assert off(other, first) > 1e-3


def test_a_state_is_saved_without_the_prompt_and_one_saved_with_all_its_padding_is_taken() -> None:
    network = built(SrDit(SR))
    inputs = SrDitInputs(*(torch.randn(1, 4, 4, 6, 6, generator=torch.Generator().manual_seed(6)) for _ in range(2)))

    def fresh(context: Tensor) -> Any:
        return network.init_state(batch=1, height=6, width=6, context=context)

    state, _ = network.step(fresh(prompt(9)), inputs)
    content = save({name: x.clone() for name, x in _tensors(state).items()})
    assert not any("context" in name for name in load(content))
    assert _kept_bytes(state) == sum(x.nbytes for x in load(content).values() if x.ndim)
    old, _ = network.step(fresh(padded(prompt(9))), inputs)
    kept = state_to_tensors(old)
    assert kept["context.0.k"].shape[2] == TEXT_LEN
    expected = network.step(state, inputs)[1]
    for tensors in (load(content), kept):
        found = network.step(_filled(fresh(prompt(9)), tensors), inputs)[1]
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_memory_is_planned_for_a_prompt_of_any_length() -> None:
    assert ULTRAFLASH.sr_dit is not None
    planned = initial_state(ULTRAFLASH.sr_dit, torch.bfloat16, 1, 120, 208)
    with torch.device("meta"):
        network = SrDit(ULTRAFLASH.sr_dit).bfloat16()
    for tokens in (0, 120, 446, 512):
        context = torch.empty(1, tokens, ULTRAFLASH.sr_dit.text_dim, device="meta")
        needed = state_bytes(network.init_state(batch=1, height=120, width=208, context=context).context)
        assert needed <= state_bytes(planned.context)
    assert planned.context[0].log_weights is None


def test_every_layer_shares_the_weights_and_all_are_on_the_device_of_the_network() -> None:
    context = built(Generator(GENERATOR)).embed_context(None, batch=3)
    assert len({id(each.log_weights) for each in context}) == 1
    assert [name for name in state_leaves(context) if name.endswith("log_weights")] == [
        f"{layer}.log_weights" for layer in range(GENERATOR.num_layers)
    ]
    assert context[0].log_weights is not None
    assert math.isclose(float(context[0].log_weights.exp().sum()), TEXT_LEN, rel_tol=1e-6)
