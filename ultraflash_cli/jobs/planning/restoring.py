"""Repairs of old recordings, and the handling of non-square pixels."""

from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING

from ultraflash_cli.engine.plan import UpscalePlan
from ultraflash_cli.errors import ConfigError
from ultraflash_cli.video.asked import read_crop, read_shift

if TYPE_CHECKING:
    from ultraflash_cli.jobs.planning.upscale import UpscaleJob
    from ultraflash_cli.video.mending import Mending
    from ultraflash_cli.video.probe import ClipInfo

__all__ = ["GRAINS", "check_restoring", "reading_of", "shape_warning", "with_shape"]

GRAINS = ("none", "keep", "remove")
"""Values of `--grain`."""
_MEASURING_THREADS = 4
_SAME_SHAPE = Fraction(102, 100)
"""Maximum ratio of aspect ratios that count as equal, as sides are rounded to even
numbers."""


def check_restoring(*, crop: str, chroma_shift: str, grain: str) -> None:
    """Raise ConfigError for an invalid value of these options."""
    read_crop(crop)
    read_shift(chroma_shift)
    if grain not in GRAINS:
        raise ConfigError(f"--grain must be one of {', '.join(GRAINS)}, got {grain!r}")


def reading_of(job: "UpscaleJob", info: "ClipInfo", *, threads: int) -> "Mending":
    """Decide how a job's clip is read, by measurement if requested."""
    from ultraflash_cli.video.deinterlacing import with_deinterlacing
    from ultraflash_cli.video.mending import mend

    return mend(
        with_deinterlacing(info, job.deinterlace),
        crop=job.crop,
        chroma_shift=job.chroma_shift,
        grain=job.grain,
        threads=min(_MEASURING_THREADS, threads),
    )


def with_shape(info: "ClipInfo", plan: UpscalePlan) -> "ClipInfo":
    """Return the clip with square pixels if the target has the clip's display aspect
    ratio."""
    shown = Fraction(info.width_px, info.height_px) * info.sample_aspect_ratio
    is_as_shown = _alike(shown, Fraction(plan.target[1], plan.target[0]))
    is_stretched = not _alike(Fraction(info.width_px, info.height_px), Fraction(plan.target[1], plan.target[0]))
    return replace(info, sample_aspect_ratio=Fraction(1)) if is_as_shown and is_stretched else info


def shape_warning(info: "ClipInfo", plan: UpscalePlan) -> str | None:
    """Return the warning that the target's shape differs from the clip's."""
    if _alike(Fraction(info.width_px, info.height_px), Fraction(plan.target[1], plan.target[0])):
        return None
    return (
        "the picture will be stretched: the target does not have the shape of the "
        f"{info.display_width_px}x{info.display_height_px} of the source"
    )


def _alike(one: Fraction, other: Fraction) -> bool:
    return max(one, other) <= _SAME_SHAPE * min(one, other)
