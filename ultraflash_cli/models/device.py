"""Choice of a model's device and precision."""

from collections.abc import Callable
from pathlib import Path

import torch

from ultraflash_cli.engine.profiles import Profile
from ultraflash_cli.errors import DeviceError, UsageError
from ultraflash_cli.host import check_pair
from ultraflash_cli.models.backend import BACKENDS, MODELS
from ultraflash_kernels.fp8_linear import fp8_refusal

__all__ = [
    "choose_device",
    "choose_devices",
    "choose_precision",
    "fp8_parts",
    "precision_name",
    "precision_warnings",
    "stage_precisions",
]

_NAMES = "auto, cpu, cuda[:i], mps or xpu[:i]"
_IN_8_BITS = frozenset({"generator", "sr_dit"})
"""Parts that ``--precision fp8`` converts to 8 bits."""
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(name: str, *, model: str | None = None) -> torch.device:
    """Turn ``auto``, ``cpu``, ``cuda[:i]``, ``mps`` or ``xpu[:i]`` into a device and make it the current one.

    ``model`` is the model of an upscale; without one, only CPUs and CUDA are allowed.
    ``auto`` is CUDA or the CPU. On a CUDA device float32 is IEEE float32 from then on:
    TF32, torch's default for convolutions, keeps only 10 bits of the mantissa. Raises
    DeviceError for a device that is not available or does not support the model.
    """
    device = _named_device(name, model)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    return device


def choose_devices(name: str) -> tuple[torch.device, ...]:
    """Turn ``--device`` of a generation into its device, or into two: one for text encoder and generator, which becomes
    the current one, and one for everything after them.

    Raises UsageError for a pair that is none, and the errors of ``choose_device``.
    """
    if "," not in name:
        return (choose_device(name),)
    check_pair(name)
    second, first = (choose_device(each) for each in reversed(name.split(",")))
    return tuple(torch.device(each.type, each.index or 0) for each in (first, second))


def _named_device(name: str, model: str | None) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if "," in name:
        raise UsageError(f"--device {name}: only a clip to generate can use two devices in one process; name one")
    kind, _, number = name.partition(":")
    if kind in BACKENDS and (number.isdigit() or not number):
        return _backend_device(name, kind, int(number or 0), model)
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"--device must be {_NAMES}, got {name!r}") from error
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"--device must be {_NAMES}, got {name!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise DeviceError(f"{name}: {torch.cuda.device_count()} usable CUDA devices on this machine; try --device cpu")
    return device


def _backend_device(name: str, kind: str, number: int, model: str | None) -> torch.device:
    backend = BACKENDS[kind]
    if model not in MODELS:
        raise DeviceError(f"{name}: runs `upscale` with lite only; use --model lite, or --device cpu")
    if number >= backend.count():
        raise DeviceError(f"{name}: {backend.count()} usable {backend.title}s on this machine; try --device cpu")
    return backend.device(number)


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """Turn ``auto``, ``fp32``, ``bf16`` or ``fp8`` into the dtype of everything not in
    8 bits. ``auto`` is bf16 on a CUDA device and on CPUs with faster bf16 convolutions
    (AMX, or AMD with avx512_bf16; Intel without AMX runs them at half the speed of
    float32), else float32. Raises DeviceError for ``fp8`` if ``device`` does not
    support 8-bit matmuls.
    """
    if name == "auto":
        if device.type == "cuda":
            fast = torch.cuda.is_bf16_supported()
        else:
            fast = device == torch.device("cpu") and _cpu_has_fast_bf16()
        return torch.bfloat16 if fast else torch.float32
    if name == "fp8" and (refusal := fp8_refusal(device)):
        raise DeviceError(f"--precision fp8 cannot run here: {refusal.removesuffix('.')}; use --precision auto")
    try:
        return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp8": torch.bfloat16}[name]
    except KeyError as error:
        raise UsageError(f"--precision must be auto, fp32, bf16 or fp8, got {name!r}") from error


def stage_precisions(profile: Profile, name: str, device: torch.device) -> Callable[[str], torch.dtype]:
    """Return the function from parts to dtypes: the profile's own on a GPU under
    ``auto`` and ``fp8``, else one dtype for all. The full autoencoder stays in float32
    unless another precision is requested. Under ``fp8`` the transformers are bfloat16
    except for their 8-bit parts (``fp8_parts``).
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
    """Return the parts whose linear layers and attention are converted to 8 bits."""
    return _IN_8_BITS if precision == "fp8" else frozenset()


def precision_warnings(precision: str) -> list[str]:
    """Return warnings about a precision that changes pixels."""
    if precision != "fp8":
        return []
    return ["--precision fp8 rounds the transformers' weights and inputs to 8 bits, which changes pixels"]


def precision_name(profile: Profile, name: str, device: torch.device) -> str:
    """Return the name of the precision of an upscale's stages; ``mixed`` if they
    differ, except under fp8."""
    if name == "fp8":
        return name
    dtype_of = stage_precisions(profile, name, device)
    parts = ("pixels",) if profile.pixels is not None else ("encoder", "upsampler", "sr_dit", "decoder")
    dtypes = {dtype_of(part) for part in parts}
    names = [word for word, dtype in _DTYPES.items() if dtype in dtypes]
    return names[0] if len(names) == 1 else "mixed"


def _cpu_has_fast_bf16() -> bool:
    able = torch.cpu.get_capabilities()
    if able.get("amx_bf16", False):
        return True
    cpuinfo = Path("/proc/cpuinfo")
    is_amd = cpuinfo.exists() and "AuthenticAMD" in cpuinfo.read_text(errors="replace")
    return is_amd and bool(able.get("avx512_bf16", False))
