"""Recipe ``latent_upsampler``: train U(E(x_lr)) by regression onto E(x_hr) with a
frozen encoder."""

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ultraflash_cli.engine.profiles import LITE, Profile
from ultraflash_cli.errors import ConfigError
from ultraflash_cli.train.data import Material, PairConfig
from ultraflash_cli.train.large import comes_encoded
from ultraflash_cli.train.loop import Batch, Learner, LoopConfig
from ultraflash_cli.train.recipe import PairRecipeConfig, seeded
from ultraflash_cli.train.recipe import make_pairs as make
from ultraflash_cli.train.roles import TOY, TOY_WORDS, CascadeRoles
from ultraflash_cli.train.sheets import Picture, sheet

__all__ = [
    "NETWORKS",
    "UpsamplerRecipeConfig",
    "clips",
    "configure",
    "learners",
    "loss",
    "make",
    "pictures",
    "start",
]

NETWORKS = ("upsamplers",)
"""Roles that an export writes."""


@dataclass(frozen=True, kw_only=True)
class UpsamplerRecipeConfig(PairRecipeConfig):
    """Settings of the training data and the loop."""

    profile: Profile = LITE
    """The networks' sizes."""
    temporal: float = 0.5
    """Weight of the error of the latents' differences in time."""

    def __post_init__(self) -> None:
        if self.profile.upsampler is None:
            raise ConfigError(f"{self.profile.name} has no latent upsampler to train")


def shrink(high_bcthw: Tensor, scale: int) -> Tensor:
    """Return clips downscaled by an antialiased bilinear filter."""
    frames = high_bcthw.transpose(1, 2).flatten(0, 1)
    size = frames.shape[2] // scale, frames.shape[3] // scale
    small = F.interpolate(frames, size, mode="bilinear", antialias=True, align_corners=False)
    return small.unflatten(0, (high_bcthw.shape[0], -1)).transpose(1, 2)


def loss(config: UpsamplerRecipeConfig, roles: CascadeRoles, batch: Batch, rng: torch.Generator) -> dict[str, Tensor]:
    """Return the L1 errors of upsampled latents and of their differences in time."""
    _, high, scale = batch
    with torch.no_grad():
        target, low = roles.encode(high), roles.encode(shrink(high, scale))
    out = roles.upsample(low, scale)
    terms = {"latents": (out - target).abs().mean()}
    if config.temporal and target.shape[2] > 1:
        terms["temporal"] = config.temporal * (out.diff(dim=2) - target.diff(dim=2)).abs().mean()
    return terms


def learners(config: UpsamplerRecipeConfig) -> tuple[Learner, ...]:
    """Return the single learner: the upsamplers of all scales."""
    return (Learner(name="student", roles=NETWORKS, loss=partial(loss, config)),)


def configure(*, steps: int, seed: int, toy: bool = False, profile: Profile = LITE) -> UpsamplerRecipeConfig:
    """Return the settings for a built-in or the published model's upsamplers, or for a
    toy model."""
    if not toy and comes_encoded(profile):
        loop = LoopConfig(steps=steps, seed=seed, rate=3e-4, warmup=200, average=0.999, precision="bf16", frozen="bf16")
        return UpsamplerRecipeConfig(loop=loop, profile=profile, pairs=PairConfig(frames=16, crop_px=128))
    if not toy:
        loop = LoopConfig(steps=steps, seed=seed, rate=1e-3, warmup=50, average=0.998)
        return UpsamplerRecipeConfig(loop=loop, profile=profile, pairs=PairConfig(frames=8, crop_px=64))
    return UpsamplerRecipeConfig(
        loop=LoopConfig(steps=steps, seed=seed, rate=4e-3, warmup=10, average=0.97, save_every=50, log_every=10),
        profile=TOY,
        pairs=PairConfig(frames=8, crop_px=32),
        scale_odds=((2, 1.0),),
    )


def start(config: UpsamplerRecipeConfig, materials: list[Material], weights: dict[str, Tensor] | None) -> CascadeRoles:
    """Return the roles before the first step: a given encoder, new or given upsamplers,
    and a decoder for the sample pictures.

    Raises UsageError without weights, WeightsError where they do not fit.
    """
    with seeded(config):
        parts = ("encoder", "upsamplers", "decoder")
        roles = CascadeRoles(config.profile, parts, scales=config.scales, words=TOY_WORDS)
    roles.load(weights, fresh=NETWORKS, hint="average.safetensors of a run of `decoder` or `pixels`")
    roles.learn(*NETWORKS)
    return roles


def clips(
    config: UpsamplerRecipeConfig, roles: CascadeRoles, batch: Batch, rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return decoded upsampled latents, and the clips."""
    low, high, scale = batch
    return roles.decode(roles.upsample(roles.encode(low), scale)), high


def pictures(config: UpsamplerRecipeConfig, roles: CascadeRoles, batch: Batch, rng: torch.Generator) -> Picture:
    """Show the decoded upsampled latents, the decoded target latents, and the clips."""
    _, high, scale = batch
    low = shrink(high, scale)
    out = roles.upsample(roles.encode(low), scale)
    return sheet(roles.decode(out), roles.decode(roles.encode(high)), high)
