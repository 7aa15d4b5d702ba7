"""Recipe ``autoencoder``: the small encoder and the decoder of the base size, which share a fresh latent space."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ultraflash_cli.engine.profiles import LITE, Profile
from ultraflash_cli.errors import ConfigError
from ultraflash_cli.train.components import start_from_components
from ultraflash_cli.train.data import Material, PairConfig, PairDataset, pair_batch
from ultraflash_cli.train.degradation import DegradationConfig
from ultraflash_cli.train.flows import normal, uniform
from ultraflash_cli.train.loop import Batch, Learner, LoopConfig
from ultraflash_cli.train.losses import PictureTerms, picture_terms, spread_term
from ultraflash_cli.train.recipes.decoder import is_kernel
from ultraflash_cli.train.roles import CascadeRoles
from ultraflash_cli.train.sheets import Picture, sheet

__all__ = ["NETWORKS", "AutoencoderConfig", "configure", "learners", "loss", "make", "pictures", "start"]

NETWORKS = ("encoder", "low_decoder")
"""What an export writes."""

START_SEED = 7
"""Seed of the clips whose blocks a fresh autoencoder starts from."""


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """What is learned from, how it is weighed, and what the loop needs."""

    loop: LoopConfig
    profile: Profile = LITE
    """The networks' sizes; with a decoder of the base size."""
    pairs: PairConfig = field(default_factory=PairConfig)
    """How clips are drawn; only their full size counts."""
    terms: PictureTerms = field(default_factory=lambda: PictureTerms(information=0.01, detail=0.02))
    """Weights of the loss terms."""
    spread: float = 0.001
    """Weight of what keeps the latents at mean 0 and variance 1."""
    latent_noise: float = 0.0
    """Largest share of noise that the decoder has to put up with: what a generator draws is never quite clean."""

    def __post_init__(self) -> None:
        if self.profile.low_decoder is None:
            raise ConfigError(f"{self.profile.name} has no decoder of the base size")


def loss(config: AutoencoderConfig, roles: CascadeRoles, batch: Batch, rng: torch.Generator) -> dict[str, Tensor]:
    """Return the terms of D(E(x) + noise) against x, and the latents' spread while the encoder learns."""
    clips = batch[1]
    latents = roles.encode(clips)
    share = uniform(len(latents), 0, config.latent_noise, rng).to(latents).view(-1, 1, 1, 1, 1)
    terms = picture_terms(roles.decode_base(latents + share * normal(latents, rng)), clips, config.terms)
    return terms | ({"spread": config.spread * spread_term(latents)} if latents.requires_grad else {})


def learners(config: AutoencoderConfig) -> tuple[Learner, ...]:
    """Return the one learner: the decoder, and the encoder where it is fresh."""
    return (Learner(name="student", loss=partial(loss, config), is_kernel=is_kernel),)


def configure(*, steps: int, seed: int, toy: bool = False) -> AutoencoderConfig:
    """Return the settings for the built-in model; ``toy`` cuts smaller and fewer clips."""
    shares = (("clip", 0.65), ("photo", 0.25), ("graphic", 0.04), ("screen", 0.06))
    pairs = PairConfig(
        frames=8, crop_px=32 if toy else 72, shares=shares, degradation=DegradationConfig(shares=(("clean", 1.0),))
    )
    loop = LoopConfig(
        steps=steps,
        seed=seed,
        rate=4e-4,
        kernel_rate=0.0015,
        warmup=30,
        average=0.995,
        batch=2 if toy else 4,
        save_every=50,
        log_every=25,
    )
    return AutoencoderConfig(loop=loop, pairs=pairs, latent_noise=0.04)


def start(config: AutoencoderConfig, materials: list[Material], weights: dict[str, Tensor] | None) -> CascadeRoles:
    """Return the roles before the first step: fresh ones hold the principal components of the material.

    An encoder in ``weights`` stays as it is, a decoder there goes on. Raises WeightsError where they do not fit.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.loop.seed)
        roles = CascadeRoles(config.profile, NETWORKS)
    given = {name.split(".")[0] for name in weights or ()}
    if given.isdisjoint(NETWORKS):
        clips = PairDataset(materials, config.pairs, seed=START_SEED, scale_of={2: 1.0})
        start_from_components(roles, torch.cat([clips.batch(number, 8)[1] for number in range(12)]))
    roles.load(weights, fresh=NETWORKS)
    roles.learn(*(role for role in NETWORKS if role != "encoder" or "encoder" not in given))
    return roles


def make(config: AutoencoderConfig, data: Path | None) -> Callable[[int], Batch]:
    """Return the function of the number that makes batches."""
    assert data is not None, "clips come from prepared material"
    return partial(pair_batch, data.absolute(), config.pairs, config.loop.seed, ((2, 1.0),), config.loop.batch)


def pictures(config: AutoencoderConfig, roles: CascadeRoles, batch: Batch, rng: torch.Generator) -> Picture:
    """Show clips as they come back, and as they are."""
    return sheet(roles.decode_base(roles.encode(batch[1])), batch[1])
