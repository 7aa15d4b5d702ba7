"""Names to built networks: the one place where engine and weights meet."""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ultraflash_cli.engine.cascade import Cascade
from ultraflash_cli.engine.graphs import EAGER, CudaRecorder, Graphs
from ultraflash_cli.engine.guard import Guard
from ultraflash_cli.engine.lanes import cuda_lanes
from ultraflash_cli.engine.layers.memory_block import to_channels_last
from ultraflash_cli.engine.pictures import YuvFormat
from ultraflash_cli.engine.pixel_refiner import PixelRefiner
from ultraflash_cli.engine.plan import UpscalePlan
from ultraflash_cli.engine.profiles import PROFILES, Profile
from ultraflash_cli.engine.refiner import Refiner, StageTimer, untimed
from ultraflash_cli.engine.schedule import GenerationPlan
from ultraflash_cli.engine.stages.decoder import Decoder, DecoderConfig
from ultraflash_cli.engine.stages.encoder import Encoder, EncoderConfig
from ultraflash_cli.engine.stages.generator import Generator, GeneratorConfig
from ultraflash_cli.engine.stages.latent_upsampler import LatentUpsampler, LatentUpsamplerConfig
from ultraflash_cli.engine.stages.pixel_path import PixelPath, PixelPathConfig
from ultraflash_cli.engine.stages.prompt_encoder import PromptEncoder, PromptEncoderConfig
from ultraflash_cli.engine.stages.sr_dit import SrDit, SrDitConfig
from ultraflash_cli.engine.stages.text_encoder import TextEncoder, TextEncoderConfig
from ultraflash_cli.engine.stages.wan_vae import WanVaeConfig, WanVaeEncoder
from ultraflash_cli.engine.text_to_video import TextToVideo
from ultraflash_cli.engine.upscaler import Upscaler
from ultraflash_cli.errors import DeviceError, UsageError, WeightsError
from ultraflash_cli.weights.convert import merge_lora
from ultraflash_cli.weights.load import load_strictly, read_tensors
from ultraflash_cli.weights.manifest import WeightEntry, read_manifest
from ultraflash_cli.weights.store import WeightStore
from ultraflash_cli.weights.verify import verify
from ultraflash_kernels.fp8_linear import fp8_refusal

__all__ = [
    "NETWORKS",
    "TOKENIZER",
    "Shelf",
    "Speedups",
    "build_text_to_video",
    "build_upscaler",
    "choose_device",
    "choose_precision",
    "find_profile",
    "fp8_parts",
    "precision_name",
    "precision_warnings",
    "stage_precisions",
    "take_base_decoder",
]

Config = (
    EncoderConfig
    | WanVaeConfig
    | LatentUpsamplerConfig
    | SrDitConfig
    | DecoderConfig
    | PixelPathConfig
    | GeneratorConfig
    | TextEncoderConfig
    | PromptEncoderConfig
)
NETWORKS: dict[type, Callable[..., nn.Module]] = {
    EncoderConfig: Encoder,
    WanVaeConfig: WanVaeEncoder,
    LatentUpsamplerConfig: LatentUpsampler,
    SrDitConfig: SrDit,
    DecoderConfig: Decoder,
    PixelPathConfig: PixelPath,
    GeneratorConfig: Generator,
    TextEncoderConfig: TextEncoder,
    PromptEncoderConfig: PromptEncoder,
}
"""The class that each config is for."""

TOKENIZER = "wan/tokenizer"
"""What the names of the tokenizer's files begin with."""
_IN_8_BITS = frozenset({"generator", "sr_dit"})
"""Parts that ``--precision fp8`` puts into 8 bits."""
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class Speedups:
    """Ways that make work on a GPU denser; the pixels are the same."""

    graphs: bool = False
    """Record the steps of stages as CUDA graphs."""
    paired_caches: bool = False
    """Give the SR transformer's caches a second pair of buffers, so that none are copied."""
    lanes: bool = False
    """Generate the next group on a stream of its own while the current one is refined."""

    def new_graphs(self, device: torch.device) -> Graphs:
        """Return what runs the steps of stages on ``device``."""
        return Graphs(CudaRecorder(device)) if self.graphs and device.type == "cuda" else EAGER


def find_profile(model: str) -> Profile:
    """Return the profile of a model. Raises UsageError for a name that nothing has."""
    if model not in PROFILES:
        raise UsageError(f"unknown model {model!r}; choose from {', '.join(PROFILES)}")
    return PROFILES[model]


def choose_device(name: str) -> torch.device:
    """Turn ``auto``, ``cpu`` or ``cuda[:i]`` into a device and make it the current one.

    On a GPU float32 is IEEE float32 from then on: TF32, which torch uses for convolutions by default, keeps 10 bits of
    the mantissa. Raises DeviceError for a device that is not there.
    """
    device = _named_device(name)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    return device


def _named_device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"--device must be auto, cpu or cuda[:i], got {name!r}") from error
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"--device must be auto, cpu or cuda[:i], got {name!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise DeviceError(f"{name}: {torch.cuda.device_count()} usable CUDA devices on this machine; try --device cpu")
    return device


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """Turn ``auto``, ``fp32``, ``bf16`` or ``fp8`` into the dtype of what is not in 8 bits.

    ``auto`` is bf16 on a GPU and on CPUs whose bf16 convolutions are the faster ones (AMX, or AMD with
    avx512_bf16; Intel without AMX runs them at half the speed of float32), else float32. Raises DeviceError for
    ``fp8`` where ``device`` cannot multiply 8 bits.
    """
    if name == "auto":
        fast = _cpu_has_fast_bf16() if device.type == "cpu" else torch.cuda.is_bf16_supported()
        return torch.bfloat16 if fast else torch.float32
    if name == "fp8" and (refusal := fp8_refusal(device)):
        raise DeviceError(f"--precision fp8 cannot run here: {refusal.removesuffix('.')}; use --precision auto")
    try:
        return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp8": torch.bfloat16}[name]
    except KeyError as error:
        raise UsageError(f"--precision must be auto, fp32, bf16 or fp8, got {name!r}") from error


def stage_precisions(profile: Profile, name: str, device: torch.device) -> Callable[[str], torch.dtype]:
    """Return what gives each part its dtype: the profile's own on a GPU under ``auto`` and ``fp8``, else one for all.

    The full autoencoder stays in float32 unless another precision is requested. Under ``fp8`` the transformers are
    bfloat16 around what is in 8 bits (``fp8_parts``).
    """
    one = choose_precision(name, device)
    own = {part: _DTYPES[precision] for part, precision in profile.precisions}
    if name == "fp8":
        own |= dict.fromkeys(_IN_8_BITS, torch.bfloat16)
    elif name != "auto":
        own = {}
    elif device.type == "cpu":
        own = {part: dtype for part, dtype in own.items() if dtype == torch.float32}
    return lambda part: own.get(part, one)


def fp8_parts(precision: str) -> frozenset[str]:
    """Return the parts whose linear layers and attention are put into 8 bits."""
    return _IN_8_BITS if precision == "fp8" else frozenset()


def precision_warnings(precision: str) -> list[str]:
    """Return what a precision changes in the pixels."""
    if precision != "fp8":
        return []
    return ["--precision fp8 rounds the transformers' weights and inputs to 8 bits, which changes pixels"]


class Shelf:
    """Networks with their weights, each loaded once for a process and kept while its place on a device lasts."""

    def __init__(self, folder: Path | None = None) -> None:
        """Take weights from the package, and from the store in ``folder`` (without one, from the package alone)."""
        self.store = WeightStore(folder) if folder is not None else None
        self._networks: dict[tuple[object, ...], nn.Module] = {}
        self._hashes: dict[str, str] = {}

    @property
    def hashes(self) -> dict[str, str]:
        """The sha256 of the files behind everything that was taken so far, by the weights' names."""
        return dict(self._hashes)

    def path(self, weights: str) -> Path:
        """Return the checked file of these weights. Raises WeightsError if it is missing or changed."""
        entry = _entry(weights)
        path = verify(entry, self._store(entry), quick=True)
        self._hashes[weights] = self._sha256(entry)
        return path

    def folder(self, prefix: str) -> Path:
        """Return the folder of all checked files under a common name. Raises WeightsError as ``path`` does."""
        paths = [self.path(name) for name in _members(prefix)]
        return paths[0].parent

    def identity(self, prefix: str) -> str:
        """Return what changes when the files under a name do. Raises WeightsError if one is not installed."""
        return " ".join(self._sha256(_entry(name)) for name in _members(prefix))

    def has(self, profile: Profile, part: str) -> bool:
        """Return whether the weights of a part are installed, or are random."""
        return profile.random_seed is not None or self._installed(_entry(self.served_by(profile.weight_of(part))))

    def served_by(self, weights: str) -> str:
        """Return the weights that serve under a name: its own, or where they are not installed its fallback's."""
        entry = _entry(weights)
        if entry.fallback is None or self._installed(entry) or not self._installed(_entry(entry.fallback)):
            return weights
        return entry.fallback

    def architecture(self, profile: Profile, part: str) -> str | None:
        """Return the architecture of a part's installed file; None if nothing is installed or it is random."""
        name = dict(profile.weights).get(part)
        if name is None or profile.random_seed is not None or not self.has(profile, part):
            return None
        entry = _entry(self.served_by(name))
        receipt = None if entry.packaged or self.store is None else self.store.receipt(entry)
        return (receipt.architecture if receipt else "") or entry.architecture

    def require(self, profile: Profile, parts: Iterable[str]) -> None:
        """Raise WeightsError, naming what to pull, where weights of these parts of a profile are not installed."""
        if profile.random_seed is not None:
            return
        parts = tuple(parts)
        wanted = dict.fromkeys(self.served_by(profile.weight_of(part)) for part in parts)
        if "text_encoder" in parts and isinstance(profile.text_encoder, TextEncoderConfig):
            wanted |= dict.fromkeys(_members(TOKENIZER))
        missing = [name for name in wanted if not self._installed(_entry(name))]
        if missing:
            pull = missing[0] if len(missing) == 1 else profile.name
            if all(name.startswith(f"{profile.name}-long/") for name in missing):
                pull = f"{profile.name}-long"
            named = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
            verb = "is" if len(missing) == 1 else "are"
            raise WeightsError(
                f"{profile.name} is not installed: {named} {verb} missing; run `ultraflash weights pull {pull}`"
            )

    def _installed(self, entry: WeightEntry) -> bool:
        if entry.packaged:
            return True
        return self.store is not None and self.store.installed(entry)

    def kept(self, folder: str) -> Path | None:
        """Return where things that are computed once may be kept; None without a store."""
        return None if self.store is None else self.store.root / folder

    def _sha256(self, entry: WeightEntry) -> str:
        store = self._store(entry)
        known = entry.sha256 if store is None else store.sha256(entry)
        assert known is not None, "the manifest checks that a file of the package has a hash"
        return known

    def _store(self, entry: WeightEntry) -> WeightStore | None:
        if entry.packaged:
            return None
        if self.store is None:
            raise WeightsError(
                f"{entry.name} is not part of the package, and no folder of downloaded weights was given"
            )
        return self.store

    def take(
        self,
        profile: Profile,
        part: str,
        config: Config,
        *,
        device: torch.device,
        dtype: torch.dtype,
        fp8: bool = False,
    ) -> nn.Module:
        """Return the network of a part of a profile, ready to run. Raises WeightsError if its weights are not.

        ``fp8`` puts a transformer into 8 bits, once.
        """
        key = (profile.name, part, config, device, dtype, fp8)
        if key not in self._networks:
            network = self._load(profile, part, config, device, dtype)
            if fp8:
                assert isinstance(network, Generator | SrDit), f"{part} has no 8-bit form"
                network.to_fp8()
            self._networks[key] = network
        return self._networks[key]

    def drop(self, network: nn.Module) -> None:
        """Forget a network, so that its memory can be used again."""
        self._networks = {key: value for key, value in self._networks.items() if value is not network}

    def _load(self, profile: Profile, part: str, config: Config, device: torch.device, dtype: torch.dtype) -> nn.Module:
        build = NETWORKS[type(config)]
        if profile.random_seed is not None:
            network = build(config)
            _randomise(network, f"{profile.random_seed}/{part}")
            self._hashes[f"random/{part}"] = str(profile.random_seed)
        else:
            weights = self.served_by(profile.weight_of(part))
            with torch.device("meta"):
                network = build(config)
            tensors = read_tensors(self.path(weights), dtype=dtype, device=device)
            if part == "long_generator":
                lora = read_tensors(self.path(profile.weight_of("long_lora")), dtype=torch.float32, device=device)
                tensors = merge_lora(tensors, lora)
            load_strictly(network, _own_part(network, tensors), name=weights)
        return to_channels_last(network.to(device=device, dtype=dtype)).eval().requires_grad_(False)


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
    """Load what ``plan`` needs of a model and build the upscaler. Raises WeightsError if weights are not right.

    ``detail`` is how far a pixel path goes from faithful (0) to detailed (1).
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
    timer: StageTimer = untimed,
    speedups: Speedups = Speedups(),
) -> TextToVideo:
    """Load what making a video needs; ``scale`` 1 stays at the base size, ``low_frames`` asks for those frames too.

    ``long`` takes the generator's long variant. Raises WeightsError if weights are not right.
    """
    part = "long_generator" if long else "generator"
    config = profile.long_generator if long else profile.generator
    if config is None:
        raise UsageError(f"{profile.name} cannot generate; choose another model with --model")
    dtype_of = stage_precisions(profile, precision, device)
    in_fp8 = fp8_parts(precision)
    dtype, fp8 = dtype_of("generator"), "generator" in in_fp8
    generator = shelf.take(profile, part, config, device=device, dtype=dtype, fp8=fp8)
    refiner = low_decoder = None
    if scale > 1:
        profile = profile.at_scale(scale)
    if scale > 1 and not profile.refines_latents:
        refiner = _pixel_refiner(shelf, profile, device, dtype_of, timer, speedups, detail=0.0)
    elif scale > 1:
        refiner = _refiner(shelf, profile, device, dtype_of, in_fp8, decode_latents, timer, speedups)
    if low_frames or scale == 1 or not profile.refines_latents:
        low_decoder = take_base_decoder(shelf, profile, device=device, precision=precision)
    assert isinstance(generator, Generator)
    # A parked generator changes its addresses.
    generator.graphs = EAGER if park is not None else speedups.new_graphs(device)
    lanes = cuda_lanes(device) if speedups.lanes and device.type == "cuda" and park is None else None
    return TextToVideo(
        profile, plan, generator, refiner=refiner, low_decoder=low_decoder, park=park, timer=timer, lanes=lanes
    )


def take_base_decoder(shelf: Shelf, profile: Profile, *, device: torch.device, precision: str) -> Decoder:
    """Return what makes frames of low-resolution latents. Raises WeightsError if its weights are not right."""
    part, dtype_of = profile.base_decoder_part, stage_precisions(profile, precision, device)
    decoder = shelf.take(profile, part, profile.base_decoder, device=device, dtype=dtype_of("decoder"))
    assert isinstance(decoder, Decoder)
    return decoder


def _entry(weights: str) -> WeightEntry:
    return read_manifest()[weights]


def _members(prefix: str) -> list[str]:
    return [name for name in read_manifest() if name == prefix or name.startswith(f"{prefix}/")]


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
    def take(part: str, config: Config) -> nn.Module:
        return shelf.take(profile, part, config, device=device, dtype=dtype_of(part), fp8=part in in_fp8)

    upsampling, decoding = profile.latent_stages
    upsampler = take("upsampler", upsampling)
    sr_dit = take("sr_dit", profile.sr_dit) if profile.sr_dit else None
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
    """Return the pixel path with its faithful weights (``detail`` 0), those that add detail (1), or weights between."""
    config, dtype = profile.pixels, dtype_of("pixels")
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
        path = PixelPath(config).to(device)
        path.load_state_dict(between)
        path = to_channels_last(path.to(dtype)).eval().requires_grad_(False)
        assert isinstance(path, PixelPath)
    return PixelRefiner(profile, path, timer=timer, graphs=speedups.new_graphs(device))


def precision_name(profile: Profile, name: str, device: torch.device) -> str:
    """Return the name of the precision that the stages of an upscale run in; ``mixed`` where they
    differ, but for fp8."""
    if name == "fp8":
        return name
    dtype_of = stage_precisions(profile, name, device)
    parts = ("pixels",) if profile.pixels is not None else ("encoder", "upsampler", "sr_dit", "decoder")
    dtypes = {dtype_of(part) for part in parts}
    names = [word for word, dtype in _DTYPES.items() if dtype in dtypes]
    return names[0] if len(names) == 1 else "mixed"


def _own_part(network: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors under the network's top-level names; a file may hold a coder's other half next to them."""
    own = {name.split(".")[0] for name in network.state_dict()}
    halves = {"encoder", "decoder", "conv1", "conv2"}
    return {n: x for n, x in tensors.items() if n.split(".")[0] in own or n.split(".")[0] not in halves}


def _randomise(network: nn.Module, name: str) -> None:
    """Return every parameter seeded random values of a size that keeps activations of order one."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little") >> 1
    generator = torch.Generator().manual_seed(seed)
    for path, parameter in network.named_parameters():
        values = torch.randn(parameter.shape, generator=generator)
        if path.endswith("bias"):
            values = 0.1 * values
        elif parameter.numel() == parameter.shape[0]:  # the factors of a norm
            values = 1 + 0.1 * values
        else:
            values = values * (0.9 / parameter[0].numel() ** 0.5)
        parameter.data.copy_(values)
    if isinstance(network, Decoder):  # so that pictures are neither black nor flat
        last = [layer for layer in network.decoder if isinstance(layer, nn.Conv2d)][-1]
        assert last.bias is not None
        last.weight.data.mul_(3)
        last.bias.data.fill_(0.5)


def _cpu_has_fast_bf16() -> bool:
    able = torch.cpu.get_capabilities()
    if able.get("amx_bf16", False):
        return True
    cpuinfo = Path("/proc/cpuinfo")
    is_amd = cpuinfo.exists() and "AuthenticAMD" in cpuinfo.read_text(errors="replace")
    return is_amd and bool(able.get("avx512_bf16", False))
