"""Tiny generators and functions to run them."""

from typing import Any

import torch
from torch import Tensor

from ultraflash_cli.engine import regroup
from ultraflash_cli.engine.flow_matching import FlowSchedule
from ultraflash_cli.engine.sampling import Gate, GeneratorInputs, GeneratorState, Sampler
from ultraflash_cli.engine.stages.generator import Generator, GeneratorConfig

__all__ = [
    "HEIGHT",
    "SCHEDULE",
    "TINY",
    "TOKENS",
    "WIDTH",
    "advance",
    "build",
    "clean_latents",
    "clip",
    "part",
    "run",
    "start",
]

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


SCHEDULE = FlowSchedule(TINY.shift)
HEIGHT, WIDTH = 4, 6


TOKENS = 6
"""Tokens per latent frame."""


def build(config: GeneratorConfig = TINY, seed: int = 0) -> Generator:
    """Build a stage with a nonzero head."""
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
    return Sampler(stage).init_state(batch=batch, height=HEIGHT, width=WIDTH, **kwargs)


def advance(
    stage: Generator, state: GeneratorState, inputs: GeneratorInputs, *, gate: Gate | None = None
) -> tuple[GeneratorState, Tensor]:
    """Generate the chunks of ``inputs``, a shorter one last."""
    return regroup.run(Sampler(stage, gate=gate), state, inputs)


def run(stage: Generator, inputs: GeneratorInputs, state: GeneratorState | None = None) -> Tensor:
    return advance(stage, state or start(stage, inputs.noise_bcthw.shape[0]), inputs)[1]


def clean_latents(frames: int, seed: int = 7) -> Tensor:
    return torch.randn(1, 4, frames, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(seed))
