"""Recipe ``causal_dmd``: distil the many-step dense transformer into a one-step
block-sparse one, with hybrid rewards."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from ultraflash_cli.engine.profiles import LITE, Profile
from ultraflash_cli.engine.schedule import LATENT_PX
from ultraflash_cli.engine.stages.sr_dit import SrDit
from ultraflash_cli.errors import WeightsError
from ultraflash_cli.train.critic import Critic, relativistic_loss, reversed_gradient
from ultraflash_cli.train.data import Material
from ultraflash_cli.train.flows import clean_of, distribution_terms, draw_levels, group_flow, noised, normal, one_step
from ultraflash_cli.train.large import large_loop
from ultraflash_cli.train.loop import Batch, Learner
from ultraflash_cli.train.losses import PictureTerms, picture_terms
from ultraflash_cli.train.recipe import seeded
from ultraflash_cli.train.recipes import tv2v_flow_matching as tv2v
from ultraflash_cli.train.recipes.tv2v_flow_matching import (
    Tv2vConfig,
    channel_weight,
    flow_error,
    is_kernel,
    make,
    of_scales,
    weigh_channels,
)
from ultraflash_cli.train.rewards import load_reward, reward_of
from ultraflash_cli.train.roles import CascadeRoles
from ultraflash_cli.train.sheets import Picture

__all__ = [
    "HELPERS",
    "NETWORKS",
    "DmdConfig",
    "DmdRoles",
    "clips",
    "configure",
    "critic_loss",
    "learners",
    "make",
    "merge",
    "pictures",
    "start",
    "student_loss",
]

NETWORKS = ("sr_dit",)
"""Roles that an export writes: the student."""

HELPERS = ("real_score", "fake_score", "critic")
"""Roles needed only for training."""

TEACHER = "teacher."
"""Prefix of the weights of a teacher that is not the student's start."""


@dataclass(frozen=True, kw_only=True)
class DmdConfig(Tv2vConfig):
    """Weights of the student's loss terms, and the update interval of the critic."""

    critic_updates: int = 5
    """Updates of the fake score per update of the student."""
    critic_rate: float = 1.0
    """Factor on the critic's learning rate."""
    critic_betas: tuple[float, float] = (0.9, 0.99)
    """AdamW's decays for the critic; those of the student are ``betas``."""
    guidance: float = 2.0
    """Weight of the guidance part, the effect of the text; 0 disables it. Transformers
    without a text path have none."""
    matching: float = 1.0
    """Weight of the distribution-matching part."""
    regression: float = 1.0
    """Weight of the pixel error of decoded frames."""
    terms: PictureTerms = field(default_factory=PictureTerms)
    """Weights of the terms of that error."""
    rewards: tuple[tuple[str, float], ...] = (("texture", 0.1), ("temporal", 0.05))
    """Rewards by name and weight, on decoded frames."""
    adversarial: float = 0.0
    """Weight of the adversarial term on the decoded part, from a critic of detail and
    its change (``train/critic.py``)."""
    latents: float = 0.0
    """Weight of the mean square error of latents, over the whole window."""
    decoded: tuple[int, int] | None = None
    """Rows and columns of the part that is decoded, at a new random position each time;
    None decodes everything."""
    levels: tuple[float, float] = (0.02, 0.98)
    """Range of the noise levels, before the shift, added to the student's result for
    the scores."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, _ in self.rewards:
            load_reward(name)

    @property
    def by_scores(self) -> bool:
        """Whether the student's loss uses the scores; otherwise it consists of
        regression and rewards."""
        return bool(self.matching or self.guidance)


class DmdRoles(CascadeRoles):
    """The cascade with a sparse student, a frozen dense real score and a dense fake score that learns."""

    def __init__(self, config: DmdConfig) -> None:
        super().__init__(config.profile, config.parts, scales=config.scales, words=config.words)
        self.recompute = config.loop.recompute
        wide = config.dense_profile.sr_dit
        assert wide is not None
        if config.adversarial:
            self.critic = Critic()
        self.real_score, self.fake_score = (SrDit(wide).requires_grad_(False) for _ in range(2))

    def begin(self, teacher: Mapping[str, Tensor]) -> None:
        """Copy the teacher's weights, or the student's if there are none, to both
        scores, and make the learners trainable."""
        for score in (self.real_score, self.fake_score):
            score.load_state_dict(teacher or self.sr_dit.state_dict())
        self.learn("sr_dit", "fake_score", *(name for name, _ in self.named_children() if name == "critic"))

    def one_step(self, cond_bcthw: Tensor, context: Tensor | None, rng: torch.Generator) -> Tensor:
        """Return the student's clean latents."""
        return one_step(self.sr_dit, cond_bcthw, context, rng, recompute=self.recompute)


def critic_loss(config: DmdConfig, roles: DmdRoles, batch: Batch, rng: torch.Generator) -> dict[str, Tensor]:
    """Return the flow-matching error of the fake score on the student's own results."""
    cond, context = tv2v.conditions(roles, batch, config.condition_noise, rng, with_text=config.with_text)
    with torch.no_grad():
        clean = roles.one_step(cond, context, rng).float()
    noise, level = normal(clean, rng), draw_levels(len(clean), config.shift, rng)
    noisy, recompute = noised(clean, noise, level), config.loop.recompute
    flow = group_flow(roles.fake_score, noisy, cond, level, context, recompute=recompute)
    return {"flow": flow_error(roles, roles.fake_score, flow, noise - clean, level)}


def student_loss(config: DmdConfig, roles: DmdRoles, batch: Batch, rng: torch.Generator) -> dict[str, Tensor]:
    """Return the student's terms: guidance, matching, pixels, and rewards as losses."""
    high = batch[1]
    cond, context = tv2v.conditions(roles, batch, config.condition_noise, rng, with_text=config.with_text)
    clean = roles.one_step(cond, context, rng).float()
    terms = _distribution_terms(config, roles, clean, cond, context, rng) if config.by_scores else {}
    if config.latents:
        with torch.no_grad():
            away = clean - roles.latents_of(high)
        terms["latents"] = config.latents * (channel_weight(roles).to(away) * away.square()).mean()
    frames, truth = _decoded(config, roles, clean, high, rng)
    pixels = picture_terms(frames, truth, config.terms)
    terms["regression"] = config.regression * torch.stack(list(pixels.values())).sum()
    for name, score in reward_of(frames, truth, config.rewards).items():
        terms[f"reward_{name}"] = -score
    if config.adversarial:
        false, true = roles.critic(reversed_gradient(frames)), roles.critic(truth)
        terms["adversarial"] = config.adversarial * relativistic_loss(false, true)
    return terms


def _decoded(
    config: DmdConfig, roles: DmdRoles, clean: Tensor, high: Tensor, rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return the student's frames and the true frames, cropped to one part of the
    picture."""
    part = clean
    if config.decoded is not None:
        rows, columns = (min(most, side) for most, side in zip(config.decoded, clean.shape[3:], strict=True))
        top, left = (
            int(torch.randint(whole - size + 1, (1,), generator=rng))
            for whole, size in zip(clean.shape[3:], (rows, columns), strict=True)
        )
        part = clean[..., top : top + rows, left : left + columns]
        cell = 1 if high.shape[1] == clean.shape[1] else LATENT_PX
        high = high[..., cell * top : cell * (top + rows), cell * left : cell * (left + columns)]
    with torch.no_grad():
        truth = roles.frames_of(high)
    return roles.decode(part), truth


def _distribution_terms(
    config: DmdConfig, roles: DmdRoles, clean: Tensor, cond: Tensor, context: Tensor | None, rng: torch.Generator
) -> dict[str, Tensor]:
    """Return the distribution-matching terms of the student's result at a random level."""
    with torch.no_grad():
        noise = normal(clean, rng)
        level = draw_levels(len(clean), config.shift, rng, low=config.levels[0], high=config.levels[1])
        noisy = noised(clean, noise, level)

        def predict(score: SrDit, words: Tensor | None) -> Tensor:
            return clean_of(noisy, group_flow(score, noisy, cond, level, words).float(), level)

        real, fake = predict(roles.real_score, context), predict(roles.fake_score, context)
        unworded = None
        if config.guidance and context is not None:
            unworded = predict(roles.real_score, torch.zeros_like(context))
    return distribution_terms(clean, real, fake, unworded, matching=config.matching, guidance=config.guidance)


def learners(config: DmdConfig) -> tuple[Learner, ...]:
    """Return critic and student; the critic learns in every step. Without scores, the
    student is the only learner and also learns in every step."""
    student = Learner(
        name="student",
        roles=(*NETWORKS, "critic") if config.adversarial else NETWORKS,
        loss=partial(student_loss, config),
        betas=config.betas,
        weight_decay=config.weight_decay,
    )
    if config.orthogonal:
        student = replace(student, is_kernel=is_kernel)
    if not config.by_scores:
        return (student,)
    critic = Learner(
        name="critic",
        roles=("fake_score",),
        loss=partial(critic_loss, config),
        rate=config.critic_rate,
        betas=config.critic_betas,
        weight_decay=config.weight_decay,
    )
    return (critic, replace(student, every=config.critic_updates))


def configure(*, steps: int, seed: int, toy: bool = False, profile: Profile = LITE) -> DmdConfig:
    """Return the settings for a model's sizes, or for a toy model; ``steps`` counts
    updates of the critic."""
    base = tv2v.configure(steps=steps, seed=seed, toy=toy, profile=profile)
    loop = replace(base.loop, rate=1.5e-3 if toy else 1e-4, warmup=10)
    config = DmdConfig(loop=loop, **tv2v.settings(base))

    if base.comes_encoded:
        # No momentum for the student, so that the critic can keep up with it (as in
        # DMD2).
        return replace(
            config,
            loop=large_loop(steps, seed, rate=2e-6),
            betas=(0.0, 0.999),
            critic_betas=(0.0, 0.999),
            critic_rate=0.2,
            decoded=(48, 48),
        )

    if toy:
        return replace(config, critic_updates=2, matching=0.05, regression=3.0)
    if config.with_text:
        loop = replace(loop, rate=2e-4, kernel_rate=2e-3, batch=1)
        rewards = (("lpips", 0.5), ("texture", 0.1), ("temporal", 0.05))
        return replace(config, loop=loop, critic_updates=3, latents=0.1, decoded=(32, 32), rewards=rewards)
    return config


def start(config: DmdConfig, materials: list[Material], weights: dict[str, Tensor] | None) -> DmdRoles:
    """Return the roles before the first step: student and both scores are the transformer of ``weights``, or the scores
    the teacher of ``merge``.

    Raises UsageError without weights, WeightsError where they do not fit.
    """
    with seeded(config):
        roles = DmdRoles(config)
    given = of_scales(weights or {}, config.scales)
    given = {name: value for name, value in given.items() if name.split(".")[0] not in HELPERS}
    roles.load(given or None, fresh=HELPERS, hint="average.safetensors of a run of `tv2v_flow_matching`")
    teacher = {name.split(".", 1)[1]: value for name, value in (weights or {}).items() if name.startswith(TEACHER)}
    try:
        roles.begin(teacher)
    except RuntimeError as error:
        raise WeightsError(f"the teacher does not fit {config.profile.name}: {error}") from error
    weigh_channels(config, roles)
    return roles


def merge(weights: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return the weights of several runs as one. If two have an SR transformer, the first is the teacher, from which
    both scores start, and the last the student."""
    transformers = [{k: v for k, v in each.items() if k.startswith("sr_dit.")} for each in weights]
    transformers = [each for each in transformers if each]
    merged: dict[str, Tensor] = {}
    for each in weights:
        merged |= each
    if len(transformers) > 1:
        merged |= {TEACHER + name.split(".", 1)[1]: value for name, value in transformers[0].items()}
    return merged


def clips(config: DmdConfig, roles: DmdRoles, batch: Batch, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return the student's decoded results, and the clips."""
    cond, context = tv2v.conditions(roles, batch, config.condition_noise, rng, with_text=config.with_text)
    return roles.decode(roles.one_step(cond, context, rng).float()), roles.frames_of(batch[1])


def pictures(config: DmdConfig, roles: DmdRoles, batch: Batch, rng: torch.Generator) -> Picture:
    """Show decoded upsampled latents, the student's and the real score's results, and the clips."""
    cond, context = tv2v.conditions(roles, batch, config.condition_noise, rng, with_text=config.with_text)
    one = roles.one_step(cond, context, rng)
    many = tv2v.sample(
        roles.real_score,
        normal(cond, rng),
        cond,
        context,
        steps=config.sample_steps,
        shift=config.shift,
        guidance=config.sample_guidance,
    )
    return tv2v.sheet_of(roles, batch, one, many)
