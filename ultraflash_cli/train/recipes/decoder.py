"""Recipe ``decoder``: train the high-resolution decoder by regression onto pixels, from
latents of the frozen encoder.

With the condition ``lr`` it also reads the low-resolution frames, which `upscale` has at hand.
"""

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal, cast

import torch
from torch import Tensor, nn

from ultraflash_cli.engine.layers.memory_block import MemoryBlock
from ultraflash_cli.engine.profiles import LITE, Profile
from ultraflash_cli.errors import ConfigError
from ultraflash_cli.train.data import Material, PairConfig
from ultraflash_cli.train.flows import normal, uniform
from ultraflash_cli.train.large import comes_encoded
from ultraflash_cli.train.loop import Batch, Learner, LoopConfig
from ultraflash_cli.train.losses import PictureTerms, picture_terms, spread_term
from ultraflash_cli.train.recipe import PairRecipeConfig, seeded
from ultraflash_cli.train.recipe import make_pairs as make
from ultraflash_cli.train.roles import CONDITION, TOY, TOY_WORDS, CascadeRoles
from ultraflash_cli.train.sheets import Picture, sheet

__all__ = [
    "NETWORKS",
    "DecoderRecipeConfig",
    "clips",
    "configure",
    "is_kernel",
    "learners",
    "loss",
    "make",
    "pictures",
    "start",
]

NETWORKS = ("encoder", "decoder")
"""Roles that an export writes."""

LATENT_GAIN = 4.0
"""Factor from colours around grey to the latents of a new latent space, so that their
variance is about 1."""


@dataclass(frozen=True, kw_only=True)
class DecoderRecipeConfig(PairRecipeConfig):
    """Settings of the training data, the loss and the loop."""

    profile: Profile = LITE
    """The networks' sizes."""
    terms: PictureTerms = field(default_factory=lambda: PictureTerms(information=0.01, detail=0.02))
    """Weights of the loss terms; the structural ones replace a perceptual term."""
    spread: float = 0.001
    """Weight of the term that keeps the latents at mean 0 and variance 1 if the encoder
    is trained as well."""
    condition: Literal["none", "lr"] = "none"
    """``lr``: the decoder reads the low-resolution frames next to the latents."""
    without: float = 0.2
    """Fraction of batches decoded without these frames, as in `generate`."""
    latent_noise: float = 0.0
    """Largest share of noise in the latents: a transformer's latents are never exactly
    those of the encoder."""
    orthogonal: bool = True
    """Whether kernels of memory blocks use orthogonalised updates."""

    def __post_init__(self) -> None:
        if self.profile.decoder is None:
            raise ConfigError(f"{self.profile.name} has no high-resolution decoder to train")
        if not (0 <= self.without <= 1 and 0 <= self.latent_noise < 1):
            raise ConfigError(
                f"without must be within 0..1 and latent_noise below 1, got {self.without} and {self.latent_noise}"
            )

    @property
    def conditioned(self) -> Profile:
        """The profile, with a decoder that has the inputs of these settings."""
        upsampler, decoder = self.profile.latent_stages
        reads = replace(decoder, reads_low_frames=self.condition == "lr")
        return replace(self.profile, upsampler=upsampler, decoder=reads)


def loss(config: DecoderRecipeConfig, roles: CascadeRoles, batch: Batch, rng: torch.Generator) -> dict[str, Tensor]:
    """Return the loss terms between D(E(x)) and x, and the spread loss of the latents
    if the encoder is trained."""
    low, high, _ = batch
    latents = noisy = roles.encode(high)
    if config.latent_noise:
        share = uniform(len(latents), 0, config.latent_noise, rng).to(latents).view(-1, 1, 1, 1, 1)
        noisy = torch.lerp(latents, normal(latents, rng), share)
    reads = config.condition == "lr" and uniform(1, 0, 1, rng).item() >= config.without
    terms = picture_terms(roles.decode(noisy, low if reads else None), high, config.terms)
    if latents.requires_grad:
        terms["spread"] = config.spread * spread_term(latents)
    return terms


def learners(config: DecoderRecipeConfig) -> tuple[Learner, ...]:
    """Return the single learner: the decoder, plus the encoder if it is new."""
    student = Learner(name="student", loss=partial(loss, config))
    return (replace(student, is_kernel=is_kernel) if config.orthogonal else student,)


def is_kernel(name: str) -> bool:
    """Return whether a parameter uses orthogonalised updates, as the kernels of memory
    blocks do."""
    return ".conv." in name


def configure(*, steps: int, seed: int, toy: bool = False, profile: Profile = LITE) -> DecoderRecipeConfig:
    """Return the settings for a built-in or the published model's decoder, or for a toy
    model."""
    if not toy and comes_encoded(profile):
        # Continues from fully trained weights; only the additional input is new.
        loop = LoopConfig(
            steps=steps,
            seed=seed,
            rate=1e-4,
            last_rate=1e-6,
            warmup=100,
            clip=5.0,
            average=0.999,
            precision="bf16",
            frozen="bf16",
        )
        return DecoderRecipeConfig(
            loop=loop,
            profile=profile,
            pairs=PairConfig(frames=12, crop_px=128),
            scale_odds=((profile.scale, 1.0),),
            latent_noise=0.05,
            orthogonal=False,
        )

    if not toy:
        loop = LoopConfig(steps=steps, seed=seed, rate=1e-3, warmup=50, average=0.998)
        return DecoderRecipeConfig(loop=loop, profile=profile, pairs=PairConfig(frames=8))
    return DecoderRecipeConfig(
        loop=LoopConfig(
            steps=steps, seed=seed, rate=1e-3, kernel_rate=0.004, warmup=10, average=0.95, save_every=50, log_every=10
        ),
        profile=TOY,
        pairs=PairConfig(frames=8, crop_px=32),
        scale_odds=((2, 1.0),),
    )


def start(config: DecoderRecipeConfig, materials: list[Material], weights: dict[str, Tensor] | None) -> CascadeRoles:
    """Return the roles before the first step.

    An encoder in ``weights`` is frozen. Without one there is no latent space yet, and a
    new encoder is trained as well. Raises WeightsError if the weights do not fit.
    """
    with seeded(config):
        roles = CascadeRoles(config.conditioned, NETWORKS, scales=config.scales, words=TOY_WORDS)
    given = {name.split(".")[0] for name in weights or ()}
    if not given.issuperset(NETWORKS):
        _carry_colours(roles)
    if weights is not None and "decoder" in given:
        fresh = {name: value for name, value in roles.state_dict().items() if name.startswith(CONDITION)}
        weights = fresh | weights  # a decoder without this input starts unchanged
    fresh_ones = () if comes_encoded(config.profile) else NETWORKS
    roles.load(weights, fresh=fresh_ones, hint="encoder=FILE and decoder=FILE, or a run with an encoder")
    roles.learn("decoder")
    if "encoder" not in given and not comes_encoded(config.profile):
        roles.learn("encoder")
    return roles


@torch.no_grad()
def _carry_colours(roles: CascadeRoles) -> None:
    """Initialise an autoencoder of coarse colours: three channels pass straight
    through, the others are random.

    A deep network with a narrow bottleneck and no normalisation would otherwise learn
    very late to transmit colours.
    """
    for path in (roles.encoder.encoder, roles.decoder.decoder):
        layers = [layer for layer in path if not isinstance(layer, MemoryBlock)]
        convolutions = [m for layer in layers for m in layer.modules() if isinstance(m, nn.Conv2d)]
        for layer in convolutions:
            first, last = layer is convolutions[0], layer is convolutions[-1]
            cells = roles.encoder.config.patch**2 if first and path is roles.encoder.encoder else 1
            _pass_on(layer, cells)
            if path is roles.encoder.encoder and last:
                _scale(layer, LATENT_GAIN, -0.5 * LATENT_GAIN)
            if path is roles.decoder.decoder and first:
                _scale(layer, 1 / LATENT_GAIN, 0.5)
        for block in path:
            if isinstance(block, MemoryBlock):
                quiet = cast("nn.Conv2d", block.conv[4])
                quiet.weight *= 0.2
                quiet.weight[:3] = 0
                cast("Tensor", quiet.bias)[:3] = 0


def _pass_on(layer: nn.Conv2d, cells: int) -> None:
    """Make a layer pass the first three channels of every frame through, each the mean
    of ``cells`` inputs. A layer that joins frames passes on their mean; one that splits
    a frame copies it.
    """
    kernel, middle = layer.weight, layer.kernel_size[0] // 2
    outs, ins = kernel.shape[:2]
    joined, made = (ins // outs, 1) if ins % outs == 0 and layer.kernel_size == (1, 1) else (1, 1)
    if layer.kernel_size == (1, 1) and outs % ins == 0:
        joined, made = 1, outs // ins
    for frame in range(made):
        start = frame * (outs // made)
        kernel[start : start + 3] = 0
        for colour in range(3):
            for source in range(joined):
                at = source * (ins // joined) + colour * cells
                kernel[start + colour, at : at + cells, middle, middle] = 1 / (joined * cells)
    if layer.bias is not None:
        layer.bias[:3] = 0


def _scale(layer: nn.Conv2d, gain: float, shift: float) -> None:
    layer.weight[:3] *= gain
    assert layer.bias is not None
    layer.bias[:3] = shift


def clips(
    config: DecoderRecipeConfig, roles: CascadeRoles, batch: Batch, rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return reconstructed and original clips."""
    low, high, _ = batch
    return roles.decode(roles.encode(high), low if config.condition == "lr" else None), high


def pictures(config: DecoderRecipeConfig, roles: CascadeRoles, batch: Batch, rng: torch.Generator) -> Picture:
    """Show reconstructed and original clips."""
    return sheet(*clips(config, roles, batch, rng))
