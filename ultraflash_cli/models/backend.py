"""Devices besides CPUs and CUDA: their torch names, memory and supported models.
Neither has been tested on real hardware by this project, and both are known to fail
silently: ``models.parity`` compares each with the CPU before it is used. AMD GPUs are
not in this list; torch's ROCm build presents them as ``cuda``.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

__all__ = ["BACKENDS", "MODELS", "Backend", "backend_of", "place"]

MODELS = frozenset({"lite", "tiny-lite"})
"""Models supported on these devices: the built-in upscaler, and its small substitute
for tests."""


def _moved(network: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    return network.to(device=device, dtype=dtype)


@dataclass(frozen=True, kw_only=True)
class Backend:
    """A kind of device."""

    name: str
    """Name for ``--device``."""
    title: str
    """Name in messages."""
    count: Callable[[], int]
    """Returns the number of such devices."""
    device: Callable[[int], torch.device]
    """Returns the device with a given index."""
    free_bytes: Callable[[torch.device], int | None]
    """Returns the free memory for a job in bytes; None if unknown."""
    place: Callable[[nn.Module, torch.device, torch.dtype], nn.Module] = _moved
    """Moves a network to the device."""


def _mps_free(_device: torch.device) -> int:
    return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()


def _xpu_free(device: torch.device) -> int:
    return torch.xpu.mem_get_info(device)[0]


BACKENDS: dict[str, Backend] = {
    "mps": Backend(
        name="mps",
        title="Apple GPU",
        count=lambda: int(torch.backends.mps.is_available()),
        device=lambda _number: torch.device("mps"),
        free_bytes=_mps_free,
    ),
    "xpu": Backend(
        name="xpu",
        title="Intel GPU",
        count=lambda: torch.xpu.device_count(),
        device=lambda number: torch.device("xpu", number),
        free_bytes=_xpu_free,
    ),
}
"""Backends by name."""


def backend_of(device: torch.device) -> Backend | None:
    """Return the backend that a device belongs to; None for CPUs and CUDA."""
    for backend in BACKENDS.values():
        if any(device == backend.device(number) for number in range(backend.count())):
            return backend
    return None


def place(network: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Move a network to a device of any kind."""
    backend = backend_of(device)
    return _moved(network, device, dtype) if backend is None else backend.place(network, device, dtype)
