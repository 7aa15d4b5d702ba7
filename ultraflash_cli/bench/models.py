"""The measured models, built like those of `upscale` and `generate`."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from ultraflash_cli.bench.cases import WARM_GROUPS, BenchCase
from ultraflash_cli.bench.streams import DrawnStream, Stream, UpscaledStream
from ultraflash_cli.bench.timing import Prepared
from ultraflash_cli.engine.cache_policy import CacheManagement, RefreshGate
from ultraflash_cli.engine.counts import CountingClock
from ultraflash_cli.engine.layers.context import TYPICAL_TOKENS
from ultraflash_cli.engine.plan import UpscalePlan, plan_upscale
from ultraflash_cli.engine.profiles import Profile
from ultraflash_cli.engine.schedule import GenerationPlan, latents_for, plan_generation
from ultraflash_cli.engine.stages.generator import GeneratorConfig
from ultraflash_cli.engine.text_to_video import FIRST_STAGES, TextToVideo
from ultraflash_cli.engine.upscaler import Upscaler
from ultraflash_cli.errors import ConfigError
from ultraflash_cli.host import keep_freed_memory, peak_rss_bytes
from ultraflash_cli.models.build import (
    Place,
    Speedups,
    build_text_to_video,
    build_upscaler,
    find_scorer,
    take_base_decoder,
)
from ultraflash_cli.models.device import choose_device, choose_devices, precision_name
from ultraflash_cli.models.profile import find_profile, with_cache_rules
from ultraflash_cli.models.shelf import RandomShelf, Shelf

__all__ = ["MeasuredModel", "clip_plan", "generator_of", "prepare", "random_context"]

_PUBLISHED_LATENTS = 21


def random_context(profile: Profile, device: torch.device) -> Tensor | None:
    """Return a random embedding of ``TYPICAL_TOKENS`` instead of a prompt's; None for a
    model without a text path."""
    config = profile.sr_dit if profile.sr_dit and profile.sr_dit.text_len else profile.generator
    if config is None or not config.text_len:
        return None
    draw = torch.Generator(device).manual_seed(1)
    tokens = min(TYPICAL_TOKENS, config.text_len)
    return torch.randn((1, tokens, config.text_dim), generator=draw, device=device)


def generator_of(profile: Profile, *, long: bool) -> GeneratorConfig:
    """Return a profile's generator. Raises ConfigError if it has none."""
    config = profile.long_generator if long else profile.generator
    if config is None:
        raise ConfigError(f"{profile.name} cannot generate; choose another model with --model")
    return config


def clip_plan(case: BenchCase, config: GeneratorConfig) -> GenerationPlan:
    """Return the plan of the clip that a case generates."""
    chunk, first = config.chunk_latents, config.independent_first_frame
    if case.long:
        groups = 2 + WARM_GROUPS + -(-case.frames // (8 * chunk))  # a first group, and one to count
        latents = 2 * chunk * (groups + 1)
    elif case.seconds is not None:
        latents = latents_for(case.seconds, chunk=chunk, independent_first=first)
    else:
        latents = _PUBLISHED_LATENTS
    longest = config.longest
    if longest is not None and latents > longest:
        if case.seconds is not None:
            raise ConfigError(
                f"the generator makes at most {longest} latent frames, {case.seconds:g} s need {latents}; "
                "use a smaller --seconds"
            )
        latents = longest
    return plan_generation(latents, chunk=chunk, independent_first=first)


def _under_rules(profile: Profile, rules: CacheManagement) -> Profile:
    """Return the profile with the cache rules applied to both generators."""
    profile = with_cache_rules(profile, rules, long=False, groups=WARM_GROUPS)
    if profile.long_generator is None:
        return profile
    return replace(profile, long_generator=rules.apply_generator(profile.long_generator))


class MeasuredModel:
    """The model of a case, with its own weights or random ones. Raises ConfigError, UsageError, DeviceError."""

    def __init__(self, case: BenchCase) -> None:
        torch.set_num_threads(case.threads)
        self.case = case
        generates = case.kind == "generate"
        devices = choose_devices(case.device) if generates else (choose_device(case.device),)
        self.device, self._later = devices[0], devices[-1]
        self.where = ",".join(map(str, devices))
        self._rules = CacheManagement.parse(case.cache_management)
        profile = find_profile(case.model)
        self.profile = _under_rules(profile, self._rules)
        self.clock = CountingClock(self._later, dict.fromkeys(FIRST_STAGES, self.device) if generates else None)
        self.precision = precision_name(profile, case.precision, self.device)
        self.context = random_context(self.profile, self.device)
        self._shelf = RandomShelf() if case.untrained else Shelf(case.store)
        self._speedups = Speedups(graphs=case.graphs, streams=case.lanes, paired_caches=self.device.type == "cuda")

    @property
    def weights(self) -> str:
        """Source of the weights."""
        if self.case.untrained or self.profile.random_seed is not None:
            return "random"
        return "downloaded" if self.case.model == "ultraflash" else "built in"

    def upscaler(self, plan: UpscalePlan | None = None) -> Upscaler:
        """Build the upscaler of ``plan``, by default that of the case."""
        case, profile = self.case, self.profile
        if plan is None:
            plan = plan_upscale(case.width_px, case.height_px, res=f"{case.scale}x")
        return build_upscaler(
            self._shelf,
            profile,
            plan,
            device=self.device,
            precision=case.precision,
            context=self.context if profile.upscales_by_words else None,
            timer=self.clock,
            speedups=self._speedups,
        )

    def video(self, plan: GenerationPlan | None = None) -> TextToVideo:
        """Build the text-to-video cascade for ``plan``, by default that of the case."""
        case, profile = self.case, self.profile
        gate = None
        if self._rules.refresh is not None:
            judge = take_base_decoder(self._shelf, profile, device=self.device, precision=case.precision)
            gate = RefreshGate(judge, find_scorer(), self._rules.refresh)
        return build_text_to_video(
            self._shelf,
            profile,
            plan or clip_plan(case, generator_of(profile, long=case.long)),
            scale=case.scale,
            long=case.long,
            low_frames=False,
            device=self.device,
            precision=case.precision,
            gate=gate,
            timer=self.clock,
            speedups=self._speedups,
            second=None if self._later == self.device else Place(device=self._later, speedups=self._speedups),
        )


def prepare(case: BenchCase) -> Prepared:
    """Build the model of a case. Raises ConfigError, UsageError, DeviceError, WeightsError."""
    keep_freed_memory()
    model = MeasuredModel(case)
    if case.kind == "upscale":
        start: Callable[[], Stream] = partial(UpscaledStream, model.upscaler())
    else:
        start = partial(DrawnStream, model.video(), (case.height_px, case.width_px), model.context)
    return Prepared(
        start=start,
        clock=model.clock,
        precision=model.precision,
        weights=model.weights,
        endless=case.kind == "upscale" or case.long,
        peak_rss_bytes=peak_rss_bytes,
    )
