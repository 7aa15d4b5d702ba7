"""The engine with its kernels: results equal PyTorch's, nothing is read back, and the
expected kernels run at full size."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.contracts.stages import randomise
from ultraflash_cli.engine import regroup
from ultraflash_cli.engine.layers import sparse_attention
from ultraflash_cli.engine.profiles import ULTRAFLASH
from ultraflash_cli.engine.sampling import GeneratorInputs, Sampler
from ultraflash_cli.engine.stages.decoder import Decoder, DecoderConfig, DecoderStage
from ultraflash_cli.engine.stages.generator import Generator, GeneratorConfig
from ultraflash_cli.engine.stages.latent_upsampler import LatentUpsampler, LatentUpsamplerConfig
from ultraflash_cli.engine.stages.sr_dit import SrDit, SrDitConfig, SrDitInputs
from ultraflash_kernels import dispatch
from ultraflash_kernels.memory_conv import op as memory_conv_op

if torch.cuda.is_available():
    pytest.skip("the interpreter stands for a GPU here; with one the same paths run in the tests of tier gpu", True)

LAUNCHES = (
    ("adaln_modulate.kernel", "modulate"),
    ("adaln_modulate.kernel", "modulate_fp8"),
    ("adaln_modulate.kernel", "gate"),
    ("adaln_modulate.kernel", "residual_norm"),
    ("block_sparse_attention.kernel", "forward"),
    ("block_sparse_attention.kernel_fp8", "forward"),
    ("block_sparse_attention.kernel_fp8_dense", "forward"),
    ("block_topk.kernel", "block_means"),
    ("block_topk.kernel", "choose_blocks"),
    ("fp8_linear.kernel", "quantise"),
    ("memory_conv.kernel", "forward"),
    ("memory_conv.kernel", "upsampled"),
    ("rms_norm.kernel", "norm"),
    ("rms_norm_rope.kernel", "forward"),
    ("rms_norm_rope.kernel_blocks", "forward"),
    ("rms_norm_rope.kernel_tokens", "forward"),
    ("text_attention.kernel", "forward"),
    ("text_attention.kernel", "forward_fp8"),
)
"""The functions that launch kernels."""

SR = SrDitConfig(
    dim=32,
    num_heads=2,
    num_layers=1,
    ffn_dim=48,
    freq_dim=8,
    text_dim=16,
    text_len=2,
    latent_channels=4,
    block=(2, 2, 2),
    local_range=3,
    ref_spatial_tokens=8,
    group_latents=4,
    kv_len=2,
)
"""Token grid 3 x 3 in blocks of 2 x 2: both sides are padded."""

GENERATOR = GeneratorConfig(
    dim=32,
    num_heads=2,
    num_layers=1,
    ffn_dim=48,
    freq_dim=8,
    text_dim=16,
    text_len=2,
    latent_channels=4,
    chunk_latents=2,
    steps=(1000, 500),
    window=5,
    sink=1,
    slide=True,
)


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Use kernels wherever ``auto`` would on a GPU; count the launches by module and
    function."""
    counts: Counter[str] = Counter()

    def counted(name: str, launch: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            counts[name] += 1
            return launch(*args, **kwargs)

        return run

    for module_name, function in LAUNCHES:
        module = import_module(f"ultraflash_kernels.{module_name}")
        name = f"{module_name.removesuffix('.kernel')}.{function}"
        monkeypatch.setattr(module, function, counted(name, getattr(module, function)))
    monkeypatch.setattr(dispatch, "prefers_kernels", lambda _device: True)
    return counts


def refined(stage: SrDit, *, frames: int = 10) -> Tensor:
    """Refine groups of four frames, the last one shorter."""
    draw = torch.Generator().manual_seed(5)
    inputs = SrDitInputs(*(torch.randn(1, 4, frames, 6, 6, generator=draw) for _ in range(2)))
    context = torch.randn(1, 2, SR.text_dim, generator=draw)
    return regroup.run(stage, stage.init_state(batch=1, height=6, width=6, context=context), inputs)[1]


def generated(stage: Generator, *, chunks: int = 4) -> Tensor:
    """Generate chunks; four are more than the window holds."""
    draw = torch.Generator().manual_seed(6)
    frames = 2 * chunks
    inputs = GeneratorInputs(
        torch.randn(1, 4, frames, 4, 6, generator=draw), torch.randn(1, 1, 4, frames, 4, 6, generator=draw)
    )
    sampler = Sampler(stage)
    return regroup.run(sampler, sampler.init_state(batch=1, height=4, width=6), inputs)[1]


def built(network: Any) -> Any:
    randomise(network)
    return network


def off(found: Tensor, expected: Tensor) -> float:
    """Return the norm of the difference relative to the norm of the expected tensor."""
    return float((found - expected).norm() / expected.norm())


# The same numbers


@pytest.mark.parametrize("paired", [False, True], ids=["one pair of buffers", "two pairs"])
def test_the_sr_transformer_by_kernels_equals_the_one_by_pytorch(request: pytest.FixtureRequest, paired: bool) -> None:
    stage = built(SrDit(SR))
    expected = refined(stage)
    launched = request.getfixturevalue("launched")
    stage.paired_caches = paired
    torch.testing.assert_close(refined(stage), expected, rtol=0, atol=2e-5)
    assert launched == {
        "adaln_modulate.gate": 3,
        "adaln_modulate.modulate": 2 * 3,
        "adaln_modulate.residual_norm": 3,
        "block_sparse_attention.forward": 3,
        "block_topk.choose_blocks": 3,
        "rms_norm.norm": 1,
        "rms_norm_rope.kernel_blocks.forward": 3,
        "text_attention.forward": 3,
    } | ({} if paired else {"block_topk.block_means": 2})


def test_the_sr_transformer_with_folded_gates_equals_it_too(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("block_list_attention", "choose_blocks", "rms_norm_rope_means"):  # slow in the interpreter
        by_pytorch = partial(getattr(sparse_attention, name), impl="reference")
        monkeypatch.setattr(sparse_attention, name, by_pytorch)
    stage = built(SrDit(replace(SR, num_layers=2)))
    expected = refined(stage, frames=4)
    launched = request.getfixturevalue("launched")
    torch.testing.assert_close(refined(stage.fold_gates(), frames=4), expected, rtol=0, atol=2e-5)
    assert launched["adaln_modulate.modulate"] == 2 * 3
    assert not {"adaln_modulate.residual_norm", "adaln_modulate.gate"} & launched.keys(), "no pass of a sum"


def test_the_generator_by_kernels_equals_the_one_by_pytorch(request: pytest.FixtureRequest) -> None:
    stage = built(Generator(GENERATOR))
    expected = generated(stage)
    launched = request.getfixturevalue("launched")
    torch.testing.assert_close(generated(stage), expected, rtol=0, atol=2e-5)
    runs = 4 * (len(GENERATOR.steps) + 1)
    assert launched == {
        "adaln_modulate.gate": runs,
        "adaln_modulate.modulate": 2 * runs,
        "adaln_modulate.residual_norm": runs,
        "rms_norm.norm": 1,
        "rms_norm_rope.forward": runs,
        "text_attention.forward": runs,
    }


def test_memory_blocks_by_their_kernel_equal_those_by_pytorch(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = built(LatentUpsampler(LatentUpsamplerConfig(width=16, blocks=1, latent_channels=4, scale=2)))
    latents = torch.randn(1, 4, 3, 3, 5, generator=torch.Generator().manual_seed(7))
    expected = stage.upsample(latents, None)[0]
    launched = request.getfixturevalue("launched")
    stage.upsample(latents, None)
    assert not launched, "nothing was measured yet, so auto leaves convolutions to the library"
    monkeypatch.setattr(memory_conv_op, "_takes_kernel", lambda *_: True)
    torch.testing.assert_close(stage.upsample(latents, None)[0], expected, rtol=0, atol=1e-5)
    assert launched == {"memory_conv.forward": 3}


def test_doubled_pictures_by_their_kernel_equal_those_by_pytorch(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    growths = (1, 2, 2)
    stages = tuple(DecoderStage(width=4, blocks=0, time_growth=growth) for growth in growths)
    stage = built(Decoder(DecoderConfig(latent_channels=4, stages=stages, out_width=4)))
    latents = torch.randn(1, 4, 1, 2, 3, generator=torch.Generator().manual_seed(7))
    expected = stage.decode(latents, None)[0]
    launched = request.getfixturevalue("launched")
    monkeypatch.setattr(memory_conv_op, "_takes_kernel", lambda *_: True)
    torch.testing.assert_close(stage.decode(latents, None)[0], expected, rtol=0, atol=1e-5)
    assert launched == {"memory_conv.upsampled": len(growths)}


# 8 bits


def plain_linears(network: nn.Module) -> set[str]:
    return {name for name, layer in network.named_modules() if type(layer) is nn.Linear}


def test_8_bits_stay_near_and_run_by_kernels(request: pytest.FixtureRequest) -> None:
    stage = built(SrDit(replace(SR, top_k=10**6)))  # every allowed block: masks agree
    exact = refined(stage, frames=6)
    assert plain_linears(stage.to_fp8()) == {
        "text_embedding.0",
        "text_embedding.2",
        "time_embedding.0",
        "time_embedding.2",
        "time_projection.1",
        "blocks.0.cross_attn.k",
        "blocks.0.cross_attn.v",
        "head.head",
    }
    by_pytorch = refined(stage, frames=6)
    assert 0 < off(by_pytorch, exact) < 0.1
    launched = request.getfixturevalue("launched")
    assert off(refined(stage, frames=6), by_pytorch) < 0.05
    assert launched["block_sparse_attention.kernel_fp8.forward"] == 2
    assert launched["adaln_modulate.modulate_fp8"] == 2 and launched["adaln_modulate.residual_norm"] == 4
    assert launched["fp8_linear.quantise"] == 2 * 2, "inputs of o and of the second layer of the ffn"
    assert launched["text_attention.forward_fp8"] == 2 and "text_attention.forward" not in launched
    assert not {"adaln_modulate.modulate", "block_sparse_attention.forward"} & launched.keys()


def test_a_network_without_text_path_turns_to_8_bits_too() -> None:
    stage = built(SrDit(replace(SR, text_len=0)))
    kept = plain_linears(stage.to_fp8())
    assert kept == {"time_embedding.0", "time_embedding.2", "time_projection.1", "head.head"}


def test_a_generator_in_8_bits_stays_near_and_runs_by_kernels(request: pytest.FixtureRequest) -> None:
    stage = built(Generator(GENERATOR))
    exact = generated(stage, chunks=2)
    kept = plain_linears(stage.to_fp8())
    assert kept == {
        "text_embedding.0",
        "text_embedding.2",
        "time_embedding.0",
        "time_embedding.2",
        "time_projection.1",
        "blocks.0.cross_attn.k",
        "blocks.0.cross_attn.v",
        "head.head",
    }
    by_pytorch = generated(stage, chunks=2)
    assert 0 < off(by_pytorch, exact) < 0.1
    launched = request.getfixturevalue("launched")
    assert off(generated(stage, chunks=2), by_pytorch) < 0.05
    runs = 2 * (len(GENERATOR.steps) + 1)
    assert launched["rms_norm_rope.kernel_tokens.forward"] == runs
    assert launched["block_sparse_attention.kernel_fp8_dense.forward"] == runs
    assert launched["adaln_modulate.modulate_fp8"] == runs and launched["text_attention.forward_fp8"] == runs
    assert launched["fp8_linear.quantise"] == 2 * runs, "inputs of o and the second of the ffn"
    assert not {"adaln_modulate.modulate", "rms_norm_rope.forward"} & launched.keys()


# At full size, on a device without data, so that nothing can be read back


class Operations(TorchDispatchMode):
    """Counts our operations; refuses those that mix tensors of host and device, which
    would wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.ours: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        devices = {leaf.device.type for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, Tensor)}
        assert len(devices) < 2, f"{func} has tensors on {devices}"
        space, _, name = func.name().partition("::")
        self.ours[name] += space == "ultraflash"
        return out


@pytest.fixture
def on_meta(monkeypatch: pytest.MonkeyPatch) -> Operations:
    """Use kernels for tensors without storage, which cannot be read back."""
    monkeypatch.setattr(dispatch, "prefers_kernels", lambda _device: True)
    monkeypatch.setattr(dispatch, "device_refusal", lambda _device: None)
    return Operations()


def meta(build: Callable[[], Any], dtype: torch.dtype) -> Any:
    with torch.device("meta"):
        return build().to(dtype).eval().requires_grad_(False)


def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


@pytest.mark.parametrize("fp8", [False, True], ids=["bf16", "fp8"])
def test_nothing_of_the_sr_transformer_is_read_back_at_2k(on_meta: Operations, fp8: bool) -> None:
    assert ULTRAFLASH.sr_dit is not None
    stage: SrDit = meta(lambda: SrDit(replace(ULTRAFLASH.sr_dit, num_layers=2)), torch.bfloat16)  # pyright: ignore[reportArgumentType]
    stage = stage.to_fp8() if fp8 else stage.fold_gates()
    stage.paired_caches = True
    noise = empty(1, 16, 6, 180, 312)
    with torch.inference_mode():
        state = stage.init_state(batch=1, height=180, width=312)
        state, _ = stage.step(state, SrDitInputs(noise, noise))
        with on_meta:
            state, clean = stage.step(state, SrDitInputs(noise, noise))
    assert clean.shape == noise.shape
    wanted = {"choose_blocks": 2, "text_attention_fp8" if fp8 else "text_attention": 2}
    wanted |= {"rms_norm_rope_means_fp8" if fp8 else "rms_norm_rope_means": 2}
    wanted |= {"block_list_attention_fp8" if fp8 else "block_list_attention": 2}
    if fp8:
        wanted |= {"gated_residual": 1, "residual_norm": 2 + 3, "adaln_modulate_fp8": 1}
        wanted |= {"quantise_rows": 2, "quantise_gelu_rows": 2}
    else:
        wanted |= {"adaln_modulate": 2 * 3, "linear_gelu": 2}
    assert +on_meta.ours == wanted


@pytest.mark.parametrize("fp8", [False, True], ids=["bf16", "fp8"])
def test_nothing_of_the_generator_is_read_back(on_meta: Operations, fp8: bool) -> None:
    assert ULTRAFLASH.long_generator is not None
    config = replace(ULTRAFLASH.long_generator, num_layers=2, steps=(1000, 500), independent_first_frame=False)
    network: Generator = meta(lambda: Generator(config), torch.bfloat16)
    stage = Sampler(network.to_fp8() if fp8 else network)
    inputs = GeneratorInputs(empty(1, 16, 3, 60, 104), empty(1, 1, 16, 3, 60, 104))
    with torch.inference_mode():
        state = stage.init_state(batch=1, height=60, width=104)
        with on_meta:
            stage.step(state, inputs)
    runs = 3
    wanted = {"gated_residual": 1, "sketched_attention": 0 if fp8 else 2}
    if fp8:
        wanted |= {"rms_norm_rope_fp8": 2, "dense_attention_fp8": 2, "residual_norm": 5, "text_attention_fp8": 2}
        wanted |= {"adaln_modulate_fp8": 1, "quantise_rows": 2, "quantise_gelu_rows": 2}
    else:
        wanted |= {"rms_norm_rope": 2, "adaln_modulate": 1 + 2, "residual_norm": 3, "linear_gelu": 2}
        wanted |= {"text_attention": 2}
    assert +on_meta.ours == +Counter({name: count * runs for name, count in wanted.items()})


def test_nothing_of_the_decoder_and_upsampler_is_read_back(on_meta: Operations) -> None:
    decoder = meta(lambda: Decoder(ULTRAFLASH.latent_stages[1]), torch.float16)
    upsampler = meta(lambda: LatentUpsampler(ULTRAFLASH.latent_stages[0]), torch.bfloat16)
    with torch.inference_mode():
        low = empty(1, 16, 6, 60, 104)
        before = upsampler.init_state(batch=1, height=60, width=104)
        state = decoder.init_state(batch=1, height=120, width=208)
        with on_meta:
            _, latents = upsampler.step(before, low)
            _, frames = decoder.step(state, latents)
    assert frames.shape == (1, 3, 24, 960, 1664)
