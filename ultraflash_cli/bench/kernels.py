"""Time every implementation of every operation in ``ultraflash_kernels``, compared with
the device's limits."""

import importlib
import pkgutil
from dataclasses import dataclass

import torch

import ultraflash_kernels
from ultraflash_cli.bench.limits import Limits, measure_limits
from ultraflash_cli.models.device import choose_device
from ultraflash_kernels.measure import Measured, measure

__all__ = ["OPERATIONS", "KernelTime", "measure_kernels", "measure_operation", "rows_of"]

OPERATIONS = tuple(module.name for module in pkgutil.iter_modules(ultraflash_kernels.__path__) if module.ispkg)
"""The names of all operations."""

FAST = ("triton", "hopper", "scaled_mm")
"""Fast implementations, which are compared with the alternatives."""
OTHERS = {"reference": "eager reference", "plain": "bf16 layer", "joined": "published form", "dense": "dense SDPA"} | {
    "flex": "FlexAttention"
}
"""Alternatives to a fast implementation, with their titles."""


@dataclass(frozen=True, kw_only=True)
class KernelTime:
    """Time of one implementation of a case, and its share of the device's limits."""

    name: str
    impl: str
    dtype: str
    seconds: float
    """Median of a call."""
    spread_s: float
    """Distance of the quartiles."""
    flops_per_second: float
    bytes_per_second: float
    """Rate of the minimum traffic."""
    of_product: float
    """Share of the device's matmul rate, 0 to 1."""
    of_copy: float
    """Share of the device's copy rate, 0 to 1."""
    speedups: dict[str, float]
    """Speedups over other implementations of the same case, by name."""


def measure_kernels(device: str, threads: int) -> list[KernelTime]:
    """Time every operation on ``device`` (auto, cpu, cuda[:i]), with ``threads`` CPU
    threads. Returns a row for every case and implementation. Raises UsageError and
    DeviceError for an unavailable device.
    """
    torch.set_num_threads(threads)
    where = choose_device(device)
    limits = measure_limits(where, "bf16" if where.type == "cuda" else "fp32")
    return [row for name in OPERATIONS for row in measure_operation(name, where, limits)]


def measure_operation(name: str, device: torch.device, limits: Limits) -> list[KernelTime]:
    """Time an operation at the sizes that its ``bench.py`` defines for the device."""
    bench = importlib.import_module(f"ultraflash_kernels.{name}.bench")
    with torch.inference_mode():
        found = [measured for case in bench.cases(device) for measured in measure(case, device)]
    return rows_of(found, limits)


def rows_of(found: list[Measured], limits: Limits) -> list[KernelTime]:
    """Compare measurements of implementations with each other and with the limits."""
    rows: list[KernelTime] = []
    for one in found:
        same = [each for each in found if (each.name, each.dtype) == (one.name, one.dtype) and each is not one]
        rivals = {each.impl: each.median_s / one.median_s for each in same if each.impl in OTHERS}
        rows.append(
            KernelTime(
                name=one.name,
                impl=one.impl,
                dtype=one.dtype,
                seconds=one.median_s,
                spread_s=one.spread_s,
                flops_per_second=one.flop_per_s,
                bytes_per_second=one.bytes_per_s,
                of_product=one.flop_per_s / limits.product_flops_per_second,
                of_copy=one.bytes_per_s / limits.copy_bytes_per_second,
                speedups=rivals if one.impl.split(",")[0] in FAST else {},
            )
        )
    return rows
