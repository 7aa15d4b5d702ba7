"""`lite` with a stage left out, or with other weights: what a measurement needs and the command does not offer."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from ultraflash_cli.engine.profiles import LITE, Profile
from ultraflash_cli.errors import UsageError, WeightsError
from ultraflash_cli.jobs.assemble import Shelf
from ultraflash_cli.jobs.host import keep_freed_memory
from ultraflash_cli.jobs.model import Models
from ultraflash_cli.jobs.preflight import Prepared, UpscaleJob
from ultraflash_cli.jobs.upscale import run
from ultraflash_cli.weights.manifest import read_manifest
from ultraflash_cli.weights.verify import sha256_of

if TYPE_CHECKING:
    import torch

    from ultraflash_cli.engine.memory import MemoryPlan

__all__ = ["REMOVABLE", "Variant"]

REMOVABLE = ("sr_dit",)
"""Stages without which a cascade still works."""

UPSCALING = ("encoder", "upsampler", "sr_dit", "decoder")
"""The parts of a profile that upscale."""

OPTIONS = {"color": str, "cuts": str, "device": str, "precision": str, "seed": int, "strength": float, "threads": int}
"""Options of `ultraflash upscale` that a variant takes, too."""


@dataclass(frozen=True)
class Variant:
    """How to run ``lite`` otherwise."""

    without: tuple[str, ...] = ()
    """Stages left out, of ``REMOVABLE``."""
    weights: Path | None = None
    """A folder with files named as those of ``ultraflash_cli/weights/lite``; None for those."""

    def hashes(self, *, scale: int) -> dict[str, str]:
        """Return the sha256 of every file it runs at ``scale``, by the weights' names. Raises WeightsError."""
        profile = LITE.at_scale(scale)
        parts = [part for part, _ in profile.weights if part in UPSCALING and part not in self.without]
        return {name: sha256_of(self.path(name)) for name in map(profile.weight_of, parts)}

    def path(self, name: str) -> Path:
        """Return the file of weights of ``lite``. Raises WeightsError where the folder lacks it."""
        path = read_manifest()[name].path
        if self.weights is not None:
            path = self.weights / path.name
            if not path.is_file():
                raise WeightsError(f"{path}: no such weights; the folder has to hold every file of lite that is used.")
        return path

    def upscale(self, low: Path, output: Path, *, scale: int, options: Sequence[str]) -> None:
        """Write the enlarged clip losslessly to ``output``, as `ultraflash upscale --codec ffv1` does."""
        keep_freed_memory()
        chosen = {}
        for name, value in zip(options[::2], options[1::2], strict=True):
            if name.removeprefix("--") not in OPTIONS:
                raise UsageError(f"{name}: with --without and --weights the options are {', '.join(sorted(OPTIONS))}")
            chosen[name.removeprefix("--")] = OPTIONS[name.removeprefix("--")](value)
        job = UpscaleJob(source=low, output=output, res=f"{scale}x", model=LITE.name, codec="ffv1", resume=False)
        run(replace(job, overwrite=True, **chosen), lambda _event: None, build=_Models(self).upscaler)


class _Models(Models):
    """Builds the variant where the command would build ``lite``."""

    def __init__(self, variant: Variant) -> None:
        super().__init__()
        self.variant = variant

    @cached_property
    def shelf(self) -> Shelf:
        return _Shelf(self.variant)

    def plan_upscaler(self, prepared: Prepared) -> "tuple[torch.device, Profile, MemoryPlan]":
        device, profile, memory = super().plan_upscaler(prepared)
        return device, replace(profile, **dict.fromkeys(self.variant.without)), memory

    def _shelf(self, store: Path | None) -> Shelf:
        return self.shelf


class _Shelf(Shelf):
    """Takes the weights of ``lite`` from the variant's folder."""

    def __init__(self, variant: Variant) -> None:
        super().__init__()
        self.variant = variant

    def path(self, weights: str) -> Path:
        return self.variant.path(weights)
