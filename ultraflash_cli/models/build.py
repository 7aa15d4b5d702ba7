"""Build cascades from networks: for upscaling, and for generating a clip from a
prompt."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import entry_points

import torch
from torch import Tensor, nn

from ultraflash_cli.engine.bridge import bridge_between
from ultraflash_cli.engine.cache_policy import Scorer, SharpnessDrift
from ultraflash_cli.engine.cascade import Cascade
from ultraflash_cli.engine.clock import StageTimer, untimed
from ultraflash_cli.engine.footprint.plan import MemoryPlan
from ultraflash_cli.engine.gpu_streams import cuda_streams
from ultraflash_cli.engine.graphs import EAGER, CudaRecorder, Graphs
from ultraflash_cli.engine.guard import Guard
from ultraflash_cli.engine.layers.memory_block import to_channels_last
from ultraflash_cli.engine.networks import Config
from ultraflash_cli.engine.pictures import YuvFormat
from ultraflash_cli.engine.pixel_refiner import PixelRefiner
from ultraflash_cli.engine.plan import UpscalePlan
from ultraflash_cli.engine.profiles import Profile
from ultraflash_cli.engine.refiner import Refiner
from ultraflash_cli.engine.sampling import Gate, Sampler
from ultraflash_cli.engine.schedule import GenerationPlan
from ultraflash_cli.engine.stages.decoder import Decoder
from ultraflash_cli.engine.stages.generator import Generator
from ultraflash_cli.engine.stages.latent_upsampler import LatentUpsampler
from ultraflash_cli.engine.stages.pixel_path import PixelPath
from ultraflash_cli.engine.stages.sr_dit import SrDit
from ultraflash_cli.engine.stages.wan_vae import WanVaeConfig
from ultraflash_cli.engine.text_to_video import TextToVideo
from ultraflash_cli.engine.upscaler import Upscaler
from ultraflash_cli.errors import UsageError
from ultraflash_cli.models.backend import place
from ultraflash_cli.models.device import fp8_parts, stage_precisions
from ultraflash_cli.models.shelf import Shelf
from ultraflash_kernels import dispatch

__all__ = [
    "Place",
    "Speedups",
    "build_text_to_video",
    "build_upscaler",
    "find_scorer",
    "speedups_within",
    "take_base_decoder",
    "take_pixel_path",
]

_SCORERS = "ultraflash.scorers"


@dataclass(frozen=True, kw_only=True)
class Speedups:
    """Options that speed up work on a GPU without changing pixels."""

    graphs: bool = False
    """Whether to record the steps of stages as CUDA graphs."""
    paired_caches: bool = False
    """Whether the SR transformer's caches have a second pair of buffers, which avoids copies."""
    streams: bool = False
    """Whether to generate the next group on a separate stream while the current one is refined."""

    def new_graphs(self, device: torch.device) -> Graphs:
        """Return the runner of stages' steps on ``device``."""
        return Graphs(CudaRecorder(device)) if self.graphs and device.type == "cuda" else EAGER


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a part of a cascade runs, and its speedups there."""

    device: torch.device
    speedups: Speedups


def build_upscaler(
    shelf: Shelf,
    profile: Profile,
    plan: UpscalePlan,
    *,
    device: torch.device,
    precision: str = "auto",
    strength: float = 1.0,
    color: str = "match",
    detail: float = 1.0,
    context: Tensor | None = None,
    decode_latents: int | None = None,
    timer: StageTimer = untimed,
    speedups: Speedups = Speedups(),
    yuv: YuvFormat | None = None,
    guard: Guard | None = None,
) -> Upscaler:
    """Load the parts of a model that ``plan`` needs and build the upscaler. Raises
    WeightsError for missing or invalid weights. ``detail`` interpolates a pixel path
    from faithful (0) to detailed (1).
    """
    profile = profile.at_scale(plan.scale)
    dtype_of = stage_precisions(profile, precision, device)
    if profile.pixels is not None:
        cascade = Cascade(profile, None, _pixel_refiner(shelf, profile, device, dtype_of, timer, speedups, detail))
        return Upscaler(cascade, plan, strength=strength, color=color, yuv=yuv, guard=guard)
    kind = "wan_vae" if isinstance(profile.encoder, WanVaeConfig) else "encoder"
    encoder = shelf.take(profile, kind, profile.encoder, device=device, dtype=dtype_of(kind))
    refiner = _refiner(shelf, profile, device, dtype_of, fp8_parts(precision), decode_latents, timer, speedups)
    cascade = Cascade(profile, encoder, refiner)  # pyright: ignore[reportArgumentType]
    return Upscaler(cascade, plan, strength=strength, color=color, context=context, yuv=yuv, guard=guard)


def build_text_to_video(
    shelf: Shelf,
    profile: Profile,
    plan: GenerationPlan,
    *,
    scale: int,
    long: bool,
    low_frames: bool,
    device: torch.device,
    precision: str = "auto",
    decode_latents: int | None = None,
    park: torch.device | None = None,
    gate: Gate | None = None,
    timer: StageTimer = untimed,
    speedups: Speedups = Speedups(),
    second: Place | None = None,
) -> TextToVideo:
    """Load the parts for generating a video; ``scale`` 1 stays at the base size,
    ``low_frames`` requests frames of that size too. ``long`` selects the generator's
    long variant. ``second`` is where everything after the generator runs, if not on
    ``device``. Raises WeightsError for missing or invalid weights.
    """
    part = "long_generator" if long else "generator"
    config = profile.long_generator if long else profile.generator
    if config is None:
        raise UsageError(f"{profile.name} cannot generate; choose another model with --model")

    later = second or Place(device=device, speedups=speedups)
    dtype_of = stage_precisions(profile, precision, device)
    in_fp8 = fp8_parts(precision)
    dtype, fp8 = dtype_of("generator"), "generator" in in_fp8
    generator = shelf.take(profile, part, config, device=device, dtype=dtype, fp8=fp8)
    refiner = low_decoder = None
    if scale > 1:
        profile = profile.at_scale(scale)
        later_dtype_of = stage_precisions(profile, precision, later.device)
        refiner = _refiner(shelf, profile, later.device, later_dtype_of, in_fp8, decode_latents, timer, later.speedups)

    if low_frames or scale == 1:
        low_decoder = take_base_decoder(shelf, profile, device=later.device, precision=precision)
    assert isinstance(generator, Generator)

    # A parked generator changes its addresses.
    graphs = EAGER if park is not None else speedups.new_graphs(device)
    sampler = Sampler(generator, gate=gate, graphs=graphs)
    works_ahead = speedups.streams and device.type == "cuda" and park is None and second is None
    return TextToVideo(
        profile,
        plan,
        sampler,
        refiner=refiner,
        low_decoder=low_decoder,
        park=park,
        timer=timer,
        streams=cuda_streams(device) if works_ahead else None,
        bridge=None if second is None else bridge_between(device, second.device),
    )


def take_base_decoder(shelf: Shelf, profile: Profile, *, device: torch.device, precision: str) -> Decoder:
    """Return the decoder of low-resolution latents. Raises WeightsError for missing or
    invalid weights."""
    dtype = stage_precisions(profile, precision, device)("decoder")
    decoder = shelf.take(profile, "decoder", profile.base_decoder, device=device, dtype=dtype)
    assert isinstance(decoder, Decoder)
    return decoder


def _refiner(
    shelf: Shelf,
    profile: Profile,
    device: torch.device,
    dtype_of: Callable[[str], torch.dtype],
    in_fp8: frozenset[str],
    decode_latents: int | None,
    timer: StageTimer,
    speedups: Speedups,
) -> Refiner:
    def take(part: str, config: Config, *, folded: bool = False) -> nn.Module:
        dtype, fp8 = dtype_of(part), part in in_fp8
        return shelf.take(profile, part, config, device=device, dtype=dtype, fp8=fp8, folded=folded)

    upsampling, decoding = profile.latent_stages
    upsampler = take("upsampler", upsampling)
    sr_dit = None
    if profile.sr_dit:
        # Constant gates are folded where that saves traffic of a GPU's memory.
        fast = dispatch.prefers_kernels(device) and dtype_of("sr_dit") != torch.float32
        folded = fast and not (profile.sr_dit.pool_text or "sr_dit" in in_fp8)
        sr_dit = take("sr_dit", profile.sr_dit, folded=folded)
    decoder = take("decoder", decoding)
    assert isinstance(upsampler, LatentUpsampler) and isinstance(decoder, Decoder)
    assert sr_dit is None or isinstance(sr_dit, SrDit)
    if sr_dit is not None:
        sr_dit.paired_caches = speedups.paired_caches
    graphs = speedups.new_graphs(device)
    return Refiner(profile, upsampler, sr_dit, decoder, decode_latents=decode_latents, timer=timer, graphs=graphs)


def _pixel_refiner(
    shelf: Shelf,
    profile: Profile,
    device: torch.device,
    dtype_of: Callable[[str], torch.dtype],
    timer: StageTimer,
    speedups: Speedups,
    detail: float,
) -> PixelRefiner:
    path = take_pixel_path(shelf, profile, device=device, dtype=dtype_of("pixels"), detail=detail)
    return PixelRefiner(profile, path, timer=timer, graphs=speedups.new_graphs(device))


def take_pixel_path(
    shelf: Shelf, profile: Profile, *, device: torch.device, dtype: torch.dtype, detail: float
) -> PixelPath:
    """Return the pixel path with its faithful weights (``detail`` 0), those that add detail (1), or weights between."""
    config = profile.pixels
    assert config is not None, f"{profile.name} has no pixel path"

    def take(part: str, dtype: torch.dtype) -> PixelPath:
        path = shelf.take(profile, part, config, device=device, dtype=dtype)
        assert isinstance(path, PixelPath)
        return path

    if detail in (0, 1):
        path = take("pixels_detail" if detail else "pixels", dtype)
    else:
        ends = [take(part, torch.float32).state_dict() for part in ("pixels", "pixels_detail")]
        between = {name: torch.lerp(value, ends[1][name], detail) for name, value in ends[0].items()}
        path = PixelPath(config)
        path.load_state_dict({name: value.to("cpu") for name, value in between.items()})
        path = to_channels_last(place(path, device, dtype)).eval().requires_grad_(False)
        assert isinstance(path, PixelPath)
    return path


def speedups_within(memory: MemoryPlan, device: torch.device, *, graphs: bool) -> Speedups:
    """Choose the speedups on a GPU for which a memory plan leaves room."""
    roomy = memory.budget_bytes is None or memory.total + memory.beside_bytes <= memory.budget_bytes
    fits = device.type == "cuda" and roomy
    beside = memory.total + memory.beside_bytes + memory.ring_bytes
    paired = memory.budget_bytes is None or beside <= memory.budget_bytes
    return Speedups(
        graphs=graphs and fits,
        streams=fits and not memory.settings.offload_generator,
        paired_caches=fits and paired,
    )


def find_scorer() -> Scorer:
    """Return the scorer of a plug-in in the entry-point group ``ultraflash.scorers``,
    or else the built-in one."""
    for plugin in sorted(entry_points(group=_SCORERS), key=lambda each: each.name):
        return plugin.load()()
    return SharpnessDrift()
