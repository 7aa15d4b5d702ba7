"""Recipe ``generator``: a causal text-to-video transformer by flow matching, a noise level for every chunk."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ultraflash_cli.engine.profiles import LITE, Profile
from ultraflash_cli.engine.schedule import FRAMES_PER_LATENT, GENERATED_FPS
from ultraflash_cli.engine.stages.generator import GeneratorConfig, GeneratorInputs
from ultraflash_cli.engine.stages.prompt_encoder import PromptEncoderConfig
from ultraflash_cli.errors import ConfigError
from ultraflash_cli.train.data import Material
from ultraflash_cli.train.flows import chunk_flow, draw_levels, noised, normal, uniform
from ultraflash_cli.train.loop import Batch, Learner, LoopConfig
from ultraflash_cli.train.roles import TOY, TOY_WORDS, CascadeRoles
from ultraflash_cli.train.scenes import caption, random_scene, render
from ultraflash_cli.train.sheets import Picture, sheet

__all__ = [
    "NETWORKS",
    "GeneratorRecipeConfig",
    "configure",
    "learners",
    "loss",
    "make",
    "pictures",
    "roll_out",
    "scene_batch",
    "start",
]

NETWORKS = ("generator", "text_encoder")
"""What an export writes."""

LONGEST_START_S = 4.0
"""Scenes are looked at from up to so late."""

SCENES_A_SEED = 100_000_000
"""Scenes that belong to one seed; those before the first seed's are nobody's, and good for tests."""


@dataclass(frozen=True, kw_only=True)
class GeneratorRecipeConfig:
    """What is drawn, how noise is drawn, and what the loop needs."""

    loop: LoopConfig
    profile: Profile
    """The networks' sizes; with a generator."""
    words: PromptEncoderConfig
    """The prompt encoder, which learns along."""
    size: tuple[int, int] = (480, 832)
    """Height and width of the scenes in pixels."""
    latents: int = 6
    """Latent frames of a clip; at most the generator's window."""
    shift: float = 5.0
    """How much the noise levels lean to the noisy side."""
    text_drop: float = 0.1
    """How often a clip's words are dropped."""
    clean_share: float = 0.5
    """How often the chunks before are seen clean, as in service, rather than at their own levels."""

    def __post_init__(self) -> None:
        generator = self.profile.generator
        if generator is None:
            raise ConfigError(f"{self.profile.name} has no generator to train")
        if (generator.text_dim, generator.text_len) != (self.words.dim, self.words.text_len):
            raise ConfigError("the prompt encoder's embeddings are not those that the generator takes")
        if not 1 <= self.latents <= generator.window or self.latents % generator.chunk_latents:
            raise ConfigError(f"a clip is whole chunks within the window, got {self.latents} latents")


def scene_batch(size: tuple[int, int], latents: int, seed: int, count: int, number: int) -> Batch:
    """Return (frames [B, 3, 4 * latents, H, W] in [0, 1], captions) of batch ``number``.

    Every scene is new. The first frame comes four times, as a stream's does. Seed 0 is for tests.
    """
    frames, words = list[Tensor](), list[str]()
    for i in range(number * count, (number + 1) * count):
        scene = random_scene(seed * SCENES_A_SEED + i)
        rng = np.random.default_rng((seed, 11, i))
        first = rng.uniform(0, LONGEST_START_S)
        shown = range(FRAMES_PER_LATENT * (latents - 1) + 1)
        clip = [render(scene, first + t / GENERATED_FPS, height_px=size[0], width_px=size[1]) for t in shown]
        clip = clip[:1] * (FRAMES_PER_LATENT - 1) + clip
        frames.append(torch.from_numpy(np.stack(clip)).permute(3, 0, 1, 2).float().div_(255))
        words.append(caption(scene, int(rng.integers(1000))))
    return torch.stack(frames), tuple(words)


def loss(config: GeneratorRecipeConfig, roles: CascadeRoles, batch: Batch, rng: torch.Generator) -> dict[str, Tensor]:
    """Return the error of the flow, every chunk at its own noise level."""
    frames, captions = batch
    chunk = roles.generator.config.chunk_latents
    with torch.no_grad():
        clean = roles.encode(frames)
    count, chunks = len(clean), clean.shape[2] // chunk
    keep = uniform(count, 0, 1, rng) >= config.text_drop
    noise = normal(clean, rng)
    level = draw_levels(count * chunks, config.shift, rng).view(count, chunks).repeat_interleave(chunk, dim=1)
    seen = clean if uniform(1, 0, 1, rng).item() < config.clean_share else None
    context = roles.context(captions, keep)
    flow = chunk_flow(roles.generator, noised(clean, noise, level), level, context, clean_bcthw=seen)
    return {"flow": (flow.float() - (noise - clean)).square().mean()}


@torch.no_grad()
def roll_out(roles: CascadeRoles, captions: tuple[str, ...], shape: torch.Size, rng: torch.Generator) -> Tensor:
    """Return latents of ``shape [B, C, T, H, W]`` as the generator draws them in service."""
    generator = roles.generator
    batch, height, width = shape[0], shape[3], shape[4]
    state = generator.init_state(batch=batch, height=height, width=width, context=roles.context(captions))
    weight = generator.patch_embedding.weight
    noise = torch.randn(shape, generator=rng).to(weight)
    draws = torch.randn((batch, generator.config.draws_per_chunk, *shape[1:]), generator=rng).to(weight)
    return generator.step(state, GeneratorInputs(noise, draws))[1]


def learners(config: GeneratorRecipeConfig) -> tuple[Learner, ...]:
    """Return the one learner: generator and prompt encoder."""
    return (Learner(name="student", roles=NETWORKS, loss=partial(loss, config)),)


def configure(*, steps: int, seed: int, toy: bool = False) -> GeneratorRecipeConfig:
    """Return the settings for a generator of the built-in model's size, or for a toy."""
    if toy:
        loop = LoopConfig(steps=steps, seed=seed, rate=4e-3, warmup=10, average=0.97, save_every=50, log_every=10)
        return GeneratorRecipeConfig(loop=loop, profile=TOY, words=TOY_WORDS, size=TOY.base_size, latents=4)
    words = PromptEncoderConfig()
    generator = GeneratorConfig(
        dim=192,
        num_heads=4,
        num_layers=5,
        ffn_dim=512,
        freq_dim=64,
        text_dim=words.dim,
        text_len=words.text_len,
        patch=(1, 4, 4),
        window=6,
        slide=True,
    )
    return GeneratorRecipeConfig(
        loop=LoopConfig(steps=steps, seed=seed, rate=1e-3, warmup=200, average=0.999, batch=8),
        profile=replace(LITE, generator=generator),
        words=words,
    )


def start(config: GeneratorRecipeConfig, materials: list[Material], weights: dict[str, Tensor] | None) -> CascadeRoles:
    """Return the roles before the first step: a given encoder and decoder, a fresh or given generator.

    Raises UsageError without weights, WeightsError where they do not fit.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.loop.seed)
        parts = ("encoder", "decoder", *NETWORKS) if config.profile.decoder.skip is None else ("encoder", *NETWORKS)
        roles = CascadeRoles(config.profile, parts, words=config.words)
    roles.load(weights, fresh=NETWORKS, hint="the average of a run of `decoder` or `pixels`")
    roles.learn(*NETWORKS)
    return roles


def make(config: GeneratorRecipeConfig, data: Path | None) -> Callable[[int], Batch]:
    """Return the function of the number that makes batches; no material is needed."""
    return partial(scene_batch, config.size, config.latents, config.loop.seed, config.loop.batch)


def pictures(config: GeneratorRecipeConfig, roles: CascadeRoles, batch: Batch, rng: torch.Generator) -> Picture:
    """Show what the generator draws for captions beside the scenes; latents' first channels where nothing decodes."""
    frames, captions = batch
    clean = roles.encode(frames)
    drawn = roll_out(roles, captions, clean.shape, rng)
    if config.profile.decoder.skip is None:
        return sheet(roles.decode(drawn, frames, 1), roles.decode(clean, frames, 1), frames)
    return sheet(*(0.5 + latents[:, :3] / 6 for latents in (drawn, clean)))
