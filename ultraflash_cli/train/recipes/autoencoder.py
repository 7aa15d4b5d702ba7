"""Recipe ``autoencoder``: encoder and decoder of a latent space shared by all sizes,
trained on rendered scenes and other material."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ultraflash_cli.engine.profiles import LITE, Profile
from ultraflash_cli.engine.stages.encoder import EncoderConfig
from ultraflash_cli.errors import ConfigError
from ultraflash_cli.metrics.lpips import learned_distance, weights_path
from ultraflash_cli.train.components import start_from_components
from ultraflash_cli.train.data import Material, PairConfig, PairDataset, pair_batch
from ultraflash_cli.train.degradation import DegradationConfig
from ultraflash_cli.train.flows import normal, uniform
from ultraflash_cli.train.loop import Batch, Learner, LoopConfig, RecipeConfig
from ultraflash_cli.train.losses import PictureTerms, picture_terms, spread_term
from ultraflash_cli.train.recipe import seeded
from ultraflash_cli.train.roles import CascadeRoles
from ultraflash_cli.train.sheets import Picture, sheet

__all__ = [
    "NETWORKS",
    "AutoencoderConfig",
    "configure",
    "learners",
    "loss",
    "make",
    "pictures",
    "start",
]

NETWORKS = ("encoder", "decoder")
"""Roles that an export writes."""

TOY_SPACE = replace(
    LITE,
    encoder=EncoderConfig(
        width=32,
        blocks=1,
        patch=4,
        strides=(1, 1, 2),
        memory_init="replicate",
        negative_slope=0.1,
        linear_trunk=True,
    ),
    decoder=replace(
        LITE.base_decoder,
        stages=tuple(replace(stage, width=32, blocks=1) for stage in LITE.base_decoder.stages),
        out_width=32,
    ),
)
"""A small latent space for trial runs of a few minutes."""

START_SEED = 7
"""Seed of the clips from which a new autoencoder is initialised."""


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig(RecipeConfig):
    """Settings of the training data, the loss and the loop."""

    profile: Profile = LITE
    """Sizes of the networks, with one decoder for all sizes."""
    pairs: PairConfig = field(default_factory=PairConfig)
    """Sampling of clips; only their full size matters."""
    terms: PictureTerms = field(default_factory=PictureTerms)
    """Weights of the loss terms."""
    perception: float = 0.0
    """Weight of the learned distance (LPIPS, AlexNet) of one frame of each clip."""
    perceived_from: float = 0.6
    """Share of the steps after which that term is used."""
    spread: float = 0.001
    """Weight of the term that keeps the latents at mean 0 and variance 1."""
    latent_noise: float = 0.0
    """Largest share of noise that the decoder must tolerate: generated latents are never quite clean."""

    def __post_init__(self) -> None:
        if self.profile.decoder is None:
            raise ConfigError(f"{self.profile.name} has no latent decoder for every size")


def loss(config: AutoencoderConfig, roles: CascadeRoles, batch: Batch, rng: torch.Generator) -> dict[str, Tensor]:
    """Return the terms of D(E(x) + noise) against x, and the latents' spread while the encoder learns."""
    clips, done = batch
    latents = roles.encode(clips)
    share = uniform(len(latents), 0, config.latent_noise, rng).to(latents).view(-1, 1, 1, 1, 1)
    out = roles.decode_base(latents + share * normal(latents, rng))
    terms = picture_terms(out, clips, config.terms)
    if config.perception and done >= config.perceived_from:
        at = int(torch.randint(clips.shape[2], (), generator=rng))
        dtype = torch.bfloat16 if config.loop.precision == "bf16" else torch.float32
        shown, truth = out[:, :, at : at + 1], clips[:, :, at : at + 1]
        terms["perception"] = config.perception * learned_distance(shown, truth, dtype=dtype).mean()
    return terms | ({"spread": config.spread * spread_term(latents)} if latents.requires_grad else {})


def learners(config: AutoencoderConfig) -> tuple[Learner, ...]:
    """Return the single learner: the decoder, plus the encoder unless its latents come from an earlier run.

    Kernels of memory blocks use orthogonalised updates. The trunk starts as a linear code and uses small steps, because
    its handling of a picture's mean matters more than everything the blocks add.
    """
    return (Learner(name="student", loss=partial(loss, config), is_kernel=_in_block),)


def _in_block(name: str) -> bool:
    return re.search(r"\.conv\.\d\.", name) is not None


def configure(*, steps: int, seed: int, toy: bool = False) -> AutoencoderConfig:
    """Return the settings for the built-in model; with ``toy``, fewer and smaller
    clips."""
    shares = (("scene", 0.8), ("clip", 0.07), ("photo", 0.1), ("graphic", 0.01), ("screen", 0.02))
    pairs = PairConfig(
        frames=8, crop_px=32 if toy else 64, shares=shares, degradation=DegradationConfig(shares=(("clean", 1.0),))
    )
    loop = LoopConfig(
        steps=steps,
        seed=seed,
        rate=1e-3 if toy else 6e-5,
        last_rate=2e-6,
        kernel_rate=6e-3 if toy else 3e-3,
        warmup=10 if toy else 40,
        average=0.95 if toy else 0.997,
        batch=2 if toy else 4,
        save_every=50,
        log_every=25,
    )
    terms = PictureTerms(square=8.0, temporal=0.5)
    config = AutoencoderConfig(loop=loop, pairs=pairs, terms=terms, spread=0.003, latent_noise=0.04)
    return replace(config, profile=TOY_SPACE) if toy else replace(config, perception=0.1)


def start(config: AutoencoderConfig, materials: list[Material], weights: dict[str, Tensor] | None) -> CascadeRoles:
    """Return the roles before the first step; new ones are initialised with the
    principal components of the material. If both networks are given, both are trained
    further; an encoder alone is frozen, because other networks may depend on its
    latents. Raises WeightsError if they do not fit, UsageError if the weights of the
    learned distance are missing.
    """
    if config.perception:
        weights_path("alex")
    with seeded(config):
        roles = CascadeRoles(config.profile, NETWORKS)
    given = {name.split(".")[0] for name in weights or ()}
    if given.isdisjoint(NETWORKS):
        clips = PairDataset(materials, config.pairs, seed=START_SEED, scale_of={2: 1.0})
        start_from_components(roles, torch.cat([clips.batch(number, 8)[1] for number in range(12)]))
    roles.load(weights, fresh=NETWORKS)
    roles.learn(*(role for role in NETWORKS if role != "encoder" or given.isdisjoint(NETWORKS) or "decoder" in given))
    return roles


def make(config: AutoencoderConfig, data: Path | None) -> Callable[[int], Batch]:
    """Return the function that makes a batch from its number."""
    assert data is not None, "clips come from prepared material"
    return partial(_batch, data.absolute(), config)


def _batch(data: Path, config: AutoencoderConfig, number: int) -> tuple[Tensor, float]:
    """Return clips, and the share of the run completed by then."""
    loop = config.loop
    clips = pair_batch(data, config.pairs, loop.seed, ((2, 1.0),), loop.batch, number)[1]
    return clips, number / (loop.steps * loop.accumulate)


def pictures(config: AutoencoderConfig, roles: CascadeRoles, batch: Batch, rng: torch.Generator) -> Picture:
    """Show reconstructed and original clips."""
    return sheet(roles.decode_base(roles.encode(batch[0])), batch[0])
