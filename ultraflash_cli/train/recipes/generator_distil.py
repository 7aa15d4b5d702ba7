"""Recipe ``generator_distil``: distil the generator to a few steps on its own roll-outs
(self-forcing)."""

from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from ultraflash_cli.engine.flow_matching import FlowSchedule
from ultraflash_cli.engine.stages.generator import Generator
from ultraflash_cli.train.data import Material
from ultraflash_cli.train.flows import chunk_flow, clean_of, distribution_terms, draw_levels, noised, normal
from ultraflash_cli.train.loop import Batch, Learner
from ultraflash_cli.train.recipe import seeded
from ultraflash_cli.train.recipes import generator as base
from ultraflash_cli.train.recipes.generator import GeneratorRecipeConfig, make, pictures
from ultraflash_cli.train.roles import CascadeRoles

__all__ = [
    "HELPERS",
    "NETWORKS",
    "DistilConfig",
    "DistilRoles",
    "configure",
    "critic_loss",
    "forced",
    "learners",
    "make",
    "pictures",
    "start",
    "student_loss",
]

NETWORKS = ("generator", "text_encoder")
"""Roles that an export writes: the student and its prompt encoder."""

HELPERS = ("real_score", "fake_score")
"""Roles needed only for training."""


@dataclass(frozen=True, kw_only=True)
class DistilConfig(GeneratorRecipeConfig):
    """Weights of the student's loss terms, and the update interval of the critic."""

    critic_updates: int = 5
    """Updates of the fake score per update of the student."""
    guidance: float = 3.0
    """Weight of the guidance part, the effect of the text; 0 disables it."""
    matching: float = 1.0
    """Weight of the distribution-matching part."""
    levels: tuple[float, float] = (0.02, 0.98)
    """Range of the noise levels, before the shift, added to the student's result for
    the scores."""


class DistilRoles(CascadeRoles):
    """The student with its prompt encoder, a frozen real score and a trained fake
    score, all of the same class."""

    def __init__(self, config: DistilConfig) -> None:
        parts = ("encoder", "decoder", *NETWORKS)
        super().__init__(config.profile, parts, words=config.words)
        assert config.profile.generator is not None
        self.real_score, self.fake_score = (Generator(config.profile.generator).requires_grad_(False) for _ in range(2))


def forced(generator: Generator, like: Tensor, context: Tensor, rng: torch.Generator) -> Tensor:
    """Return a roll-out as at inference, with gradients through one step of every
    chunk. All chunks stop after the same random number of steps; earlier steps, and the
    context pass through which later chunks see a finished one, have no gradients.
    """
    config = generator.config
    schedule = FlowSchedule(config.shift)
    keys = generator.embed_context(context, batch=like.shape[0])
    still = tuple(type(key)(key.k.detach(), key.v.detach()) for key in keys)
    stop = int(torch.randint(len(config.steps), (1,), generator=rng))
    rings, chunks, first = None, list[Tensor](), 0
    while first < like.shape[2]:
        count = config.chunk_after(first)
        piece = like[:, :, first : first + count]
        timesteps = config.steps_of_chunk(len(chunks))
        x, clean = normal(piece, rng), piece
        for i, timestep in enumerate(timesteps[: stop + 1]):
            draw = normal(piece, rng)
            if i:
                x = schedule.renoise(clean.detach(), draw, timestep)
            is_last = i == min(stop, len(timesteps) - 1)
            with torch.set_grad_enabled(is_last and torch.is_grad_enabled()):
                result = generator.forward_chunk(
                    x, timestep, rings=rings, context=keys if is_last else still, first_frame=first
                )
                clean = x - schedule.sigma(timestep) * result.flow_bcthw

        chunks.append(clean)
        with torch.no_grad():
            rings = generator.forward_chunk(
                clean.detach(), config.context_timestep, rings=rings, context=still, first_frame=first
            ).rings
        first += count
    return torch.cat(chunks, dim=2).float()


def critic_loss(config: DistilConfig, roles: DistilRoles, batch: Batch, rng: torch.Generator) -> dict[str, Tensor]:
    """Return the flow-matching error of the fake score on the student's own roll-outs."""
    shown, captions, *_ = batch
    with torch.no_grad():
        context = roles.context(captions)
        clean = forced(roles.generator, roles.latents_of(shown), context, rng)
    noise, level = normal(clean, rng), draw_levels(len(clean), config.shift, rng)
    every = level[:, None].expand(-1, clean.shape[2])
    flow = chunk_flow(roles.fake_score, noised(clean, noise, level), every, context, recompute=config.loop.recompute)
    return {"flow": (flow.float() - (noise - clean)).square().mean()}


def student_loss(config: DistilConfig, roles: DistilRoles, batch: Batch, rng: torch.Generator) -> dict[str, Tensor]:
    """Return the two parts of distribution matching on a roll-out."""
    shown, captions, *_ = batch
    with torch.no_grad():
        context, like = roles.context(captions), roles.latents_of(shown)
    clean = forced(roles.generator, like, context, rng)
    with torch.no_grad():
        noise = normal(clean, rng)
        level = draw_levels(len(clean), config.shift, rng, low=config.levels[0], high=config.levels[1])
        noisy, every = noised(clean, noise, level), level[:, None].expand(-1, clean.shape[2])

        def predict(score: Generator, words: Tensor) -> Tensor:
            return clean_of(noisy, chunk_flow(score, noisy, every, words).float(), level)

        real, fake = predict(roles.real_score, context), predict(roles.fake_score, context)
        unworded = predict(roles.real_score, torch.zeros_like(context)) if config.guidance else None
    return distribution_terms(clean, real, fake, unworded, matching=config.matching, guidance=config.guidance)


def learners(config: DistilConfig) -> tuple[Learner, ...]:
    """Return critic and student; the critic learns in every step. The prompt encoder is frozen."""
    critic, student = partial(critic_loss, config), partial(student_loss, config)
    return (
        Learner(name="critic", roles=("fake_score",), loss=critic, steady=False),
        Learner(name="student", roles=("generator",), loss=student, every=config.critic_updates, steady=False),
    )


def configure(*, steps: int, seed: int, toy: bool = False) -> DistilConfig:
    """Return the settings for a generator of the built-in model's size, or for a toy
    model; ``steps`` counts updates of the critic."""
    plain = base.configure(steps=steps, seed=seed, toy=toy)
    loop = replace(plain.loop, rate=1e-3 if toy else 1e-4, warmup=10)
    return DistilConfig(
        loop=loop,
        profile=plain.profile,
        words=plain.words,
        size=plain.size,
        lengths=plain.lengths if toy else (base.ClipLength(latents=3), base.ClipLength(latents=6, clips=0.5)),
        shift=plain.shift,
        critic_updates=2 if toy else 3,
        guidance=3.0 if plain.text_drop else 0.0,
    )


def start(config: DistilConfig, materials: list[Material], weights: dict[str, Tensor] | None) -> DistilRoles:
    """Return the roles before the first step: student and both scores are the generator of ``weights``.

    Raises UsageError without weights, WeightsError where they do not fit.
    """
    with seeded(config):
        roles = DistilRoles(config)
    roles.load(weights, fresh=HELPERS, hint="average.safetensors of a run of `generator`")
    for score in (roles.real_score, roles.fake_score):
        score.load_state_dict(roles.generator.state_dict())
    roles.learn("generator", "fake_score")
    return roles
