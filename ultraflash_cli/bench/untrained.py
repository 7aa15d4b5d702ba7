"""Models of the full size with weights drawn where they run: their times and their memory are the real ones."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ultraflash_cli.bench.cases import BenchCase
from ultraflash_cli.bench.counts import CountingClock
from ultraflash_cli.bench.streams import DrawnStream, UpscaledStream
from ultraflash_cli.bench.timing import Prepared
from ultraflash_cli.engine.cache_policy import CacheManagement, RefreshGate, SharpnessDrift
from ultraflash_cli.engine.cascade import Cascade
from ultraflash_cli.engine.graphs import EAGER, CudaRecorder, Graphs
from ultraflash_cli.engine.lanes import cuda_lanes
from ultraflash_cli.engine.layers.memory_block import to_channels_last
from ultraflash_cli.engine.plan import plan_upscale
from ultraflash_cli.engine.profiles import PROFILES, Profile
from ultraflash_cli.engine.refiner import Refiner
from ultraflash_cli.engine.schedule import GenerationPlan, latents_for, plan_generation
from ultraflash_cli.engine.stages.decoder import Decoder
from ultraflash_cli.engine.stages.encoder import Encoder, EncoderConfig
from ultraflash_cli.engine.stages.generator import Generator, GeneratorConfig
from ultraflash_cli.engine.stages.latent_upsampler import LatentUpsampler
from ultraflash_cli.engine.stages.sr_dit import SrDit
from ultraflash_cli.engine.text_to_video import TextToVideo
from ultraflash_cli.engine.upscaler import Upscaler
from ultraflash_cli.errors import ConfigError

__all__ = ["clip_plan", "generator_of", "prepare_untrained", "random_context", "random_network"]

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
    """Return a profile's generator. Raises ConfigError where it has none."""
    config = profile.long_generator if long else profile.generator
    if config is None:
        raise ConfigError(f"the model {profile.name} cannot generate")
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
            raise ConfigError(f"the generator ends after {longest} latent frames, {case.seconds:g} s take {latents}")
        latents = longest
    return plan_generation(latents, chunk=chunk, independent_first=first)


def prepare_untrained(case: BenchCase) -> Prepared:
    """Build the model of a case with random weights, from the engine alone. Raises ConfigError."""
    torch.set_num_threads(case.threads)
    device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if case.device == "auto" else case.device)
    gpu = device.type == "cuda"
    if gpu and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    if case.model not in PROFILES:
        raise ConfigError(f"no model is called {case.model!r}; there are {', '.join(PROFILES)}")
    rules = CacheManagement.parse(case.cache_management)
    profile = _managed(PROFILES[case.model], rules)
    eight = case.precision == "fp8"
    own = dict(profile.precisions) if gpu else {}
    if case.precision in DTYPES:
        own = dict.fromkeys(("generator", "encoder", "upsampler", "sr_dit", "decoder"), case.precision)
    dtype_of: Callable[[str], torch.dtype] = lambda part: DTYPES[own.get(part, "fp32")]
    clock = CountingClock(device)

    def network(part: str, build: Callable[[], NetworkT]) -> NetworkT:
        made = random_network(part, build, device=device, dtype=dtype_of(part))
        if eight and part in ("generator", "sr_dit"):
            narrow = getattr(made, "to_fp8", None)
            if narrow is None or not gpu:
                raise ConfigError("fp8 needs a GPU and networks that have an 8-bit form")
            made = narrow()
        return made

    def new_graphs() -> Graphs:
        return Graphs(CudaRecorder(device)) if case.graphs and gpu else EAGER

    refiner = None
    if case.scale > 1:
        profile = profile.at_scale(case.scale)
        config = profile.sr_dit
        refiner = Refiner(
            profile,
            network("upsampler", lambda: LatentUpsampler(profile.upsampler)),
            network("sr_dit", lambda: SrDit(config)) if config else None,
            network("decoder", lambda: Decoder(profile.decoder)),
            timer=clock,
            graphs=new_graphs(),
        )
    context = random_context(profile, device)
    precision = "fp8" if eight else _name_of({dtype_of(part) for part in ("upsampler", "sr_dit", "decoder")})
    made = partial(Prepared, clock=clock, precision=precision, weights="random")
    if case.kind == "upscale":
        encoder = profile.encoder
        assert refiner is not None and isinstance(encoder, EncoderConfig), "the profiles have the small encoder"
        plan = plan_upscale(case.width_px, case.height_px, res=f"{case.scale}x", multiple_px=profile.multiple_px)
        cascade = Cascade(profile, network("encoder", lambda: Encoder(encoder)), refiner)
        upscaler = Upscaler(cascade, plan, context=context)
        return made(start=lambda: UpscaledStream(upscaler))
    config = generator_of(profile, long=case.long)
    if profile.decoder.skip is not None:
        raise ConfigError(f"the model {profile.name} is built in: measure it with its own weights")
    video = TextToVideo(
        profile,
        clip_plan(case, config),
        network("generator", lambda: Generator(config)),
        refiner=refiner,
        low_decoder=None if refiner else network("decoder", lambda: Decoder(profile.decoder)),
        timer=clock,
        lanes=cuda_lanes(device) if case.lanes and gpu else None,
    )
    video.generator.graphs = new_graphs()
    if rules.refresh is not None:
        judge = network("decoder", lambda: Decoder(profile.decoder))
        video.generator.gate = RefreshGate(judge, SharpnessDrift(), rules.refresh)
    base = (case.height_px, case.width_px)
    return made(start=lambda: DrawnStream(video, base, context), endless=case.long)


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


def _name_of(dtypes: set[torch.dtype] | Sequence[torch.dtype]) -> str:
    names = [name for name, dtype in DTYPES.items() if dtype in dtypes]
    return names[0] if len(names) == 1 else "mixed"
