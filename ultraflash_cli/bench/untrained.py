"""Models of the full size with weights drawn where they run: their times and their memory are the real ones."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ultraflash_cli.bench.cases import BenchCase
from ultraflash_cli.bench.streams import DrawnStream, Stream, UpscaledStream
from ultraflash_cli.bench.timing import Prepared
from ultraflash_cli.engine.cache_policy import CacheManagement, RefreshGate, SharpnessDrift
from ultraflash_cli.engine.cascade import Cascade
from ultraflash_cli.engine.counts import CountingClock
from ultraflash_cli.engine.graphs import EAGER, CudaRecorder, Graphs
from ultraflash_cli.engine.lanes import cuda_lanes
from ultraflash_cli.engine.layers.memory_block import to_channels_last
from ultraflash_cli.engine.pixel_refiner import PixelRefiner
from ultraflash_cli.engine.plan import UpscalePlan, plan_upscale
from ultraflash_cli.engine.profiles import PROFILES, Profile
from ultraflash_cli.engine.refiner import Refiner
from ultraflash_cli.engine.schedule import GenerationPlan, latents_for, plan_generation
from ultraflash_cli.engine.stages.decoder import Decoder
from ultraflash_cli.engine.stages.encoder import Encoder, EncoderConfig
from ultraflash_cli.engine.stages.generator import Generator, GeneratorConfig
from ultraflash_cli.engine.stages.latent_upsampler import LatentUpsampler
from ultraflash_cli.engine.stages.pixel_path import PixelPath
from ultraflash_cli.engine.stages.sr_dit import SrDit
from ultraflash_cli.engine.text_to_video import TextToVideo
from ultraflash_cli.engine.upscaler import Upscaler
from ultraflash_cli.errors import ConfigError

__all__ = [
    "DTYPES",
    "NetworkT",
    "Untrained",
    "clip_plan",
    "generator_of",
    "prepare_untrained",
    "random_context",
    "random_network",
]

PARTS = ("generator", "encoder", "upsampler", "sr_dit", "decoder", "pixels")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PUBLISHED_LATENTS = 21
STEADY_GROUPS = 6
"""Groups of an endless generation before its window is surely full."""

NetworkT = TypeVar("NetworkT", bound=nn.Module)


def random_network(part: str, build: Callable[[], NetworkT], *, device: torch.device, dtype: torch.dtype) -> NetworkT:
    """Build a network with seeded random weights, drawn where it runs."""
    with torch.device("meta"):
        network = build()
    network = network.to(dtype).to_empty(device=device)
    seed = int.from_bytes(hashlib.sha256(part.encode()).digest()[:8], "little") >> 1
    generator = torch.Generator(device).manual_seed(seed)
    with torch.no_grad():
        for path, parameter in network.named_parameters():
            if path.endswith("bias"):
                parameter.normal_(0, 0.1, generator=generator)
            elif parameter.numel() == parameter.shape[0]:  # the factors of a norm
                parameter.normal_(1, 0.1, generator=generator)
            else:
                parameter.normal_(0, 0.9 / parameter[0].numel() ** 0.5, generator=generator)
    to_channels_last(network)
    return network.eval().requires_grad_(False)


def random_context(profile: Profile, device: torch.device) -> Tensor | None:
    """Return an embedding in place of a prompt's; None for a model without words."""
    config = profile.sr_dit if profile.sr_dit and profile.sr_dit.text_len else profile.generator
    if config is None or not config.text_len:
        return None
    draw = torch.Generator(device).manual_seed(1)
    return torch.randn((1, config.text_len, config.text_dim), generator=draw, device=device)


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
        groups = 2 + STEADY_GROUPS + -(-case.frames // (8 * chunk))  # a first one, one that is counted
        latents = 2 * chunk * (groups + 1)
    elif case.seconds is not None:
        latents = latents_for(case.seconds, chunk=chunk, independent_first=first)
    else:
        latents = PUBLISHED_LATENTS
    longest = config.longest
    if longest is not None and latents > longest:
        if case.seconds is not None:
            raise ConfigError(
                f"the generator makes at most {longest} latent frames, {case.seconds:g} s need {latents}; "
                "use a smaller --seconds"
            )
        latents = longest
    return plan_generation(latents, chunk=chunk, independent_first=first)


class Untrained:
    """The models of a case with random weights, from the engine alone. Raises ConfigError."""

    def __init__(self, case: BenchCase) -> None:
        torch.set_num_threads(case.threads)
        self.case = case
        self.device = _device(case.device)
        if case.model not in PROFILES:
            raise ConfigError(f"unknown model {case.model!r}; choose from {', '.join(PROFILES)}")
        self._rules = CacheManagement.parse(case.cache_management)
        profile = _managed(PROFILES[case.model], self._rules)
        self.profile = profile.at_scale(case.scale) if case.scale > 1 else profile
        self.clock = CountingClock(self.device)
        self._gpu = self.device.type == "cuda"
        self._own: dict[str, str] = dict(profile.precisions) if self._gpu else {}
        if case.precision in DTYPES:
            self._own = dict.fromkeys(PARTS, case.precision)
        self.context = random_context(self.profile, self.device)

    @property
    def precision(self) -> str:
        """The name of the precision; ``mixed`` where stages differ."""
        if self.case.precision == "fp8":
            return "fp8"
        parts = ("pixels",) if self.profile.pixels else ("upsampler", "sr_dit", "decoder")
        dtypes = {self._dtype_of(part) for part in parts}
        names = [name for name, dtype in DTYPES.items() if dtype in dtypes]
        return names[0] if len(names) == 1 else "mixed"

    def upscaler(self, plan: UpscalePlan | None = None) -> Upscaler:
        """Build the upscaler of ``plan``, by default that of the case."""
        case, profile, config = self.case, self.profile, self.profile.encoder
        assert isinstance(config, EncoderConfig), "the profiles have the small encoder"
        if plan is None:
            size = (case.width_px, case.height_px)
            plan = plan_upscale(*size, res=f"{case.scale}x", multiple_px=profile.multiple_px)
        refiner = self._refiner()
        encoder = None if refiner.reads_frames else self._network("encoder", lambda: Encoder(config))
        cascade = Cascade(profile, encoder, refiner)
        return Upscaler(cascade, plan, context=self.context)

    def video(self, plan: GenerationPlan | None = None) -> TextToVideo:
        """Build the cascade of a prompt for ``plan``, by default that of the case."""
        case, profile = self.case, self.profile
        config = generator_of(profile, long=case.long)
        if not profile.refines_latents:
            raise ConfigError(f"{profile.name} is built in; measure it with its own weights")
        refiner = self._refiner() if case.scale > 1 else None
        video = TextToVideo(
            profile,
            plan or clip_plan(case, config),
            self._network("generator", lambda: Generator(config)),
            refiner=refiner,
            low_decoder=None if refiner else self._network("decoder", lambda: Decoder(profile.base_decoder)),
            timer=self.clock,
            lanes=cuda_lanes(self.device) if case.lanes and self._gpu else None,
        )
        video.generator.graphs = self._new_graphs()
        if self._rules.refresh is not None:
            judge = self._network("decoder", lambda: Decoder(profile.base_decoder))
            video.generator.gate = RefreshGate(judge, SharpnessDrift(), self._rules.refresh)
        return video

    def _refiner(self) -> Refiner | PixelRefiner:
        profile, config = self.profile, self.profile.sr_dit
        if (pixels := profile.pixels) is not None:
            path = self._network("pixels", lambda: PixelPath(pixels))
            return PixelRefiner(profile, path, timer=self.clock, graphs=self._new_graphs())
        upsampling, decoding = profile.latent_stages
        sr_dit = self._network("sr_dit", lambda: SrDit(config)) if config else None
        if sr_dit is not None:
            sr_dit.paired_caches = self.device.type == "cuda"
        return Refiner(
            profile,
            self._network("upsampler", lambda: LatentUpsampler(upsampling)),
            sr_dit,
            self._network("decoder", lambda: Decoder(decoding)),
            timer=self.clock,
            graphs=self._new_graphs(),
        )

    def _network(self, part: str, build: Callable[[], NetworkT]) -> NetworkT:
        network = random_network(part, build, device=self.device, dtype=self._dtype_of(part))
        if self.case.precision != "fp8" or part not in ("generator", "sr_dit"):
            return network
        narrow = getattr(network, "to_fp8", None)
        if narrow is None or not self._gpu:
            raise ConfigError("fp8 needs a GPU and a model with 8-bit layers")
        return narrow()

    def _dtype_of(self, part: str) -> torch.dtype:
        return DTYPES[self._own.get(part, "fp32")]

    def _new_graphs(self) -> Graphs:
        return Graphs(CudaRecorder(self.device)) if self.case.graphs and self._gpu else EAGER


def prepare_untrained(case: BenchCase) -> Prepared:
    """Build the model of a case with random weights, from the engine alone. Raises ConfigError."""
    made = Untrained(case)
    if case.kind == "upscale":
        start: Callable[[], Stream] = partial(UpscaledStream, made.upscaler())
    else:
        start = partial(DrawnStream, made.video(), (case.height_px, case.width_px), made.context)
    endless = case.kind == "upscale" or case.long
    return Prepared(start=start, clock=made.clock, precision=made.precision, weights="random", endless=endless)


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device("cuda", torch.cuda.current_device()) if name == "cuda" else torch.device(name)


def _managed(profile: Profile, rules: CacheManagement) -> Profile:
    """Return the profile under the rules of cache management."""
    changes: dict[str, Any] = {}
    if profile.generator is not None:
        changes["generator"] = rules.apply_generator(profile.generator)
    if profile.long_generator is not None:
        changes["long_generator"] = rules.apply_generator(profile.long_generator)
    if profile.sr_dit is not None:
        changes["sr_dit"] = rules.apply_sr(profile.sr_dit, STEADY_GROUPS)
    return replace(profile, **changes)
