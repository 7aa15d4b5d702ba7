"""`lite` with different weights or a different degree of detail, as a separate
method."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from ultraflash_cli.engine.profiles import LITE
from ultraflash_cli.errors import UsageError, WeightsError
from ultraflash_cli.host import keep_freed_memory
from ultraflash_cli.jobs.planning.upscale import UpscaleJob
from ultraflash_cli.jobs.running.loader import Models
from ultraflash_cli.jobs.running.upscale import run
from ultraflash_cli.models.shelf import Shelf
from ultraflash_cli.weights.manifest import read_manifest
from ultraflash_cli.weights.verify import sha256_of

__all__ = ["Variant"]

UPSCALING = ("pixels", "pixels_detail")
"""Parts of a profile that upscale."""

OPTIONS = {"color": str, "cuts": str, "device": str, "precision": str, "seed": int, "strength": float, "threads": int}
"""Options of `ultraflash upscale` that a variant also accepts."""


@dataclass(frozen=True)
class Variant:
    """A variant of ``lite``."""

    detail: float | None = None
    """Value of ``--detail``."""
    weights: Path | None = None
    """Folder with the same file names as ``ultraflash_cli/weights/lite``; None for that
    folder."""

    def hashes(self, *, scale: int) -> dict[str, str]:
        """Return the sha256 of every file it runs at ``scale``, by the weights' names. Raises WeightsError."""
        profile = LITE.at_scale(scale)
        parts = [part for part, _ in profile.weights if part in UPSCALING]
        return {name: sha256_of(self.path(name)) for name in map(profile.weight_of, parts)}

    def path(self, name: str) -> Path:
        """Return the file of weights of ``lite``. Raises WeightsError if the folder
        lacks it."""
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
                raise UsageError(f"{name}: with --details and --weights the options are {', '.join(sorted(OPTIONS))}")
            chosen[name.removeprefix("--")] = OPTIONS[name.removeprefix("--")](value)
        job = UpscaleJob(
            source=low,
            output=output,
            res=f"{scale}x",
            model=LITE.name,
            detail=self.detail,
            codec="ffv1",
            resume=False,
        )
        run(replace(job, overwrite=True, **chosen), lambda _event: None, build=_Models(self).upscaler)


class _Models(Models):
    """Builds the variant instead of ``lite``."""

    def __init__(self, variant: Variant) -> None:
        super().__init__()
        self.variant = variant

    @cached_property
    def shelf(self) -> Shelf:
        return _Shelf(self.variant)

    def _shelf(self, store: Path | None) -> Shelf:
        return self.shelf


class _Shelf(Shelf):
    """Loads the weights of ``lite`` from the variant's folder."""

    def __init__(self, variant: Variant) -> None:
        super().__init__()
        self.variant = variant

    def path(self, weights: str) -> Path:
        return self.variant.path(weights)
