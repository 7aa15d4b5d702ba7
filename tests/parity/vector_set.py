"""A golden vector set, and the results of comparing with it."""

import json
import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file
from torch import Tensor

__all__ = ["SUM_TOLERANCE", "TOLERANCE", "SetResult", "VectorSet"]

TOLERANCE = 2e-5
"""Largest absolute difference of float32 values of order one."""
SUM_TOLERANCE = 1e-6
"""Largest relative difference of the checksums of procedural weights."""


@dataclass
class VectorSet:
    """One folder (or JSON file) of vectors, and the results of the comparisons so
    far."""

    path: Path
    max_abs: float = 0.0
    masks_exact: bool | None = None
    failures: list[str] = field(default_factory=list[str])

    @cached_property
    def config(self) -> dict[str, Any]:
        """Sizes and settings."""
        return json.loads((self.path / "config.json").read_text())

    @cached_property
    def io(self) -> dict[str, Tensor]:
        """Inputs, outputs and selected internal state."""
        return load_file(self.path / "io.safetensors")

    def read_json(self, name: str) -> Any:
        """Return the content of a JSON file of the set; a set that is a single file is
        read regardless of the name."""
        return json.loads((self.path if self.path.is_file() else self.path / name).read_text())

    def weights(self) -> dict[str, Tensor]:
        """Return the stored weights."""
        return load_file(self.path / "weights.safetensors")

    def compare(self, name: str, got: Tensor, *, tolerance: float = TOLERANCE, mean: float | None = None) -> None:
        """Compare values with the stored tensor of this name: the largest difference, and the mean if one is given."""
        want = self.io[name]
        if got.shape != want.shape:
            self.failures.append(f"{name} is {list(got.shape)}, expected {list(want.shape)}")
            return
        differences = (got.double() - want.double()).abs()
        difference = differences.max().item()
        self.max_abs = difference if math.isnan(difference) else max(self.max_abs, difference)
        if not difference <= tolerance:
            self.failures.append(f"{name} differs by {difference:.3g}")
        if mean is not None and not differences.mean().item() <= mean:
            self.failures.append(f"{name} differs by {differences.mean().item():.3g} in the mean")

    def compare_mask(self, name: str, got: Tensor) -> None:
        """Compare a boolean mask with the stored 0/1 tensor of this name."""
        self.expect(name, torch.equal(got.to(torch.uint8), self.io[name]), is_mask=True)

    def expect(self, what: str, holds: bool, *, is_mask: bool = False) -> None:
        """Record a failure unless ``holds``."""
        if is_mask:
            self.masks_exact = holds and self.masks_exact is not False
        if not holds:
            self.failures.append(f"{what} differs")


@dataclass(frozen=True)
class SetResult:
    """One line of the report."""

    name: str
    status: Literal["ok", "FAIL", "skip"]
    max_abs: float = math.nan
    masks_exact: bool | None = None
    reason: str = ""

    def __str__(self) -> str:
        masks = "-" if self.masks_exact is None else str(self.masks_exact)
        return f"{self.name} {self.max_abs:.3g} {masks} {self.status}"
