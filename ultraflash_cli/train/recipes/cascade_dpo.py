"""Recipe ``cascade_dpo``: the one-step transformer learns to prefer a stronger model's results to its own roll-outs."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ultraflash_cli.engine import regroup
from ultraflash_cli.engine.cache_policy import CacheManagement
from ultraflash_cli.engine.layers.recompute import recomputed
from ultraflash_cli.engine.profiles import LITE, Profile
from ultraflash_cli.engine.sampling import GeneratorInputs, Sampler
from ultraflash_cli.engine.schedule import FRAMES_PER_LATENT
from ultraflash_cli.engine.stages.latent_upsampler import LatentUpsampler
from ultraflash_cli.engine.stages.sr_dit import SrDit, SrDitInputs
from ultraflash_cli.errors import ConfigError, WeightsError
from ultraflash_cli.train.data import Material
from ultraflash_cli.train.flows import draw_levels, group_flow, noised, normal
from ultraflash_cli.train.large import large_loop
from ultraflash_cli.train.loop import Batch, Learner, generator_of
from ultraflash_cli.train.recipe import seeded
from ultraflash_cli.train.recipes import tv2v_flow_matching as tv2v
from ultraflash_cli.train.recipes.tv2v_flow_matching import Tv2vConfig, channel_weight, of_scales, weigh_channels
from ultraflash_cli.train.rewards import load_reward
from ultraflash_cli.train.roles import CascadeRoles
from ultraflash_cli.train.sheets import Picture, sheet

__all__ = [
    "HELPERS",
    "NETWORKS",
    "DpoConfig",
    "DpoRoles",
    "Pair",
    "clips",
    "configure",
    "drifts",
    "learners",
    "loss",
    "make",
    "merge",
    "numbered",
    "pictures",
    "roll_out",
    "start",
]

NETWORKS = ("sr_dit",)
"""Roles that an export writes."""

HELPERS = ("reference", "stronger")
"""Roles needed only for training."""

FIRST_SHOWN = 1_000_000_000
"""Batches from this number on are used for sample pictures and validation."""


@dataclass(frozen=True, kw_only=True)
class DpoConfig(Tv2vConfig):
    """Settings of the roll-out and of the preference loss."""

    from_generator: bool = False
    """Whether a frozen generator produces the low-resolution latents from the captions;
    otherwise those of the clips are used."""
    cache_management: str = "kv"
    """Rules of dynamic cache management for the roll-outs, in the syntax of the command
    line; ``refresh`` is not allowed."""
    beta: float = 50.0
    """Strength of the preference: a factor on errors averaged over a clip's latents."""
    stronger_steps: int = 8
    """Sampling steps of the stronger model."""
    better: Literal["stronger", "truth"] = "stronger"
    """The preferred result: that of the stronger model, or the true latents."""
    distinct: int = 0
    """Number of batches whose pairs are made once and reused in turn; 0 makes new pairs
    in every step."""
    rewards: tuple[tuple[str, float], ...] = ()
    """Rewards by name and weight, on decoded frames: a pair counts only if the reward
    of its better half is higher by ``least_margin``. Without rewards every pair
    counts."""
    least_margin: float = 0.0
    """Minimum margin between the rewards of the better and the worse half."""
    levels: tuple[float, float] = (0.0, 1.0)
    """Range of the noise levels, before the shift, at which both halves are compared. A
    one-step student was trained at the highest level only."""
    graded_groups: int = 0
    """Number of groups at the end of a clip that the preference loss compares; earlier
    ones only fill the KV cache. 0 compares all groups."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.from_generator and (self.profile.generator is None or not self.with_text):
            raise ConfigError(f"{self.profile.name} has no generator conditioned on captions")
        for name, _ in self.rewards:
            load_reward(name)
        if CacheManagement.parse(self.cache_management).refresh is not None:
            raise ConfigError("training roll-outs run all context passes; remove refresh")

    @property
    def service_profile(self) -> Profile:
        """The profile with dynamic cache management applied, for clips of this
        length."""
        rules, profile = CacheManagement.parse(self.cache_management), self.profile
        assert profile.sr_dit is not None
        latents = self.pairs.frames // FRAMES_PER_LATENT
        if self.comes_encoded:
            latents = self.window.latents
        groups = math.ceil(latents / profile.group_latents)
        generator = rules.apply_generator(profile.generator) if profile.generator else None
        return replace(profile, sr_dit=rules.apply_sr(profile.sr_dit, groups), generator=generator)

    @property
    def parts(self) -> tuple[str, ...]:
        """Roles needed by the cascade."""
        return (*super().parts, "generator") if self.from_generator else super().parts


@dataclass(frozen=True)
class Pair:
    """Two results for the same prompt and the same condition."""

    cond_bcthw: Tensor
    own_bcthw: Tensor
    """``z-``: the roll-out of the cascade."""
    better_bcthw: Tensor
    """``z+``: the result of the stronger model, or the true latents."""
    context: Tensor | None
    counts: Tensor
    """``[B]``: 1 where the reward of the better half is higher by the margin, else
    0."""


class DpoRoles(CascadeRoles):
    """The cascade, a frozen copy of its initial transformer, and the many-step dense
    transformer."""

    def __init__(self, config: DpoConfig) -> None:
        super().__init__(config.service_profile, config.parts, scales=config.scales, words=config.words)
        sr_dit, wide = self.profile.sr_dit, config.dense_profile.sr_dit
        assert sr_dit is not None and wide is not None
        self.reference = SrDit(sr_dit).requires_grad_(False)
        self.stronger = SrDit(wide).requires_grad_(False)
        self.kept: dict[int, Pair] = {}
        """Pairs by batch number, see ``DpoConfig.distinct``."""


@torch.no_grad()
def roll_out(
    config: DpoConfig, roles: DpoRoles, batch: Batch, rng: torch.Generator, student: SrDit | None = None
) -> Pair:
    """Return the cascade's roll-out, computed group by group as at inference, and the
    preferred result. ``student`` replaces the roles' transformer.
    """
    low_frames, high, scale, captions, *_ = batch
    context = roles.context(captions) if config.with_text else None
    low = _draw(config, roles, low_frames, context, rng) if config.from_generator else roles.latents_of(low_frames)
    batch_size, _, _, height, width = low.shape
    group = config.profile.group_latents
    sr_dit, upsampler = student or roles.sr_dit, roles.upsamplers[str(scale)]
    assert isinstance(upsampler, LatentUpsampler), "the list holds upsamplers"
    states = (
        upsampler.init_state(batch=batch_size, height=height, width=width),
        sr_dit.init_state(batch=batch_size, height=height * scale, width=width * scale, context=context),
    )

    conds, own = list[Tensor](), list[Tensor]()
    for piece in low.split(group, dim=2):
        upsampler_state, cond = upsampler.step(states[0], piece)
        level = torch.full((batch_size,), config.profile.condition_noise)
        cond = noised(cond.float(), normal(cond, rng), level)
        state, clean = sr_dit.step(states[1], SrDitInputs(normal(cond, rng), cond))
        states = (upsampler_state, state)
        conds.append(cond)
        own.append(clean)

    cond = torch.cat(conds, dim=2)
    made = torch.cat(own, dim=2).float()
    if config.better == "truth":
        better = roles.latents_of(high)
    else:
        better = tv2v.sample(
            roles.stronger,
            normal(cond, rng),
            cond,
            context,
            steps=config.stronger_steps,
            shift=config.shift,
            guidance=config.sample_guidance,
        )

    counts = _counts(config, roles, made, better.float(), high)
    return Pair(cond, made, better.float(), context, counts)


def _counts(config: DpoConfig, roles: DpoRoles, own: Tensor, better: Tensor, high: Tensor) -> Tensor:
    """Return for each clip whether the reward of its better half is higher by the
    margin."""
    if not config.rewards:
        return torch.ones(len(own), device=own.device)
    truth = roles.frames_of(high)

    def reward(latents: Tensor) -> Tensor:
        frames = roles.decode(latents)
        scores = [weight * load_reward(name).score(frames, truth).flatten(1).mean(1) for name, weight in config.rewards]
        return torch.stack(scores).sum(0)

    return (reward(better) - reward(own) >= config.least_margin).float()


def _draw(
    config: DpoConfig, roles: DpoRoles, like_frames: Tensor, context: Tensor | None, rng: torch.Generator
) -> Tensor:
    """Return latents that the frozen generator produces from the captions, as many as
    the clips have."""
    sampler = Sampler(roles.generator)
    like = roles.latents_of(like_frames)
    batch, channels, frames, height, width = like.shape
    state = sampler.init_state(batch=batch, height=height, width=width, context=context)
    draws = torch.randn((batch, sampler.config.draws_per_chunk, channels, frames, height, width), generator=rng)
    return regroup.run(sampler, state, GeneratorInputs(normal(like, rng), draws.to(like)))[1]


def drifts(config: DpoConfig, roles: DpoRoles, pair: Pair, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return ``d(z+)`` and ``d(z-)`` of each clip; a value below 0 means likelier than
    under the reference.

    ``d(z) = |v_theta - v|^2 - |v_ref - v|^2`` with the same level and noise for both
    results.
    """
    noise = normal(pair.own_bcthw, rng)
    level = draw_levels(len(noise), config.shift, rng, low=config.levels[0], high=config.levels[1])
    weight = channel_weight(roles).to(noise)
    groups = math.ceil(noise.shape[2] / config.profile.group_latents)
    ungraded = max(0, groups - config.graded_groups) if config.graded_groups else 0

    def error(network: SrDit, clean: Tensor) -> Tensor:
        flow = group_flow(
            network,
            noised(clean, noise, level),
            pair.cond_bcthw,
            level,
            pair.context,
            recompute=config.loop.recompute,
            ungraded=ungraded,
        )
        seen = slice(ungraded * config.profile.group_latents, None)
        away = flow[:, :, seen].float() - (noise - clean)[:, :, seen]
        return (weight * away.square()).mean((1, 2, 3, 4))

    def drift(clean: Tensor) -> Tensor:
        with torch.no_grad():
            reference = error(roles.reference, clean)
        # Keep only one autograd graph over whole clips at a time.
        run = recomputed(error) if config.loop.recompute else error
        return run(roles.sr_dit, clean) - reference

    return drift(pair.better_bcthw), drift(pair.own_bcthw)


def loss(config: DpoConfig, roles: DpoRoles, batch: Batch, rng: torch.Generator) -> dict[str, Tensor]:
    """Return ``-log sigmoid(beta * margin)``, the mean over the clips that count.

    The implicit rewards of both halves, ``-beta d(z)``, and the share of clips that
    count are returned for logging: if both rewards fall along with the loss, the model
    does not learn the preference.
    """
    pair = _pair(config, roles, batch, rng)
    better, own = drifts(config, roles, pair, rng)
    away = -F.logsigmoid(config.beta * (own - better))
    with torch.no_grad():
        rewards = {"implicit_better": -config.beta * better.mean(), "implicit_own": -config.beta * own.mean()}
    count = pair.counts.sum()
    return {"preference": (pair.counts * away).sum() / count.clamp_min(1), **rewards, "counting": pair.counts.mean()}


def _pair(config: DpoConfig, roles: DpoRoles, batch: Batch, rng: torch.Generator) -> Pair:
    """Return the pair of a batch, from an earlier step if pairs are kept."""
    if not config.distinct:
        return roll_out(config, roles, batch, rng)
    number = int(batch[-1])
    if number not in roles.kept:
        # Made by the initial student, so that a resumed run makes the same pair.
        pair_rng = generator_of(config.loop.seed, "pair", number)
        roles.kept[number] = roll_out(config, roles, batch, pair_rng, roles.reference)
    return roles.kept[number]


def learners(config: DpoConfig) -> tuple[Learner, ...]:
    """Return the single learner, the transformer."""
    return (
        Learner(
            name="student",
            roles=NETWORKS,
            loss=partial(loss, config),
            betas=config.betas,
            weight_decay=config.weight_decay,
        ),
    )


def configure(*, steps: int, seed: int, toy: bool = False, profile: Profile = LITE) -> DpoConfig:
    """Return the settings for a model's sizes, or for a toy model."""
    base = tv2v.configure(steps=steps, seed=seed, toy=toy, profile=profile)
    loop = replace(base.loop, rate=1e-4 if toy else 2e-5, warmup=10)
    if base.comes_encoded:
        # Six groups: the KV cache of the roll-out shrinks after the second, and errors
        # accumulate.
        latents = 6 * profile.group_latents
        six: dict[str, Any] = {"window": replace(base.window, latents=latents)}
        return DpoConfig(
            loop=large_loop(steps, seed, rate=1e-6),
            **(tv2v.settings(base) | six),
            beta=2000.0,
            graded_groups=2,
        )

    config = DpoConfig(loop=loop, **tv2v.settings(replace(base, orthogonal=False)))
    if toy or not config.with_text:
        return config

    # The true latents are known, and no sampler of the many-step model is close to them
    # yet.
    rewards = (("lpips", 1.0), ("temporal", 0.1))
    loop = replace(loop, batch=1)
    return replace(
        config, loop=loop, better="truth", distinct=64, rewards=rewards, least_margin=0.01, levels=(0.95, 1.0)
    )


def start(config: DpoConfig, materials: list[Material], weights: dict[str, Tensor] | None) -> DpoRoles:
    """Return the roles before the first step: the one-step transformer, twice, and the many-step one.

    ``weights`` are those of a run of ``tv2v_flow_matching``, whose transformer is the stronger model, overlaid with
    those of a run of ``causal_dmd``: see ``merge``. Raises UsageError without weights, WeightsError where they do not
    fit.
    """
    with seeded(config):
        roles = DpoRoles(config)
    hint = "average.safetensors of a run of `tv2v_flow_matching`, then that of a run of `causal_dmd`"
    given = of_scales(weights or {}, config.scales)
    given = {name: value for name, value in given.items() if not name.startswith("reference.")}
    roles.load(given or None, fresh=("reference",), hint=hint)
    roles.reference.load_state_dict(roles.sr_dit.state_dict())
    roles.learn(*NETWORKS)
    weigh_channels(config, roles)
    return roles


def merge(weights: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return the weights of several runs as one: the first run's transformer is the stronger model.

    Raises WeightsError unless there are two or more.
    """
    if len(weights) < 2:
        raise WeightsError(
            "cascade_dpo needs two runs: --start-from of `tv2v_flow_matching`, then --start-from of `causal_dmd`"
        )
    named = {name.split(".", 1)[1]: value for name, value in weights[0].items() if name.startswith("sr_dit.")}
    merged = {f"stronger.{name}": value for name, value in named.items()}
    for tensors in weights:
        merged |= tensors
    return merged


def make(config: DpoConfig, data: Path | None) -> Callable[[int], Batch]:
    """Return the function that makes a batch, including its number, from its number."""
    return partial(numbered, tv2v.make(config, data), config.distinct)


def numbered(make: Callable[[int], Batch], distinct: int, number: int) -> Batch:
    """Return a batch and its number; with ``distinct``, training numbers wrap around
    after that many."""
    if distinct and number < FIRST_SHOWN:
        number %= distinct
    return (*make(number), number)


def clips(config: DpoConfig, roles: DpoRoles, batch: Batch, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return decoded roll-outs, and the clips."""
    return roles.decode(roll_out(config, roles, batch, rng).own_bcthw), roles.frames_of(batch[1])


def pictures(config: DpoConfig, roles: DpoRoles, batch: Batch, rng: torch.Generator) -> Picture:
    """Show decoded roll-outs, the stronger model's results and the clips."""
    pair = roll_out(config, roles, batch, rng)
    return sheet(*(roles.decode(latents) for latents in (pair.own_bcthw, pair.better_bcthw)), roles.frames_of(batch[1]))
