"""Recipe ``tv2v_flow_matching``: train a text-to-video transformer to refine upsampled
latents in many steps."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ultraflash_cli.engine.profiles import LITE, Profile
from ultraflash_cli.engine.stages.prompt_encoder import PromptEncoderConfig
from ultraflash_cli.engine.stages.sr_dit import SrDit
from ultraflash_cli.errors import ConfigError
from ultraflash_cli.train.data import Material, PairConfig, captioned_batch
from ultraflash_cli.train.encoded import encoded_batch, holds_encoded
from ultraflash_cli.train.flows import clean_of, draw_levels, group_flow, noised, normal, uniform
from ultraflash_cli.train.large import comes_encoded, large_loop, window_of
from ultraflash_cli.train.loop import Batch, Learner, LoopConfig
from ultraflash_cli.train.recipe import PairRecipeConfig, seeded
from ultraflash_cli.train.roles import CHANNEL_WEIGHT, TOY, TOY_WORDS, CascadeRoles, dense, pixel_gain
from ultraflash_cli.train.scene_pairs import SceneWindow, holds_scene_pairs, scene_pair_batch
from ultraflash_cli.train.sheets import Picture, sheet

__all__ = [
    "NETWORKS",
    "Tv2vConfig",
    "channel_weight",
    "clips",
    "condition",
    "configure",
    "flow_error",
    "is_kernel",
    "learners",
    "loss",
    "make",
    "of_scales",
    "pictures",
    "sample",
    "settings",
    "start",
    "weigh_channels",
    "widened",
]

NETWORKS = ("sr_dit",)
"""Roles that an export writes."""


@dataclass(frozen=True, kw_only=True)
class Tv2vConfig(PairRecipeConfig):
    """Settings of the training data, the noise sampling and the loop."""

    profile: Profile
    """Sizes of the networks; the SR transformer is made dense for this recipe."""
    words: PromptEncoderConfig = TOY_WORDS
    """The prompt encoder of a transformer with a text path."""
    window: SceneWindow = field(default_factory=SceneWindow)
    """Window cut from rendered scenes, if the data are scenes at two sizes."""
    condition_noise: tuple[float, float] = (0.1, 0.3)
    """Range of sigma, the share of noise in the condition."""
    pixel_power: float = 0.0
    """Exponent of the latent channel weights, see ``GeneratorRecipeConfig``."""
    orthogonal: bool = False
    """Whether the transformer block matrices use orthogonalised updates."""
    shift: float = 5.0
    """Shift of the noise levels towards pure noise; 1 is none."""
    text_drop: float = 0.1
    """Fraction of clips whose caption is dropped."""
    memory: int = 2**15
    """Temporal blocks of earlier groups in the dense transformer's KV cache."""
    betas: tuple[float, float] = (0.9, 0.99)
    """AdamW's decays."""
    weight_decay: float = 0.0
    """AdamW's weight decay."""
    sample_steps: int = 8
    """Sampling steps of the sample pictures."""
    sample_guidance: float = 1.0
    """Guidance strength of the samples, see ``sample``."""

    def __post_init__(self) -> None:
        if self.profile.sr_dit is None:
            raise ConfigError(f"{self.profile.name} has no SR transformer to train")
        low, high = self.condition_noise
        if not 0 <= low <= high < 1:
            raise ConfigError(f"condition_noise must be a range within 0..1, got {self.condition_noise}")

    @property
    def dense_profile(self) -> Profile:
        """The profile with an SR transformer that attends to every block that causality
        allows."""
        assert self.profile.sr_dit is not None
        return replace(self.profile, sr_dit=dense(self.profile.sr_dit, memory=self.memory))

    @property
    def with_text(self) -> bool:
        """Whether the transformer has a text path."""
        return self.profile.sr_dit is not None and self.profile.sr_dit.text_len > 0

    @property
    def comes_encoded(self) -> bool:
        """Whether clips and captions are read as latents and embeddings (`train
        encode`), as is necessary with a text encoder of billions of weights."""
        return comes_encoded(self.profile)

    @property
    def parts(self) -> tuple[str, ...]:
        """Roles needed by the cascade."""
        if self.comes_encoded:
            return ("upsamplers", "decoder", "sr_dit")
        parts = ("encoder", "upsamplers", "decoder", "sr_dit")
        return (*parts, "text_encoder") if self.with_text else parts


def condition(
    roles: CascadeRoles, low_bcthw: Tensor, scale: int, noise: tuple[float, float], rng: torch.Generator
) -> Tensor:
    """Return ``(1 - sigma) U(E(x_lr)) + sigma eps``, one sigma per clip, sampled uniformly from a range."""
    with torch.no_grad():
        upsampled = roles.upsample(roles.latents_of(low_bcthw), scale)
    sigma = uniform(len(upsampled), *noise, rng)
    return noised(upsampled, normal(upsampled, rng), sigma)


def conditions(
    roles: CascadeRoles, batch: Batch, noise: tuple[float, float], rng: torch.Generator, *, with_text: bool
) -> tuple[Tensor, Tensor | None]:
    """Return the condition of a batch and its captions' embeddings."""
    low, _, scale, captions = batch
    cond = condition(roles, low, scale, noise, rng)
    with torch.no_grad():
        return cond, roles.context(captions) if with_text else None


def loss(config: Tv2vConfig, roles: CascadeRoles, batch: Batch, rng: torch.Generator) -> dict[str, Tensor]:
    """Return the error of the flow at a random noise level; for a network that predicts
    a residual, the error of clean latents."""
    low, high, scale, captions = batch
    cond = condition(roles, low, scale, config.condition_noise, rng)
    with torch.no_grad():
        clean = roles.latents_of(high)
        keep = uniform(len(clean), 0, 1, rng) >= config.text_drop
        context = roles.context(captions, keep) if config.with_text else None
    noise, level = normal(clean, rng), draw_levels(len(clean), config.shift, rng)
    noisy, recompute = noised(clean, noise, level), config.loop.recompute
    flow = group_flow(roles.sr_dit, noisy, cond, level, context, recompute=recompute)
    return {"flow": flow_error(roles, roles.sr_dit, flow, noise - clean, level)}


def flow_error(roles: CascadeRoles, network: SrDit, flow: Tensor, wanted: Tensor, level_b: Tensor) -> Tensor:
    """Return the mean square error of a flow, scaled to that of clean latents if the
    network predicts a residual; see ``Tv2vConfig.pixel_power`` for the channel
    weights."""
    weight = level_b if network.config.prediction == "residual" else torch.ones_like(level_b)
    away = (weight.to(flow.device).view(-1, 1, 1, 1, 1) * (flow.float() - wanted)).square()
    return (channel_weight(roles).to(away) * away).mean()


@torch.no_grad()
def sample(
    network: SrDit,
    noise_bcthw: Tensor,
    cond_bcthw: Tensor,
    context: Tensor | None,
    *,
    steps: int,
    shift: float,
    guidance: float = 1.0,
) -> Tensor:
    """Return clean latents in ``steps`` Euler steps from noise; one step is ``eps - v(eps, y, c, 1)``.

    With ``guidance`` other than 1 every step extrapolates from the unconditional to the
    conditional prediction by that factor (classifier-free guidance).
    """
    levels = torch.linspace(1, 0, steps + 1)
    levels = shift * levels / (1 + (shift - 1) * levels)
    x = noise_bcthw
    for level, following in pairwise(levels):
        t = level.expand(len(x))
        flow = group_flow(network, x, cond_bcthw, t, context)
        if guidance != 1 and context is not None:
            unworded = group_flow(network, x, cond_bcthw, t, torch.zeros_like(context))
            flow = unworded + guidance * (flow - unworded)
        clean = clean_of(x, flow, t)
        x = clean if following == 0 else x + (following - level) * flow
    return x


def widened(generator: dict[str, Tensor], network: SrDit) -> dict[str, Tensor]:
    """Return a text-to-video transformer's weights for an SR transformer of the same
    sizes. The new half of the patch kernel, which reads the condition, is zero, so that
    the model initially ignores it. The output layers of a network that predicts a
    residual are zero as well. Tensors that only a generator has are dropped.
    """
    kernel = generator["patch_embedding.weight"]
    wide = generator | {"patch_embedding.weight": torch.cat([kernel, torch.zeros_like(kernel)], dim=1)}
    if network.config.prediction == "residual":
        last = [name for name in wide if name.startswith(("head.head.", "head.detail.2."))]
        wide |= {name: torch.zeros_like(wide[name]) for name in last}
    return {name: value for name, value in wide.items() if name in network.state_dict()}


def learners(config: Tv2vConfig) -> tuple[Learner, ...]:
    """Return the single learner, the transformer."""
    student = Learner(
        name="student",
        roles=NETWORKS,
        loss=partial(loss, config),
        betas=config.betas,
        weight_decay=config.weight_decay,
    )
    return (replace(student, is_kernel=is_kernel) if config.orthogonal else student,)


def is_kernel(name: str) -> bool:
    """Return whether a parameter uses orthogonalised updates, as the matrices of the
    transformer's blocks do."""
    return name.startswith("sr_dit.blocks.") and name.endswith(".weight")


def configure(*, steps: int, seed: int, toy: bool = False, profile: Profile = LITE) -> Tv2vConfig:
    """Return the settings for a model's sizes, or for a toy model."""
    if toy:
        return Tv2vConfig(
            loop=LoopConfig(steps=steps, seed=seed, rate=4e-3, warmup=10, average=0.97, save_every=50, log_every=10),
            profile=TOY,
            pairs=PairConfig(frames=16, crop_px=32),
            scale_odds=((2, 1.0),),
        )

    assert profile.sr_dit is not None, f"{profile.name} has an SR transformer"
    if comes_encoded(profile):
        return Tv2vConfig(
            loop=large_loop(steps, seed, rate=1e-5),
            profile=profile,
            window=window_of(profile, latents=12),
            scale_odds=((profile.scale, 1.0),),
            memory=6,
            weight_decay=0.01,
            sample_steps=20,
            sample_guidance=5.0,
        )

    loop = LoopConfig(steps=steps, seed=seed, rate=5e-4, warmup=100, average=0.998)
    pairs = PairConfig(frames=16, crop_px=64)
    if isinstance(profile.text_encoder, PromptEncoderConfig) and profile.sr_dit.text_len:
        # The noise in the condition matches inference; all levels are weighted like
        # errors of clean latents.
        return Tv2vConfig(
            loop=replace(loop, kernel_rate=6e-3, batch=2),
            profile=profile,
            words=profile.text_encoder,
            pairs=pairs,
            scale_odds=((2, 1.0),),
            condition_noise=(profile.condition_noise, profile.condition_noise),
            shift=3.0,
            pixel_power=0.5,
            orthogonal=True,
        )

    return Tv2vConfig(
        loop=loop, profile=replace(profile, sr_dit=replace(profile.sr_dit, prediction="flow")), pairs=pairs
    )


def settings(config: Tv2vConfig) -> dict[str, Any]:
    """Return the settings that later recipes inherit, by name: all but the loop."""
    return {each.name: getattr(config, each.name) for each in fields(Tv2vConfig) if each.name != "loop"}


def start(config: Tv2vConfig, materials: list[Material], weights: dict[str, Tensor] | None) -> CascadeRoles:
    """Return the roles before the first step.

    Encoder, upsamplers and decoder are given. The transformer comes from ``weights``,
    or is made by widening the generator there, or is new; unless it was given, the half
    of the patch kernel for the condition is zero. Raises UsageError without weights,
    WeightsError where they do not fit.
    """
    with seeded(config):
        roles = CascadeRoles(config.dense_profile, config.parts, scales=config.scales, words=config.words)
    weights = None if weights is None else of_scales(weights, config.scales)
    given = {name.split(".")[0] for name in weights or ()}
    if weights is not None and "generator" in given and "sr_dit" not in given:
        generator = {name.split(".", 1)[1]: v for name, v in weights.items() if name.startswith("generator.")}
        weights = weights | {f"sr_dit.{name}": value for name, value in widened(generator, roles.sr_dit).items()}
    elif "sr_dit" not in given:
        roles.sr_dit.patch_embedding.weight.data[:, config.profile.latent_stages[1].latent_channels :] = 0
    roles.load(weights, fresh=("sr_dit", "text_encoder"), hint="average.safetensors of a run of `latent_upsampler`")
    roles.learn(*NETWORKS)
    weigh_channels(config, roles)
    return roles


def of_scales(weights: dict[str, Tensor], scales: tuple[int, ...]) -> dict[str, Tensor]:
    """Return weights without the upsamplers of other scales."""
    wanted = tuple(f"upsamplers.{scale}." for scale in scales)
    return {name: x for name, x in weights.items() if not name.startswith("upsamplers.") or name.startswith(wanted)}


def weigh_channels(config: Tv2vConfig, roles: CascadeRoles) -> None:
    """Set the roles' weights of latent channels from the config."""
    if config.pixel_power:
        weight = pixel_gain(roles).pow(config.pixel_power)
        roles.register_buffer(CHANNEL_WEIGHT, weight / weight.mean(), persistent=False)


def channel_weight(roles: CascadeRoles) -> Tensor:
    """Return the weight of each latent channel's error: [C, 1, 1, 1], or a scalar 1."""
    weight = dict(roles.named_buffers(recurse=False)).get(CHANNEL_WEIGHT)
    return torch.ones(1) if weight is None else weight.view(-1, 1, 1, 1)


def make(config: Tv2vConfig, data: Path | None) -> Callable[[int], Batch]:
    """Return the function that makes a batch from its number."""
    assert data is not None, "pairs come from prepared material or encoded scenes"
    loop = config.loop
    if config.comes_encoded or holds_encoded(data):
        return partial(encoded_batch, data.absolute(), config.window, loop.seed, loop.batch)
    if holds_scene_pairs(data):
        return partial(scene_pair_batch, data.absolute(), config.window, loop.seed, loop.batch)
    return partial(captioned_batch, data.absolute(), config.pairs, loop.seed, config.scale_odds, loop.batch)


def clips(config: Tv2vConfig, roles: CascadeRoles, batch: Batch, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return decoded samples, and the clips."""
    cond, context = conditions(roles, batch, config.condition_noise, rng, with_text=config.with_text)
    made = sample(roles.sr_dit, normal(cond, rng), cond, context, steps=config.sample_steps, shift=config.shift)
    return roles.decode(made), roles.frames_of(batch[1])


def pictures(config: Tv2vConfig, roles: CascadeRoles, batch: Batch, rng: torch.Generator) -> Picture:
    """Show decoded upsampled latents, decoded samples, and the clips."""
    cond, context = conditions(roles, batch, config.condition_noise, rng, with_text=config.with_text)
    made = sample(
        roles.sr_dit,
        normal(cond, rng),
        cond,
        context,
        steps=config.sample_steps,
        shift=config.shift,
        guidance=config.sample_guidance,
    )
    return sheet_of(roles, batch, made)


def sheet_of(roles: CascadeRoles, batch: Batch, *results: Tensor) -> Picture:
    """Show decoded upsampled latents, decoded results, and the clips of a batch."""
    low, high, scale, _ = batch
    upsampled = roles.upsample(roles.latents_of(low), scale)
    return sheet(*(roles.decode(latents) for latents in (upsampled, *results)), roles.frames_of(high))
