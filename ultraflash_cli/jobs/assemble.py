"""Names to a built cascade: the one place where engine and weights meet."""

from pathlib import Path

import torch
from torch import nn

from ultraflash_cli.engine.cascade import Cascade, StageTimer
from ultraflash_cli.engine.layers.memory_block import to_channels_last
from ultraflash_cli.engine.plan import UpscalePlan
from ultraflash_cli.engine.profiles import PROFILES
from ultraflash_cli.engine.stages.decoder import Decoder
from ultraflash_cli.engine.stages.encoder import Encoder
from ultraflash_cli.engine.stages.latent_upsampler import LatentUpsampler
from ultraflash_cli.engine.stages.sr_dit import SrDit
from ultraflash_cli.engine.upscaler import Upscaler
from ultraflash_cli.errors import DeviceError, UsageError
from ultraflash_cli.weights.load import load_strictly, read_tensors
from ultraflash_cli.weights.manifest import read_manifest
from ultraflash_cli.weights.verify import verify

__all__ = ["build_upscaler", "choose_device", "choose_precision", "weight_hashes"]


def choose_device(name: str) -> torch.device:
    """Turn ``auto``, ``cpu`` or ``cuda[:i]`` into a device. Raises DeviceError for one that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"--device is auto, cpu or cuda[:i], not {name!r}.") from error
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"--device is auto, cpu or cuda[:i], not {name!r}.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise DeviceError(f"{name}: {torch.cuda.device_count()} CUDA devices are usable here. Try --device cpu.")
    return device


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """Turn ``auto``, ``fp32`` or ``bf16`` into a dtype.

    ``auto`` is bf16 on a GPU and on CPUs whose bf16 convolutions are the faster ones (AMX, or AMD with
    avx512_bf16; Intel without AMX runs them at half the speed of float32), else float32.
    """
    if name == "auto":
        fast = _cpu_has_fast_bf16() if device.type == "cpu" else torch.cuda.is_bf16_supported()
        return torch.bfloat16 if fast else torch.float32
    try:
        return {"fp32": torch.float32, "bf16": torch.bfloat16}[name]
    except KeyError as error:
        raise UsageError(f"--precision is auto, fp32 or bf16, not {name!r}.") from error


def weight_hashes(model: str) -> dict[str, str]:
    """Return the sha256 of every weight file of a model, by name."""
    prefix = PROFILES[model].weights + "/"
    return {name: entry.sha256 for name, entry in read_manifest().items() if name.startswith(prefix)}


def build_upscaler(
    model: str,
    plan: UpscalePlan,
    *,
    device: torch.device,
    dtype: torch.dtype,
    strength: float = 1.0,
    color: str = "match",
    timer: StageTimer | None = None,
) -> Upscaler:
    """Load the weights that ``plan`` needs and build the upscaler. Raises WeightsError where they are not right."""
    if model not in PROFILES:
        raise UsageError(f"no model is called {model!r}; there are {', '.join(PROFILES)}.")
    profile = PROFILES[model].at_scale(plan.scale)

    def loaded(network: nn.Module, weights: str) -> None:
        load_strictly(network, read_tensors(_verified(f"{profile.weights}/{weights}")), name=weights)
        to_channels_last(network.to(device=device, dtype=dtype)).eval().requires_grad_(False)

    encoder, upsampler = Encoder(profile.encoder), LatentUpsampler(profile.upsampler)
    decoder = Decoder(profile.decoder)
    sr_dit = SrDit(profile.sr_dit) if profile.sr_dit else None
    loaded(encoder, "encoder")
    loaded(upsampler, f"upsampler_x{plan.scale}")
    loaded(decoder, "decoder")
    if sr_dit is not None:
        loaded(sr_dit, "sr_dit")
    cascade = Cascade(profile, encoder, upsampler, sr_dit, decoder, timer=timer)
    return Upscaler(cascade, plan, strength=strength, color=color)


def _verified(name: str) -> Path:
    return verify(read_manifest()[name])


def _cpu_has_fast_bf16() -> bool:
    able = torch.cpu.get_capabilities()
    if able.get("amx_bf16", False):
        return True
    cpuinfo = Path("/proc/cpuinfo")
    is_amd = cpuinfo.exists() and "AuthenticAMD" in cpuinfo.read_text(errors="replace")
    return is_amd and bool(able.get("avx512_bf16", False))
