"""Matmuls that add to the residual stream: the SR transformer with folded gates, and
cross-attention of both transformers."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from tests.contracts.stages import randomise
from tests.parity.refinement import sr_dit_config
from tests.parity.vector_set import VectorSet
from ultraflash_cli.engine import regroup
from ultraflash_cli.engine.counts import counting
from ultraflash_cli.engine.layers import residual
from ultraflash_cli.engine.layers.residual import FoldedLinear, add_linear, stream_for
from ultraflash_cli.engine.stages.generator import Generator, GeneratorConfig
from ultraflash_cli.engine.stages.sr_dit import SrDit, SrDitConfig, SrDitInputs

SMALL = SrDitConfig(
    dim=64,
    num_heads=2,
    num_layers=6,
    ffn_dim=256,
    freq_dim=16,
    text_dim=16,
    text_len=2,
    latent_channels=4,
    block=(2, 2, 2),
    local_range=3,
    top_k=10**6,
    group_latents=4,
    kv_len=2,
)
"""Every allowed block is attended to, so that rounding changes no choice."""

GENERATOR = GeneratorConfig(
    dim=64,
    num_heads=2,
    num_layers=3,
    ffn_dim=256,
    freq_dim=16,
    text_dim=16,
    text_len=2,
    latent_channels=4,
    chunk_latents=2,
)


SEEDS = range(4)


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let matmuls add to the stream as on a GPU; everything else runs by PyTorch."""
    monkeypatch.setattr(residual, "dispatch", SimpleNamespace(prefers_kernels=lambda _device: True))


def sr_dit(config: SrDitConfig, seed: int = 3) -> SrDit:
    """Build one with random weights that bfloat16 can represent."""
    stage = SrDit(config)
    randomise(stage, seed)
    return stage.bfloat16().float()


def refined(stage: SrDit, seed: int = 3) -> Tensor:
    """Return what the network predicts for three groups, the last one shorter."""
    draw = torch.Generator().manual_seed(seed)
    inputs = SrDitInputs(*torch.randn(2, 1, 4, 10, 8, 8, generator=draw))
    context = torch.randn(1, 2, 16, generator=draw) if stage.config.text_len else None
    clean = regroup.run(stage, stage.init_state(batch=1, height=8, width=8, context=context), inputs)[1]
    return inputs.noise_bcthw - clean.float()


@torch.no_grad()
def predicted(network: Generator | SrDit, seed: int) -> Tensor:
    """Return what the network predicts, the generator for a chunk of four latents."""
    if isinstance(network, SrDit):
        return refined(network, seed)
    draw = torch.Generator().manual_seed(seed)
    x, context = torch.randn(1, 4, 4, 12, 12, generator=draw), torch.randn(1, 2, 16, generator=draw)
    return network.forward_chunk(x, 500.0, context=network.embed_context(context, batch=1)).flow_bcthw


def off(found: Tensor, expected: Tensor) -> float:
    return float((found.float() - expected).norm() / expected.norm())


@pytest.mark.parametrize("text_len", [2, 0], ids=["with text", "without text"])
def test_folded_gates_give_the_same_clip(text_len: int) -> None:
    stage = sr_dit(replace(SMALL, text_len=text_len))
    expected = refined(stage)
    assert off(refined(stage.fold_gates()), expected) < 1e-6


def test_folded_gates_round_no_more_than_gates() -> None:
    """A gate's weight is rounded instead of a layer's result, and cross-attention's
    result is not rounded at all. Measured, of the flow's norm: 0.0048 to 0.0058 with
    gates, 0.0045 to 0.0055 folded."""
    errors: list[tuple[float, float]] = []
    for seed in SEEDS:
        stage = sr_dit(SMALL, seed)
        expected = refined(stage, seed)
        plain = refined(stage.bfloat16(), seed)
        errors.append((off(plain, expected), off(refined(stage.fold_gates(), seed), expected)))
    plain, folded = torch.tensor(errors).unbind(1)
    assert 0.002 < folded.min() < folded.max() < 0.01
    assert folded.mean() < 1.02 * plain.mean()


def test_folded_gates_stay_near_the_published_sr_transformer(repository: Path) -> None:
    """Measured, of the flow's norm: 0.0064 and 0.0069; with gates 0.0063 and 0.0067."""
    vectors = VectorSet(repository / "tests" / "vectors" / "sr_dit_two_groups")
    io, (height, width) = vectors.io, vectors.config["latent_hw"]
    for dtype, most in ((torch.float32, 1e-6), (torch.bfloat16, 0.008)):
        stage = SrDit(sr_dit_config(vectors))
        stage.load_state_dict(vectors.weights())
        stage = stage.to(dtype).fold_gates()
        state = stage.init_state(batch=1, height=height, width=width, context=io["context"][None])
        for group in range(2):
            noise, cond = io[f"g{group}.noise"][None], io[f"g{group}.cond"][None]
            state, clean = stage.step(state, SrDitInputs(noise, cond))
            assert off(noise - clean.float(), io[f"g{group}.flow"][None]) < most


def test_folding_takes_the_memory_of_the_weights_and_is_done_once() -> None:
    stage = sr_dit(SMALL)
    before = {name: value.data_ptr() for name, value in stage.state_dict().items()}
    stage.fold_gates()
    after = stage.state_dict()
    assert {name: after[name].data_ptr() for name in before if name in after}.items() <= before.items()
    assert {name.rsplit(".", 1)[1] for name in after.keys() - before.keys()} == {"offset"}
    with pytest.raises(AssertionError, match="folded once"):
        stage.fold_gates()
    with pytest.raises(AssertionError, match="one timestep"):
        stage.forward_group(*torch.zeros(2, 1, 4, 2, 8, 8), timestep=torch.zeros(1))
    with pytest.raises(AssertionError, match="depend on the prompt"):
        SrDit(replace(SMALL, pool_text=True)).fold_gates()
    with pytest.raises(AssertionError, match="not in 8 bits"):
        sr_dit(SMALL).to_fp8().fold_gates()


@pytest.mark.parametrize("kind", ["generator", "SR transformer"])
def test_the_matmul_of_cross_attention_adds_to_the_stream(kind: str, request: pytest.FixtureRequest) -> None:
    networks = [Generator(GENERATOR) if kind == "generator" else SrDit(replace(SMALL, pool_text=True)) for _ in SEEDS]
    exact: list[list[Tensor]] = []
    errors: list[list[float]] = []
    for on_a_gpu in (False, True):
        if on_a_gpu:
            request.getfixturevalue("as_on_a_gpu")
        exact.append([])
        errors.append([])
        for seed, network in zip(SEEDS, networks, strict=True):
            randomise(network, seed)
            exact[-1].append(predicted(network.bfloat16().float(), seed))
            errors[-1].append(off(predicted(network.bfloat16(), seed), exact[0][seed]))
    for found, expected in zip(*exact, strict=True):
        assert 0 < off(found, expected) < 1e-6, "rounded elsewhere"
    assert 0.002 < sum(errors[1]) / len(SEEDS) < 1.05 * sum(errors[0]) / len(SEEDS)


@pytest.mark.usefixtures("as_on_a_gpu")
def test_nothing_is_added_in_place_where_gradients_are_wanted() -> None:
    network = Generator(GENERATOR)
    randomise(network)
    layer, stream = network.blocks[0].get_submodule("cross_attn.o"), torch.zeros(1, 3, 64)
    assert stream_for(layer, stream, gated=False) is None
    with torch.no_grad():
        assert stream_for(layer, stream, gated=False) is stream
        assert stream_for(layer, stream, gated=True) is None, "gates are not part of a matmul"
        assert stream_for(layer, stream.bfloat16(), gated=False) is None
        with torch.autocast("cpu", torch.bfloat16):
            assert stream_for(layer, stream, gated=False) is None

    network.requires_grad_()
    x = torch.randn(1, 4, 2, 6, 6, generator=torch.Generator().manual_seed(1))
    found: list[Tensor] = []
    for recompute in (False, True):
        network.zero_grad()
        network.forward_chunk(x, 500.0, recompute=recompute).flow_bcthw.square().sum().backward()
        found.append(network.get_parameter("blocks.0.cross_attn.o.bias").grad.clone())  # pyright: ignore[reportOptionalMemberAccess]
    assert found[0].abs().sum() > 0
    torch.testing.assert_close(found[1], found[0])


def test_a_sum_inside_a_matmul_is_rounded_once_and_counted() -> None:
    draw = torch.Generator().manual_seed(2)
    stream, x = torch.randn(2, 5, 32, generator=draw), torch.randn(2, 5, 48, generator=draw)
    layer = nn.Linear(48, 32)
    gate, before = torch.randn(32, generator=draw), torch.randn(32, generator=draw)
    bias = layer.bias.detach().clone()
    folded = FoldedLinear(layer, gate, before)
    torch.testing.assert_close(folded.offset, before + gate * bias)
    layer, stream, x = folded.bfloat16(), stream.bfloat16(), x.bfloat16()
    expected = (stream.double() + x.double() @ layer.weight.double().t()).bfloat16()
    with counting() as work:
        assert add_linear(stream, x, layer) is stream
    assert (stream != expected).float().mean() < 0.01  # sums of another order
    assert work().flops == 2 * 10 * 48 * 32
    assert work().bytes == 2 * (2 * 10 * 32 + 10 * 48 + 48 * 32), "the stream is read and written"
    with pytest.raises(AssertionError, match="residual stream"):
        layer(x)
