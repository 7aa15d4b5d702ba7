"""Recipe ``sr_dit``: train the SR transformer by one-step regression, with gradients
through the frozen decoder."""

from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from ultraflash_cli.engine.profiles import LITE, Profile
from ultraflash_cli.train.data import Material, PairConfig
from ultraflash_cli.train.loop import Batch, Learner, LoopConfig
from ultraflash_cli.train.losses import PictureTerms, picture_terms
from ultraflash_cli.train.recipe import PairRecipeConfig, seeded
from ultraflash_cli.train.recipe import make_pairs as make
from ultraflash_cli.train.roles import TOY, CascadeRoles
from ultraflash_cli.train.sheets import Picture, sheet

__all__ = [
    "NETWORKS",
    "SrConfig",
    "configure",
    "learners",
    "loss",
    "make",
    "pictures",
    "refine",
    "start",
]

NETWORKS = ("sr_dit",)
"""The roles that the recipe trains."""


assert LITE.sr_dit is not None
WORDLESS = replace(LITE, sr_dit=replace(LITE.sr_dit, text_len=0, pool_text=False))
"""The built-in model with a transformer that is not conditioned on text."""


@dataclass(frozen=True, kw_only=True)
class SrConfig(PairRecipeConfig):
    """Settings of the training data, the loss and the loop."""

    profile: Profile = WORDLESS
    """Sizes of the networks; the transformer is unconditional and predicts a residual
    to its condition."""
    terms: PictureTerms = field(default_factory=lambda: PictureTerms(temporal=1.0, information=0.02, detail=0.03))
    """Weights of the loss terms."""


def refine(roles: CascadeRoles, latents_bcthw: Tensor, rng: torch.Generator) -> Tensor:
    """Refine latents group by group, with a KV cache of earlier groups as at
    inference."""
    clean: list[Tensor] = []
    caches, size = None, roles.profile.group_latents
    for group, start in enumerate(range(0, latents_bcthw.shape[2], size)):
        cond = latents_bcthw[:, :, start : start + size]
        noise = torch.randn(cond.shape, generator=rng).to(cond)
        result = roles.sr_dit.forward_group(noise, cond, caches=caches, first_frame=start, group=group)
        caches = result.caches
        clean.append(roles.sr_dit.clean(noise, cond, result.output_bcthw))
    return torch.cat(clean, dim=2)


def loss(config: SrConfig, roles: CascadeRoles, batch: Batch, rng: torch.Generator) -> dict[str, Tensor]:
    """Return the weighted loss terms between decoded refined latents and the clip."""
    low, high, scale = batch
    with torch.no_grad():
        cond = roles.upsample(roles.encode(low), scale)
    return picture_terms(roles.decode(refine(roles, cond, rng)), high, config.terms)


def learners(config: SrConfig) -> tuple[Learner, ...]:
    """Return the single learner, the transformer."""
    return (Learner(roles=NETWORKS, loss=partial(loss, config)),)


def configure(*, steps: int, seed: int, toy: bool = False) -> SrConfig:
    """Return the settings for the built-in model's sizes, two groups per clip, or for a
    toy model."""
    loop = LoopConfig(steps=steps, seed=seed, rate=3e-4, warmup=20, batch=2, average=0.985, save_every=65)
    config = SrConfig(loop=loop, pairs=PairConfig(frames=16, crop_px=64))
    if not toy:
        return config
    assert TOY.sr_dit is not None
    profile = replace(TOY, sr_dit=replace(TOY.sr_dit, prediction="residual", text_len=0))
    loop = replace(loop, rate=4e-3, warmup=10, average=0.95, save_every=50, log_every=10)
    return replace(config, loop=loop, profile=profile, pairs=PairConfig(frames=16, crop_px=32), scale_odds=((2, 1.0),))


def start(config: SrConfig, materials: list[Material], weights: dict[str, Tensor] | None) -> CascadeRoles:
    """Return the roles before the first step: a given encoder, upsamplers and decoder,
    and a transformer initialised to the identity.

    ``materials`` are ignored. Raises UsageError without weights, WeightsError where they do not fit.
    """
    with seeded(config):
        roles = CascadeRoles(config.profile, ("encoder", "upsamplers", "sr_dit", "decoder"), scales=config.scales)
    roles.load(weights, fresh=NETWORKS, hint="average.safetensors of a run of `latent_upsampler`")
    roles.learn(*NETWORKS)
    return roles


def pictures(config: SrConfig, roles: CascadeRoles, batch: Batch, rng: torch.Generator) -> Picture:
    """Show decoded upsampled latents, decoded refined ones, and the clips."""
    low, high, scale = batch
    upsampled = roles.upsample(roles.encode(low), scale)
    return sheet(roles.decode(upsampled), roles.decode(refine(roles, upsampled, rng)), high)
