"""Recipe ``perceptual``: tune the pixel path for appearance, without changing its
results on clean clips.

A network trained on pixel error alone predicts the mean of all plausible originals of a
compressed frame, which is soft. This recipe adds a learned distance (LPIPS with a
randomly picked trunk) and a small adversarial critic of detail and its change between
frames. On clean clips the target is the output of the initial network.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ultraflash_cli.engine.layers.colours import match_colours
from ultraflash_cli.engine.layers.memory_block import to_channels_last
from ultraflash_cli.engine.profiles import LITE
from ultraflash_cli.engine.stages.pixel_path import PixelPath, PixelPathConfig
from ultraflash_cli.errors import UsageError
from ultraflash_cli.metrics.lpips import Trunk, weights_path
from ultraflash_cli.train.critic import Critic, relativistic_loss
from ultraflash_cli.train.data import Material, PairConfig
from ultraflash_cli.train.degradation import DegradationConfig
from ultraflash_cli.train.loop import Batch, Learner, LoopConfig, RecipeConfig
from ultraflash_cli.train.losses import charbonnier, shuffle_loss, temporal_loss, to_ycbcr, weave_loss
from ultraflash_cli.train.pairs import CutConfig, cut_batch
from ultraflash_cli.train.perception import viewed_distance
from ultraflash_cli.train.recipe import seeded
from ultraflash_cli.train.roles import load_roles
from ultraflash_cli.train.sheets import Picture, enlarged, sheet

__all__ = [
    "HELPERS",
    "NETWORKS",
    "PerceptualConfig",
    "PerceptualRoles",
    "configure",
    "kept_pairs",
    "learners",
    "make",
    "merge",
    "pictures",
    "start",
]

NETWORKS = ("pixels_detail",)
"""Roles that an export writes."""
HELPERS = ("faithful", "critic")
"""Roles needed only for training: the initial network, which is the target on clean
clips, and the critic."""


@dataclass(frozen=True, kw_only=True)
class PerceptualConfig(RecipeConfig):
    """Settings of the training data, the loss and the loop."""

    pixels: PixelPathConfig
    cuts: CutConfig = field(default_factory=lambda: CutConfig(clean_share=0.4))
    scale_odds: tuple[tuple[int, float], ...] = ((2, 0.65), (3, 0.35))
    """Sampling weight of each scale."""
    chroma: float = 4.0
    """Weight of the chroma error next to the luma error of 1."""
    temporal: float = 3.0
    """Weight of the error of frame differences."""
    likeness: float = 8.0
    """Weight of the learned distance, measured on one frame per clip."""
    view_px: int | None = 160
    """Side of the random views on which the distance is measured
    (``perception.random_views``); None measures whole frames."""
    zoom: tuple[float, float] = (-0.25, 0.75)
    """Range of the views' zoom, in octaves."""
    trunks: tuple[Trunk, ...] = ("alex", "vgg", "vgg")
    """Networks that measure the distance; one is picked at random for each batch."""
    adversarial: float = 0.06
    """Weight of the adversarial term; 0 disables the critic."""
    critic_every: int = 2
    """Steps between updates of the critic."""
    weave: float = 40.0
    """Weight of the error in detail that repeats with the period of the pixel
    shuffle."""
    shuffle: float = 3.0
    """Weight of the uneven spread of detail over the positions of the pixel shuffle."""
    keep: float = 300.0
    """Weight of all errors on clean clips, whose target is the output of the initial
    network."""


def kept_pairs(scale: int) -> PairConfig:
    """Return the sampling of pairs for this recipe: mostly compressed clips, some
    clean, generated and noisy ones."""
    return PairConfig(
        frames=8,
        crop_px=288 // scale,
        shares=(("clip", 0.5), ("photo", 0.4), ("screen", 0.1)),
        first_frame_share=0.1,
        degradation=DegradationConfig(
            shares=(("clean", 0.15), ("compressed", 0.45), ("generated", 0.3), ("noisy", 0.1)), crf=(20, 34)
        ),
    )


class PerceptualRoles(nn.Module):
    """The trained network, a copy of its initial state, and the critic."""

    def __init__(self, config: PerceptualConfig) -> None:
        super().__init__()
        self.pixels_detail = PixelPath(config.pixels)
        self.faithful = PixelPath(config.pixels).requires_grad_(False)
        self.critic = Critic()
        to_channels_last(self)


def critic_loss(
    config: PerceptualConfig, roles: PerceptualRoles, batch: Batch, rng: torch.Generator
) -> dict[str, Tensor]:
    """Return the critic's relativistic loss: real frames should score above the mean of
    generated ones, and vice versa."""
    low, high, scale, clean = batch
    chosen = _soft_ones(clean)
    if chosen is None:
        return {"critic": 0 * roles.critic(high[:1, :, :2]).mean()}
    with torch.no_grad():
        drawn, _ = roles.pixels_detail.upscale(low[chosen], None, scale=scale)
    false, true = roles.critic(drawn.detach()), roles.critic(high[chosen])
    return {"critic": relativistic_loss(false, true)}


def loss(config: PerceptualConfig, roles: PerceptualRoles, batch: Batch, rng: torch.Generator) -> dict[str, Tensor]:
    """Return the terms of one batch; perceptual terms are computed only on clips that
    are not clean."""
    low, high, scale, clean = batch
    out, _ = roles.pixels_detail.upscale(low, None, scale=scale)
    target = truth = _in_colours_of(high, low)
    weight = torch.where(clean, config.keep, 1.0).view(-1, 1, 1, 1, 1)
    if clean.any():
        with torch.no_grad():
            kept, _ = roles.faithful.upscale(low[clean], None, scale=scale)
        target = truth.clone()
        target[clean] = kept.float()

    # Weighting the frames weights the errors, as all but the smallest are linear.
    made, wanted = to_ycbcr(out * weight), to_ycbcr(target * weight)
    terms = {
        "luma": charbonnier(made[:, :1], wanted[:, :1]),
        "chroma": config.chroma * charbonnier(made[:, 1:], wanted[:, 1:]),
        "temporal": config.temporal * temporal_loss(made[:, :1], wanted[:, :1], 0.01),
    }
    chosen = _soft_ones(clean)
    if chosen is None:
        return terms

    drawn, true = out[chosen], truth[chosen]
    share = len(drawn) / len(out)
    dtype = torch.bfloat16 if config.loop.precision == "bf16" else torch.float32
    trunk, distance = viewed_distance(
        drawn, true, config.trunks, rng, side_px=config.view_px, zoom=config.zoom, dtype=dtype
    )
    terms[f"likeness_{trunk}"] = config.likeness * share * distance
    if config.weave:
        terms["weave"] = config.weave * share * weave_loss(drawn, true, 2 * scale)
    if config.shuffle:
        terms["shuffle"] = config.shuffle * share * shuffle_loss(drawn, true, 2 * scale)
    if config.adversarial:
        with torch.no_grad():
            score = roles.critic(true).mean()
        false = roles.critic(drawn)
        terms["adversarial"] = config.adversarial * share * F.softplus(score - false).mean()
    return terms


def _in_colours_of(high_bcthw: Tensor, low_bcthw: Tensor) -> Tensor:
    """Return clips with the low frequencies of their low-resolution versions, as at
    inference, so that colour drift is not learned."""
    frames = [clip.transpose(1, 2).flatten(0, 1) for clip in (high_bcthw, low_bcthw)]
    with torch.autocast(high_bcthw.device.type, enabled=False):
        matched = match_colours(*frames)
    return matched.unflatten(0, (len(high_bcthw), -1)).transpose(1, 2)


def _soft_ones(clean: Tensor) -> Tensor | None:
    """Return which clips are not clean; None if all are."""
    return None if bool(clean.all()) else ~clean


def learners(config: PerceptualConfig) -> tuple[Learner, ...]:
    """Return the critic, updated every few steps, and the network."""
    network = Learner(name="network", roles=NETWORKS, loss=partial(loss, config))
    if not config.adversarial:
        return (network,)
    critic = Learner(name="critic", roles=("critic",), loss=partial(critic_loss, config), every=config.critic_every)
    return (critic, network)


def make(config: PerceptualConfig, data: Path | None) -> Callable[[int], Batch]:
    """Return the function that makes a batch from its number."""
    assert data is not None, "pairs come from a folder of `make-pairs`"
    return partial(cut_batch, data.absolute(), config.cuts, config.loop.seed, config.scale_odds, config.loop.batch)


def pictures(config: PerceptualConfig, roles: PerceptualRoles, batch: Batch, rng: torch.Generator) -> Picture:
    """Show clips enlarged by plain resampling, by the initial network, by the current one, and the originals."""
    low, high, scale, _ = batch
    shown = (role.upscale(low, None, scale=scale)[0] for role in (roles.faithful, roles.pixels_detail))
    return sheet(enlarged(low, scale), *shown, high)


def configure(*, steps: int, seed: int, toy: bool = False) -> PerceptualConfig:
    """Return the settings that the built-in model was trained with; with ``toy``, those
    for a trial run of a few minutes."""
    assert LITE.pixels is not None, "the built-in model has a pixel path"
    config = PerceptualConfig(
        loop=LoopConfig(
            steps=steps, seed=seed, rate=2.5e-4, last_rate=1e-5, warmup=20, average=0.99, save_every=100, batch=2,
            log_every=20, precision="bf16",
        ),
        pixels=LITE.pixels,
    )  # fmt: skip
    if not toy:
        return config
    loop = replace(config.loop, warmup=5, average=0.9, save_every=20, log_every=10, precision="fp32")
    small = replace(config.pixels, width=16, blocks=2, residual_gain=0.3)
    return replace(config, loop=loop, pixels=small, cuts=CutConfig(frames=4, side_px=48), trunks=("alex",), view_px=40)


def merge(files: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Merge files, later ones winning; of shipped files, whose tensor names lack a
    role, the first is the faithful network and the others are detailed ones."""
    merged: dict[str, Tensor] = {}
    for number, tensors in enumerate(files):
        shipped = "embed.weight" in tensors
        role = "pixels" if number == 0 else "pixels_detail"
        merged |= {f"{role}.{name}": value for name, value in tensors.items()} if shipped else tensors
    return merged


def start(config: PerceptualConfig, materials: list[Material], weights: dict[str, Tensor] | None) -> PerceptualRoles:
    """Return the roles before the first step: ``weights`` are those of ``pixels``, or of a run of this recipe.

    Raises UsageError if these weights or those of the learned distance are missing,
    WeightsError if they do not fit.
    """
    for trunk in config.trunks:
        weights_path(trunk)
    if weights is None:
        raise UsageError("this recipe needs --start-from: average.safetensors of a run of `pixels`")
    with seeded(config):
        roles = PerceptualRoles(config)
    faithful = {name: value for name, value in weights.items() if name.startswith("pixels.")}
    given = {name.replace("pixels.", f"{role}.", 1): value for name, value in faithful.items() for role in ROLES_OF_P}
    load_roles(roles, given | {n: v for n, v in weights.items() if n not in faithful}, fresh=("critic",))
    return roles


ROLES_OF_P = ("pixels_detail", "faithful")
"""Roles initialised with the faithful pixel path."""
