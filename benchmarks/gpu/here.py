"""Device, sizes and timing that the sections of the first run on a GPU share."""

import time
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from benchmarks.part import Setting
from ultraflash_cli.bench.models import MeasuredModel

__all__ = ["Here", "Impl", "off"]

Impl = Literal["triton", "reference"]


class Here:
    """Device and size of a section."""

    def __init__(self, *, dry: bool) -> None:
        self.dry = dry
        self.device = torch.device("cpu" if dry else "cuda")
        self.dtype = torch.float32 if dry else torch.bfloat16
        self.fast: Impl = "reference" if dry else "triton"

    def median_ms(self, call: Callable[[], object], rounds: int = 10) -> float:
        """Return the median time of a call."""
        if self.dry:
            begun_s = time.perf_counter()
            call()
            return 1000 * (time.perf_counter() - begun_s)
        for _ in range(3):
            call()
        pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(rounds)]
        for start, stop in pairs:
            start.record()
            call()
            stop.record()
        torch.cuda.synchronize()
        return sorted(start.elapsed_time(stop) for start, stop in pairs)[rounds // 2]

    def tried(self, found: dict[str, Any], name: str, call: Callable[[], Any]) -> None:
        """Add the result of a call, or the reason for its failure."""
        try:
            found[name] = call()
            if not self.dry:
                torch.cuda.synchronize()
        except Exception as error:
            found[name] = f"failed: {error!r}"[:300]
        print(name, found[name], flush=True)

    def untrained(self, **changes: Any) -> MeasuredModel:
        """Return the model with random weights."""
        case = Setting(device=self.device, tiny=self.dry).case(**{"graphs": False, "lanes": False, **changes})
        return MeasuredModel(case)


def off(got: Tensor, expected: Tensor) -> float:
    """Return the norm of the difference relative to the norm of the expected tensor."""
    return float((got.double() - expected.double()).norm() / expected.double().norm())
