"""Recipe ``bottleneck``: train the middle of a new autoencoder on principal components
instead of pixels.

The outer layers, initialised as a linear map between pixels and the components of 8x8
pixels in 4 frames, are frozen. The recipe trains the last block of the encoder, which
compresses the components of a cell into a few latents, and the first stage of the
decoder, which predicts all components from these latents, their neighbours and the
past. Components are orthonormal, so that their error equals the pixel error; a step
costs a tenth of one through all layers.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from ultraflash_cli.engine.layers.memory_block import MemoryBlock
from ultraflash_cli.engine.profiles import Profile
from ultraflash_cli.train.data import Material, load_materials
from ultraflash_cli.train.flows import normal, uniform
from ultraflash_cli.train.loop import Batch, Learner, LoopConfig, RecipeConfig
from ultraflash_cli.train.losses import spread_term
from ultraflash_cli.train.recipes import autoencoder
from ultraflash_cli.train.roles import CascadeRoles
from ultraflash_cli.train.sheets import Picture, sheet

__all__ = [
    "NETWORKS",
    "BottleneckConfig",
    "component_gains",
    "configure",
    "learners",
    "loss",
    "make",
    "pictures",
    "start",
]

NETWORKS = autoencoder.NETWORKS
"""Roles that an export writes."""


@dataclass(frozen=True, kw_only=True)
class BottleneckConfig(RecipeConfig):
    """Settings of the training data, the loss and the loop."""

    profile: Profile
    """The networks' sizes."""
    base: autoencoder.AutoencoderConfig
    """Settings of the autoencoder to initialise, including the share of each kind of
    material."""
    latents: int = 3
    """Number of latent frames of a clip."""
    cells: int = 32
    """Side of a clip, in latents."""
    square: float = 8.0
    """Weight of the mean square error relative to that of its root in each cell."""
    spread: float = 0.0003
    """Weight of the term that keeps the latents at mean 0 and variance 1."""
    latent_noise: float = 0.04
    """Largest share of noise that the decoder must tolerate."""
    kinds: tuple[str, ...] = field(default=("scene", "clip", "screen"))
    """Kinds of material used; stills are left out, because nothing moves in them."""


def loss(config: BottleneckConfig, roles: CascadeRoles, batch: Batch, rng: torch.Generator) -> dict[str, Tensor]:
    """Return the component losses, normalised to pixel error, and the latent spread loss."""
    values, gain = batch
    latents = _squeeze(roles, values)
    share = uniform(len(latents), 0, config.latent_noise, rng).to(latents).view(-1, 1, 1, 1, 1)
    out = _guess(roles, latents + share * normal(latents, rng))[:, : values.shape[1]]
    pixels = 3 * 8 * 8 * 4
    squares = ((out.float() - values) / gain.view(1, -1, 1, 1, 1)).square().sum(1) / pixels
    return {
        "root": (squares + 1e-6).sqrt().mean(),
        "square": config.square * squares.mean(),
        "spread": config.spread * spread_term(latents),
    }


def _squeeze(roles: CascadeRoles, values_bcthw: Tensor) -> Tensor:
    """Return the latents of components."""
    return _run(list(roles.encoder.encoder.children())[-2:], values_bcthw)


def _guess(roles: CascadeRoles, latents_bcthw: Tensor) -> Tensor:
    """Return the components, and the remaining channels of the decoder's first
    stage."""
    blocks = roles.decoder.config.stages[0].blocks
    return _run(list(roles.decoder.decoder.children())[: 3 + blocks], latents_bcthw)


def _run(layers: list[nn.Module], x_bcthw: Tensor) -> Tensor:
    batch, device = len(x_bcthw), x_bcthw.device.type
    x = x_bcthw.transpose(1, 2).flatten(0, 1).contiguous(memory_format=torch.channels_last)
    if torch.is_autocast_enabled(device):
        x = x.to(torch.get_autocast_dtype(device))
    for layer in layers:
        x = layer(x, None, batch)[0] if isinstance(layer, MemoryBlock) else layer(x)
    return x.unflatten(0, (batch, -1)).transpose(1, 2)


def learners(config: BottleneckConfig) -> tuple[Learner, ...]:
    """Return the single learner; kernels of memory blocks use orthogonalised
    updates."""
    in_block = re.compile(r"\.conv\.\d\.")
    return (Learner(name="student", loss=partial(loss, config), is_kernel=partial(_matches, in_block)),)


def _matches(pattern: re.Pattern[str], name: str) -> bool:
    return pattern.search(name) is not None


def configure(*, steps: int, seed: int, toy: bool = False) -> BottleneckConfig:
    """Return the settings for the next built-in model, or for a toy model."""
    base = autoencoder.configure(steps=steps, seed=seed, toy=toy)
    loop = LoopConfig(
        steps=steps,
        seed=seed,
        rate=2e-3 if toy else 4e-4,
        last_rate=4e-6,
        kernel_rate=0.015 if toy else 0.004,
        warmup=10 if toy else 30,
        average=0.95 if toy else 0.995,
        batch=4,
        save_every=100,
        log_every=25,
    )
    return BottleneckConfig(loop=loop, profile=base.profile, base=base, cells=6 if toy else 32, latents=2 if toy else 3)


def start(config: BottleneckConfig, materials: list[Material], weights: dict[str, Tensor] | None) -> CascadeRoles:
    """Return the roles before the first step: principal components, or ``weights``."""
    roles = autoencoder.start(config.base, materials, weights)
    roles.requires_grad_(False)
    for network, layers in ((roles.encoder.encoder, slice(-2, None)), (roles.decoder.decoder, slice(0, None))):
        chosen = list(network.children())[layers]
        if network is roles.decoder.decoder:
            chosen = chosen[: 3 + roles.decoder.config.stages[0].blocks]
        for layer in chosen:
            layer.requires_grad_(True)
    return roles


def make(config: BottleneckConfig, data: Path | None) -> Callable[[int], Batch]:
    """Return the function that makes a batch from its number."""
    assert data is not None, "components come from prepared material"
    return partial(_batch, data.absolute(), config)


def _batch(data: Path, config: BottleneckConfig, number: int) -> tuple[Tensor, Tensor]:
    """Return components [B, C, T, h, w] as encoder channels, and the gains of these
    channels."""
    rng = np.random.default_rng((config.loop.seed, 5, number))
    materials, _, gain = _source(data, config)
    shares = [share if kind in materials else 0.0 for kind, share in config.base.pairs.shares]
    odds = np.array(shares) / sum(shares)
    clips: list[Tensor] = []
    for _ in range(config.loop.batch):
        kind = config.base.pairs.shares[int(rng.choice(len(odds), p=odds))][0]
        number = int(rng.integers(len(materials[kind])))
        corner = _corner(materials[kind][number], config, rng)
        clips.append(_components(data, config, kind, number, corner).float())
    return torch.stack(clips), gain


def _corner(material: Material, config: BottleneckConfig, rng: np.random.Generator) -> tuple[int, int, int]:
    """Return a random corner (t, y, x) at which a clip starts."""
    sides = 4 * config.latents, 8 * config.cells, 8 * config.cells
    sizes = material.frames_thwc.shape[:3]
    t, y, x = (int(rng.integers(size - side + 1)) for size, side in zip(sizes, sides, strict=True))
    return t, y, x


@lru_cache(maxsize=3000)
def _components(data: Path, config: BottleneckConfig, kind: str, number: int, corner: tuple[int, int, int]) -> Tensor:
    """Return the components of a window of a clip, in half precision. Material no
    larger than a window always yields the same one, hence the cache."""
    materials, roles, _ = _source(data, config)
    (t, y, x), side = corner, 8 * config.cells
    window = materials[kind][number].frames_thwc[t : t + 4 * config.latents, y : y + side, x : x + side]
    clip = torch.from_numpy(np.array(window)).permute(3, 0, 1, 2)[None].float() / 255
    trunk = nn.Sequential(*(each for each in list(roles.encoder.encoder.children())[:-2]))
    with torch.no_grad():
        x_nchw = nn.functional.pixel_unshuffle(clip[0].transpose(0, 1), roles.encoder.config.patch)
        x_nchw = x_nchw.contiguous(memory_format=torch.channels_last)
        for layer in trunk:
            if not isinstance(layer, MemoryBlock):  # memory blocks still add zero
                x_nchw = layer(x_nchw)
    return x_nchw.transpose(0, 1).half()


@lru_cache(maxsize=1)
def _source(data: Path, config: BottleneckConfig) -> tuple[dict[str, list[Material]], CascadeRoles, Tensor]:
    """Return the material by kind, the initial networks, and the gain of every
    component."""
    materials = load_materials(data)
    roles = autoencoder.start(config.base, materials, None)
    side = 8 * config.cells
    found: dict[str, list[Material]] = {}
    for material in materials:
        frames, height, width = material.frames_thwc.shape[:3]
        if material.kind in config.kinds and frames >= 4 * config.latents and min(height, width) >= side:
            found.setdefault(material.kind, []).append(material)
    return found, roles, component_gains(roles)


def component_gains(roles: CascadeRoles) -> Tensor:
    """Return the gain from each component to its channel: the norm of its row through
    the linear trunk."""
    trunk = [x for x in list(roles.encoder.encoder.children())[:-2] if not isinstance(x, MemoryBlock)]
    size, patch = 8, roles.encoder.config.patch
    basis = torch.eye(3 * 4 * size * size).view(-1, 4, 3, size, size)
    with torch.no_grad():
        zero = cast("nn.Conv2d", trunk[0]).bias
        assert zero is not None
        kept = zero.clone()
        zero.zero_()
        x = nn.functional.pixel_unshuffle(basis.flatten(0, 1), patch)
        for layer in trunk:
            x = layer(x)
        zero.copy_(kept)
    return x.flatten(1).square().sum(0).sqrt()


def pictures(config: BottleneckConfig, roles: CascadeRoles, batch: Batch, rng: torch.Generator) -> Picture:
    """Show reconstructed clips, and clips rebuilt from the true components."""
    values = batch[0]
    frames: list[Tensor] = []
    for channels in (_guess(roles, _squeeze(roles, values)), values):
        blocks = roles.decoder.config.stages[0].blocks
        wide = nn.functional.pad(channels, (0,) * 6 + (0, roles.decoder.config.stages[0].width - channels.shape[1]))
        frames.append(_run(list(roles.decoder.decoder.children())[3 + blocks :], wide))
    return sheet(*frames)
