"""Recipe ``pixels``: train the pixel path by regression onto the high-resolution
clip."""

from dataclasses import dataclass, field, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ultraflash_cli.engine.layers.memory_block import to_channels_last
from ultraflash_cli.engine.profiles import LITE
from ultraflash_cli.engine.stages.pixel_path import PixelPath, PixelPathConfig
from ultraflash_cli.train.data import Material, PairConfig, PairDataset
from ultraflash_cli.train.loop import Batch, Learner, LoopConfig
from ultraflash_cli.train.losses import PictureTerms, picture_terms, to_ycbcr
from ultraflash_cli.train.recipe import PairRecipeConfig, seeded
from ultraflash_cli.train.recipe import make_pairs as make
from ultraflash_cli.train.roles import load_roles
from ultraflash_cli.train.sheets import Picture, enlarged, sheet

__all__ = [
    "NETWORKS",
    "PixelRoles",
    "PixelsConfig",
    "configure",
    "is_kernel",
    "learners",
    "loss",
    "make",
    "pictures",
    "start",
    "toy_sized",
]

NETWORKS = ("pixels",)
"""Roles that an export writes."""

WHITENING_FLOOR = 3e-5
"""Variance below which an axis of the patches counts as noise."""

WHITENING_SEED = 5
"""Seed of the clips from which the whitening filters are computed."""


@dataclass(frozen=True, kw_only=True)
class PixelsConfig(PairRecipeConfig):
    """Settings of the training data, the loss and the loop."""

    terms: PictureTerms = field(default_factory=PictureTerms)
    """Weights of the loss terms."""


class PixelRoles(nn.Module):
    """The pixel path, with a trunk shared by all scales."""

    def __init__(self, config: PixelPathConfig | None = None) -> None:
        super().__init__()
        own = config or LITE.pixels
        assert own is not None, "the built-in model has a pixel path"
        self.pixels = PixelPath(own)
        self._start_from_lanczos()
        to_channels_last(self)

    def _start_from_lanczos(self) -> None:
        """Initialise the residual to zero and every memory block close to the
        identity."""
        for name, parameter in self.named_parameters():
            if ".project." in name:
                nn.init.zeros_(parameter)
            elif name.endswith("conv.4.weight"):
                parameter.data.mul_(0.2)

    def whiten(self, low_bcthw: Tensor) -> None:
        """Initialise the first convolution with filters that decorrelate natural
        patches.

        Luma: the principal axes of the patches under the 3x3 kernel, each scaled to
        unit variance. Chroma: means of single cells. Pixels are so correlated that
        gradient descent from random filters would be very slow.
        """
        patch, weight = self.pixels.config.patch, self.pixels.embed.weight.data
        side = 3 * patch
        planes = to_ycbcr(low_bcthw - 0.5)[:, :1].transpose(1, 2).flatten(0, 1)
        patches = F.unfold(planes, side, stride=side - 1).transpose(1, 2).reshape(-1, side**2)
        variance, axes = torch.linalg.eigh(patches.T @ patches / len(patches))
        largest = axes.gather(0, axes.abs().argmax(dim=0, keepdim=True))
        axes = axes * largest.sign()  # the sign of an axis is arbitrary
        luma = min(side**2, weight.shape[0] * 3 // 4)
        filters = (axes / (variance + WHITENING_FLOOR).sqrt()).T.flip(0)[:luma].reshape(luma, 1, side, side)
        cells = F.pixel_unshuffle(filters, patch)
        to_y, *to_chroma = to_ycbcr(torch.eye(3).reshape(3, 3, 1, 1, 1)).reshape(3, 3).T

        weight[:] = 0
        for colour in range(3):
            weight[:luma, colour * patch**2 : (colour + 1) * patch**2] = cells * to_y[colour]

        places = [(1, 1), (0, 1), (2, 1), (1, 0), (1, 2), (0, 0)]
        for i in range(luma, weight.shape[0]):
            plane, (row, column) = to_chroma[(i - luma) % 2], places[(i - luma) // 2 % len(places)]
            for colour in range(3):
                weight[i, colour * patch**2 : (colour + 1) * patch**2, row, column] = plane[colour] * 8 / patch**2

        assert self.pixels.embed.bias is not None, "the first convolution has a bias"
        self.pixels.embed.bias.data.copy_(-0.5 * weight.sum((1, 2, 3)))

    def forward(self, low_bcthw: Tensor, scale: int) -> Tensor:
        """Upscale clips [B, 3, T, h, w] in the parallel form."""
        return self.pixels.upscale(low_bcthw, None, scale=scale)[0]


def loss(config: PixelsConfig, roles: nn.Module, batch: Batch, rng: torch.Generator) -> dict[str, Tensor]:
    """Return the weighted loss terms of one batch."""
    low, high, scale = batch
    return picture_terms(roles(low, scale), high, config.terms)


def learners(config: PixelsConfig) -> tuple[Learner, ...]:
    """Return the single learner."""
    return (Learner(loss=partial(loss, config), is_kernel=is_kernel),)


def pictures(config: PixelsConfig, roles: nn.Module, batch: Batch, rng: torch.Generator) -> Picture:
    """Show clips enlarged by plain resampling, by the networks, and the originals."""
    low, high, scale = batch
    return sheet(enlarged(low, scale), roles(low, scale), high)


def configure(*, steps: int, seed: int, toy: bool = False) -> PixelsConfig:
    """Return the settings that the built-in model was trained with; with ``toy``,
    smaller clips."""
    config = PixelsConfig(
        loop=LoopConfig(steps=steps, seed=seed, rate=1e-3, warmup=50, average=0.998, save_every=100, batch=3),
        pairs=PairConfig(frames=8, shares=(("clip", 0.45), ("photo", 0.39), ("graphic", 0.06), ("screen", 0.1))),
        terms=PictureTerms(temporal=1.0, temporal_knee=0.03, information=0.01, detail=0.02),
    )
    return toy_sized(config) if toy else config


def toy_sized(config: PixelsConfig) -> PixelsConfig:
    """Return a config for a trial run of a few minutes: smaller and fewer clips, and a
    faster EMA."""
    loop = replace(config.loop, batch=2, warmup=10, average=0.95, save_every=50, log_every=10)
    return replace(config, loop=loop, pairs=replace(config.pairs, crop_px=32))


def start(config: PixelsConfig, materials: list[Material], weights: dict[str, Tensor] | None) -> PixelRoles:
    """Return the network before the first step: loaded from ``weights``, or a new one
    with whitened first filters. Raises WeightsError if ``weights`` do not come from
    this recipe.
    """
    with seeded(config):
        roles = PixelRoles()
    if weights is not None:
        load_roles(roles, weights)
    else:
        pairs = PairConfig(shares=(("clip", 0.5), ("photo", 0.5)), crop_px=96)
        dataset = PairDataset(materials, pairs, seed=WHITENING_SEED, scale_of={2: 1.0})
        roles.whiten(torch.cat([dataset.batch(number, 4)[0] for number in range(6)]))
    return roles


def is_kernel(name: str) -> bool:
    """Return whether a parameter uses orthogonalised updates, as all kernels but the
    first and last do."""
    return ".project." not in name and ".embed." not in name
