"""How much work a job is for the model, counted without its weights, and how long it takes
here, from a short look at a small picture."""

import functools
import time
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from ultraflash_cli.engine.cascade import Cascade
from ultraflash_cli.engine.counts import counting_flops
from ultraflash_cli.engine.pixel_refiner import PixelRefiner
from ultraflash_cli.engine.profiles import Profile
from ultraflash_cli.engine.sampling import Sampler
from ultraflash_cli.engine.schedule import LATENT_PX, GenerationPlan
from ultraflash_cli.engine.stages.decoder import Decoder
from ultraflash_cli.engine.stages.generator import Generator, GeneratorConfig
from ultraflash_cli.engine.stages.pixel_path import PixelPath
from ultraflash_cli.engine.text_to_video import TextToVideo

__all__ = ["flops_per_frame", "flops_per_second", "generation_flops"]

NetworkT = TypeVar("NetworkT", bound=nn.Module)

_META = torch.device("meta")
_STEADY_GROUPS = 3
"""From this group on every one is as much work as the next."""
_COUNTED_GROUPS = 2
_LOOK_STEP_PX = 64
"""Its sides are multiples of this, which every patch divides."""
_LOOK_SHRINK = 4
"""How much smaller the sides of the picture are on which a generator is timed."""


@functools.cache
def flops_per_frame(profile: Profile, height_px: int, width_px: int) -> float | None:
    """Count what the model does for a frame of an upscaling, of ``height_px`` x
    ``width_px`` as padded; a multiply-add is 2.

    ``profile`` is at the scale of the job. None where the work depends on what is seen:
    attention that chooses its blocks.
    """
    if profile.pixels is None:
        return None
    cascade = Cascade(profile, None, _pixel_refiner(profile))
    state = cascade.init_state(height=height_px, width=width_px, seed=0, first_frame=0, context=None)
    flops = frames = 0
    with torch.inference_mode(), counting_flops() as so_far:
        for group in range(_STEADY_GROUPS):
            before = so_far()
            frames = profile.alignment.group_frames(profile.group_latents, first=group == 0)
            picture = torch.empty((1, 3, frames, height_px, width_px), device=_META)
            state, _ = cascade.step(state, picture)
            flops = so_far() - before
    return flops / frames


@functools.cache
def generation_flops(profile: Profile, generator: GeneratorConfig, plan: GenerationPlan, scale: int) -> float | None:
    """Count the work of a clip, the reading of its words left out: the first two groups,
    the others by their lengths. None as in ``flops_per_frame``."""
    if scale > 1 and profile.at_scale(scale).refines_latents:
        return None
    profile = profile.at_scale(scale) if scale > 1 else profile
    height, width = profile.base_size
    counted = _counted_groups(_video(profile, generator, plan, scale), profile, height, width, groups=_COUNTED_GROUPS)
    later = sum(plan.groups[len(counted) :])
    return sum(counted) + counted[-1] * later / plan.groups[len(counted) - 1]


def flops_per_second(video: TextToVideo, context: Tensor, *, clock: Callable[[], float] = time.perf_counter) -> float:
    """Return how fast a cascade with its weights runs here, timed on the first group of a
    small picture, or of a whole one where the generator has positions for one size."""
    profile = video.profile
    height, width = profile.base_size
    if video.sampler.config.grid is None:
        height, width = (max(1, round(side / _LOOK_SHRINK / _LOOK_STEP_PX)) * _LOOK_STEP_PX for side in (height, width))
    state = video.init_state(height=height // LATENT_PX, width=width // LATENT_PX, context=context)
    # The first run finds kernels and memory, which on a CPU is little beside a whole picture.
    if video.sampler.config.grid is None or context.device.type != "cpu":
        first = video.init_state(height=height // LATENT_PX, width=width // LATENT_PX, context=context)
        video.step(first)
    started_s = clock()
    video.step(state)
    video.settle()
    took_s = clock() - started_s
    scale = video.refiner.scale if video.refiner is not None else 1
    bare = _video(profile, video.sampler.config, video.plan, scale)
    return _counted_groups(bare, profile, height, width, groups=1)[0] / took_s


def _counted_groups(video: TextToVideo, profile: Profile, height: int, width: int, *, groups: int) -> list[int]:
    """Count the first groups of a clip of so many pixels a side, one by one."""
    state = video.init_state(height=height // LATENT_PX, width=width // LATENT_PX, context=_context(profile))
    counted: list[int] = []
    with torch.inference_mode(), counting_flops() as so_far:
        for _ in range(min(groups, len(video.plan.groups))):
            before = so_far()
            state, _ = video.step(state)
            counted.append(so_far() - before)
    return counted


def _video(profile: Profile, generator: GeneratorConfig, plan: GenerationPlan, scale: int) -> TextToVideo:
    refiner = _pixel_refiner(profile) if scale > 1 else None
    return TextToVideo(
        profile,
        plan,
        Sampler(_bare(lambda: Generator(generator))),
        refiner=refiner,
        low_decoder=_bare(lambda: Decoder(profile.base_decoder)),
    )


def _pixel_refiner(profile: Profile) -> PixelRefiner:
    config = profile.pixels
    assert config is not None, f"{profile.name} has no pixel path"
    return PixelRefiner(profile, _bare(lambda: PixelPath(config)))


def _bare(build: Callable[[], NetworkT]) -> NetworkT:
    """Build a network that has shapes and no weights."""
    with _META:
        network = build()
    return network.to(torch.bfloat16).eval().requires_grad_(False)


def _context(profile: Profile) -> Tensor:
    config = profile.generator or profile.sr_dit
    assert config is not None, "a profile with words has a stage that reads them"
    shape = (1, config.text_len, config.text_dim)
    return torch.empty(shape, dtype=torch.bfloat16, device=_META)
