"""Work of a job, counted without weights, and the speed of the model here, measured
briefly on a small picture."""

import functools
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from ultraflash_cli.engine.cascade import Cascade
from ultraflash_cli.engine.clock import wait_for
from ultraflash_cli.engine.counts import counting_flops
from ultraflash_cli.engine.footprint.networks import parameters
from ultraflash_cli.engine.layers.context import TYPICAL_TOKENS
from ultraflash_cli.engine.pixel_refiner import PixelRefiner
from ultraflash_cli.engine.profiles import Profile
from ultraflash_cli.engine.refiner import Refiner
from ultraflash_cli.engine.sampling import GeneratorInputs, Sampler
from ultraflash_cli.engine.schedule import LATENT_PX, GenerationPlan
from ultraflash_cli.engine.stages.decoder import Decoder
from ultraflash_cli.engine.stages.generator import Generator as Network
from ultraflash_cli.engine.stages.generator import GeneratorConfig
from ultraflash_cli.engine.stages.latent_upsampler import LatentUpsampler
from ultraflash_cli.engine.stages.pixel_path import PixelPath
from ultraflash_cli.engine.stages.sr_dit import SrDit
from ultraflash_cli.engine.text_to_video import TextToVideo, TextToVideoState

__all__ = ["GenerationRates", "GenerationWork", "flops_per_frame", "generation_rates", "generation_work"]

NetworkT = TypeVar("NetworkT", bound=nn.Module)

_META = torch.device("meta")
_STEADY_GROUPS = 3
"""Number of groups after which all groups are equal work."""
_COUNTED_GROUPS = 2
_LOOKED_AT = 100_000_000
"""Maximum parameters of a generator that is timed together with its refiner."""
_LOOK_STEP_PX = 64
"""Sides of the small picture are multiples of this, which every patch size divides."""
_LOOK_SHRINK = 4
"""Factor by which the sides of the picture for timing a cascade are smaller."""


class GenerationWork(NamedTuple):
    """Operations of a clip without text encoding; a multiply-add is 2."""

    generator: float
    frames: float
    """Operations of decoding and enlarging frames."""

    @property
    def total(self) -> float:
        """Total operations."""
        return self.generator + self.frames


class GenerationRates(NamedTuple):
    """Operations of each kind per second on this machine."""

    generator: float
    frames: float
    beside: bool = False
    """Whether both kinds run at once, on two devices."""

    def seconds(self, work: GenerationWork) -> float:
        """Return the seconds that this work takes."""
        times = work.generator / self.generator, work.frames / self.frames
        return max(times) if self.beside else sum(times)


@functools.cache
def flops_per_frame(profile: Profile, height_px: int, width_px: int) -> float | None:
    """Count the model's operations per frame of an upscale, padded to ``height_px`` x
    ``width_px``; a multiply-add is 2. ``profile`` is at the scale of the job. None if
    the work depends on the content, as in attention that selects blocks.
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
def generation_work(
    profile: Profile, generator: GeneratorConfig, plan: GenerationPlan, scale: int, *, low_frames: bool
) -> GenerationWork | None:
    """Count the work of a clip: the first two groups directly, the others by their
    lengths. None for a large model that refines its clips, as measuring its speed would
    take long."""
    if scale > 1 and parameters(generator) > _LOOKED_AT:
        return None
    profile = profile.at_scale(scale) if scale > 1 else profile
    height, width = profile.base_size
    counted = _counted_groups(
        _video(profile, generator, plan, scale, low_frames=low_frames), height, width, groups=_COUNTED_GROUPS
    )
    later = sum(plan.groups[len(counted) :]) / plan.groups[len(counted) - 1]
    generated, made = ([work[kind] for work in counted] for kind in (0, 1))
    return GenerationWork(*(sum(kind) + kind[-1] * later for kind in (generated, made)))


def generation_rates(
    video: TextToVideo, context: Tensor, *, clock: Callable[[], float] = time.perf_counter
) -> GenerationRates:
    """Return the speed of a cascade here, timed on the first group of a small picture.
    A generator with position embeddings for one size is timed at that size: for one
    chunk on a CPU, where that takes seconds, with the rest timed on a small picture.
    With a second device each is timed alone.
    """
    profile, device = video.profile, context.device
    devices = {device} if video.bridge is None else {device, video.bridge.device}

    def now() -> float:
        for each in devices:
            wait_for(each)
        return clock()

    whole = profile.base_size
    small = tuple(max(1, round(side / _LOOK_SHRINK / _LOOK_STEP_PX)) * _LOOK_STEP_PX for side in whole)
    scale = video.refiner.scale if video.refiner is not None else 1
    bare = _video(profile, video.sampler.config, video.plan, scale, low_frames=video.low_decoder is not None)
    apart = video.bridge is not None
    if not apart and (video.sampler.config.grid is None or device.type != "cpu"):
        height, width = small if video.sampler.config.grid is None else whole
        (work,) = _counted_groups(bare, height, width, groups=1)
        states = [_state(video, height, width, context) for _ in range(2)]
        video.step(states[0])  # selects kernels and allocates memory
        started_s = now()
        video.step(states[1])
        video.settle()
        rate = work.total / (now() - started_s)
        return GenerationRates(rate, rate)

    with torch.inference_mode():
        state = _state(video, *whole, context)
        if apart:
            _generate_chunk(video, _state(video, *whole, context))  # selects kernels and allocates memory
        started_s = now()
        _generate_chunk(video, state)
        generated_s = now() - started_s
        _make_frames(video, state, *small)
        started_s = now()
        _make_frames(video, state, *small)
        made_s = now() - started_s

        nothing = _state(bare, *whole, _context(profile))
        with counting_flops() as so_far:
            _generate_chunk(bare, nothing)
            generated = so_far()
            _make_frames(bare, nothing, *small)
            made = so_far() - generated
    return GenerationRates(generated / generated_s, made / made_s, beside=apart)


def _generate_chunk(video: TextToVideo, state: TextToVideoState) -> None:
    """Generate the first chunk and discard it."""
    config, anchor = video.sampler.config, state.generator.anchor_bcthw
    batch, channels, _, height, width = anchor.shape
    length, draws = video.plan.chunks[0], len(config.steps) - 1
    noise = anchor.new_zeros((batch, channels, length, height, width))
    inputs = GeneratorInputs(noise, anchor.new_zeros((batch, draws, *noise.shape[1:])))
    video.sampler.step(state.generator, inputs)


def _make_frames(video: TextToVideo, state: TextToVideoState, height: int, width: int) -> None:
    """Decode and enlarge a chunk of ``height`` x ``width`` pixels at the base size, and
    discard it."""
    rows, columns = height // LATENT_PX, width // LATENT_PX
    anchor, length = state.generator.anchor_bcthw, video.plan.chunks[0]
    stages = [
        None if stage is None else stage.init_state(batch=1, height=rows, width=columns)
        for stage in (video.refiner, video.low_decoder)
    ]
    latents = anchor.new_zeros((1, anchor.shape[1], length, rows, columns))
    video.step(replace(state, refiner=stages[0], low_decoder=stages[1], ahead_bcthw=latents, ahead=length))


def _state(video: TextToVideo, height: int, width: int, context: Tensor) -> TextToVideoState:
    return video.init_state(height=height // LATENT_PX, width=width // LATENT_PX, context=context)


def _counted_groups(video: TextToVideo, height: int, width: int, *, groups: int) -> list[GenerationWork]:
    """Count the first groups of a clip of ``height`` x ``width`` pixels, one by one."""
    counted: list[GenerationWork] = []
    with torch.inference_mode(), counting_flops() as so_far:
        state = _state(video, height, width, _context(video.profile))
        video.timer = kinds = _Kinds(so_far)
        for _ in range(min(groups, len(video.plan.groups))):
            before, generated = so_far(), kinds.generated
            state, _ = video.step(state)
            generated = kinds.generated - generated
            counted.append(GenerationWork(generated, so_far() - before - generated))
    return counted


class _Kinds:
    """Replaces the stage timer, and counts the work of the generator."""

    def __init__(self, so_far: Callable[[], int]) -> None:
        self.generated = 0
        self._so_far = so_far

    @contextmanager
    def __call__(self, stage: str) -> Generator[None]:
        before = self._so_far()
        yield
        if stage == "generator":
            self.generated += self._so_far() - before


def _video(
    profile: Profile, generator: GeneratorConfig, plan: GenerationPlan, scale: int, *, low_frames: bool
) -> TextToVideo:
    return TextToVideo(
        profile,
        plan,
        Sampler(_bare(lambda: Network(generator))),
        refiner=_refiner(profile) if scale > 1 else None,
        low_decoder=_bare(lambda: Decoder(profile.base_decoder)) if low_frames or scale == 1 else None,
    )


def _refiner(profile: Profile) -> Refiner:
    upsampling, decoding = profile.latent_stages
    sr_dit = profile.sr_dit
    return Refiner(
        profile,
        _bare(lambda: LatentUpsampler(upsampling)),
        None if sr_dit is None else _bare(lambda: SrDit(sr_dit)),
        _bare(lambda: Decoder(decoding)),
    )


def _pixel_refiner(profile: Profile) -> PixelRefiner:
    config = profile.pixels
    assert config is not None, f"{profile.name} has no pixel path"
    return PixelRefiner(profile, _bare(lambda: PixelPath(config)))


def _bare(build: Callable[[], NetworkT]) -> NetworkT:
    """Build a network on the meta device, without weights."""
    with _META:
        network = build()
    return network.to(torch.bfloat16).eval().requires_grad_(False)


def _context(profile: Profile) -> Tensor:
    config = profile.generator or profile.sr_dit
    assert config is not None, "a profile with words has a stage that reads them"
    shape = (1, min(TYPICAL_TOKENS, config.text_len), config.text_dim)
    return torch.empty(shape, dtype=torch.bfloat16, device=_META)
