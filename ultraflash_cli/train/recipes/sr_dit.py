"""Recipe ``sr_dit``: the SR transformer by one-step regression, its gradient coming through the decoder."""

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from ultraflash_cli.engine.profiles import LITE, LITE_SR_DIT, Profile
from ultraflash_cli.engine.stages.sr_dit import SrDit
from ultraflash_cli.errors import UsageError
from ultraflash_cli.train.data import Material
from ultraflash_cli.train.loop import Learner
from ultraflash_cli.train.recipes import pixels
from ultraflash_cli.train.recipes.pixels import PixelRoles, PixelsConfig, load_roles, loss, make, pictures

__all__ = ["NETWORKS", "SrRoles", "configure", "is_kernel", "learners", "loss", "make", "pictures", "start"]

NETWORKS = ("encoder", "upsamplers", "sr_dit", "decoder")
"""What the recipe trains, by the names of its roles."""


WITH_SR_DIT = replace(LITE, sr_dit=LITE_SR_DIT)
"""The built-in model with the transformer that it goes without."""


class SrRoles(PixelRoles):
    """The networks of ``pixels`` with the SR transformer between upsampler and decoder.

    It starts as the identity (its head is zero). ``frozen`` keeps the other networks as they are; otherwise they
    follow at the same learning rate. The loss is that of ``pixels``: what counts is what the decoder shows.
    """

    def __init__(self, profile: Profile = WITH_SR_DIT, *, frozen: bool = False) -> None:
        super().__init__(profile)
        if frozen:
            self.requires_grad_(False)
        assert profile.sr_dit is not None, "the recipe trains a profile with an SR transformer"
        self.group_latents = profile.group_latents
        self.sr_dit = SrDit(profile.sr_dit)

    def refine(self, latents_bcthw: Tensor, rng: torch.Generator) -> Tensor:
        """Refine latents group by group, keys and values of earlier groups remembered as in service."""
        clean: list[Tensor] = []
        caches = None
        for group, start in enumerate(range(0, latents_bcthw.shape[2], self.group_latents)):
            cond = latents_bcthw[:, :, start : start + self.group_latents]
            noise = torch.randn(cond.shape, generator=rng).to(cond)
            result = self.sr_dit.forward_group(noise, cond, caches=caches, first_frame=start, group=group)
            caches = result.caches
            clean.append(self.sr_dit.clean(noise, cond, result.output_bcthw))
        return torch.cat(clean, dim=2)


def configure(*, steps: int, seed: int, toy: bool = False) -> PixelsConfig:
    """Return the settings that the built-in model was trained with: two groups a clip, more weight on structure.

    ``toy`` cuts smaller clips.
    """
    base = pixels.configure(steps=steps, seed=seed)
    loop = replace(base.loop, rate=3e-4, kernel_rate=8e-4, warmup=20, batch=2, average=0.985, save_every=65)
    shares = (("clip", 0.47), ("photo", 0.39), ("graphic", 0.05), ("screen", 0.09))
    degradation = replace(base.pairs.degradation, clean_share=0.5)
    pairs = replace(base.pairs, frames=16, crop_px=64, shares=shares, degradation=degradation)
    config = replace(base, loop=loop, pairs=pairs, terms=replace(base.terms, information=0.02, detail=0.03))
    return pixels.toy_sized(config) if toy else config


def learners(config: PixelsConfig) -> tuple[Learner, ...]:
    """Return the one learner: all networks together."""
    return (Learner(loss=partial(loss, config), is_kernel=is_kernel),)


def start(config: PixelsConfig, materials: list[Material], weights: dict[str, Tensor] | None) -> SrRoles:
    """Return the networks of ``weights``, the averages of a run of ``pixels``, around a transformer that does nothing.

    ``materials`` are not looked at. Raises UsageError without weights, WeightsError where they do not fit.
    """
    if weights is None:
        raise UsageError("sr_dit goes on from the weights of pixels: --start-from RUN/average.safetensors.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.loop.seed)
        roles = SrRoles()
    load_roles(roles, weights, may_lack="sr_dit")
    return roles


def is_kernel(name: str) -> bool:
    """Tell whether a parameter takes orthogonalised steps: as in ``pixels``, and nothing of the transformer."""
    return pixels.is_kernel(name) and not name.startswith("sr_dit.")
