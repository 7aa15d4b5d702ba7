"""Configuration, names and shapes of the generator."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.engine.generators import HEIGHT, SCHEDULE, TINY, WIDTH, advance, build, clean_latents, clip, run, start
from ultraflash_cli.engine.sampling import Sampler
from ultraflash_cli.engine.stages.generator import Generator, GeneratorConfig
from ultraflash_cli.errors import ConfigError


def test_a_chunk_run_for_training_equals_the_streamed_one_and_passes_gradients_through_memory() -> None:
    stage = build(dataclasses.replace(TINY, window=6, sink=1, slide=True, steps=(1000,)))
    inputs = clip(9, draws=0)
    x = inputs.noise_bcthw.clone().requires_grad_()
    rings, clean = None, list[Tensor]()
    for first in (0, 3, 6):
        noise = x[:, :, first : first + 3]
        result = stage.forward_chunk(noise, 1000.0, rings=rings, first_frame=first)
        clean.append(SCHEDULE.clean(noise, result.flow_bcthw, 1000.0))
        rings = stage.forward_chunk(clean[-1], 0.0, rings=result.rings, first_frame=first).rings
    torch.testing.assert_close(torch.cat(clean, dim=2), run(stage, inputs), rtol=0, atol=1e-5)
    clean[-1].square().mean().backward()
    assert x.grad is not None and x.grad[:, :, :3].abs().sum() > 0
    missing = [name for name, p in stage.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not missing


def test_every_frame_may_have_its_own_timestep(stage: Generator) -> None:
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
    with pytest.raises(ConfigError, match="the context must be"):
        start(stage, context=torch.zeros(shape))


def test_latents_that_are_no_whole_patches_are_refused(stage: Generator) -> None:
    with pytest.raises(ConfigError, match="not whole patches"):
        Sampler(stage).init_state(batch=1, height=5, width=6)


def test_everything_runs_in_the_dtype_of_the_weights() -> None:
    exact = run(build(), clip(6))
    stage = build().bfloat16()
    state, rounded = advance(stage, start(stage), clip(6))
    assert rounded.dtype == state.rings[0].k.dtype == state.anchor_bcthw.dtype == torch.bfloat16
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
    shape = TINY.ring_shape(batch=1, height=HEIGHT, width=WIDTH)
    assert [tuple(part.shape) for ring in state.rings for part in (ring.k, ring.v)] == [shape] * 2 * TINY.num_layers


def test_the_published_cache_takes_6_gigabytes() -> None:
    size = {"batch": 1, "height": 60, "width": 104}
    assert GeneratorConfig().ring_shape(**size) == (1, 12, 32760, 128)
    assert GeneratorConfig(window=12).ring_shape(**size) == (1, 12, 18720, 128)
    rings = 2 * 30 * math.prod(GeneratorConfig().ring_shape(**size))
    assert 2 * rings == pytest.approx(6.04e9, rel=1e-3), "in half precision"


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
