"""Measure the defects of old footage, and decide how the clip is read."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal, Protocol

from ultraflash_cli.errors import UsageError
from ultraflash_cli.video.asked import read_crop, read_shift
from ultraflash_cli.video.borders import BorderMeter
from ultraflash_cli.video.chroma_shift import ChromaMeter, ChromaShift
from ultraflash_cli.video.color import Picture
from ultraflash_cli.video.crop import Crop
from ultraflash_cli.video.grain import Grain, GrainMeter
from ultraflash_cli.video.probe import ClipInfo
from ultraflash_cli.video.samples import sampled_runs

__all__ = ["GrainChoice", "Mending", "about_scan", "mend", "mended"]

GrainChoice = Literal["none", "keep", "remove"]
"""none: the picture is unchanged. keep: grain is removed before the model, and similar
new grain is added afterwards. remove: grain is removed."""

_LEAST_SIDE_PX = 16


class _Meter(Protocol):
    def push(self, pictures: Sequence[Picture]) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Mending:
    """How a clip is to be read, and the measurements behind it."""

    info: ClipInfo
    crop: Crop | None = None
    """Crop in addition to that of the container."""
    head_lines: int = 0
    """Number of lines cropped at the bottom because of a tape's head switching."""
    chroma_shift: ChromaShift | None = None
    grain: Grain | None = None
    grain_is_kept: bool = False
    notes: tuple[str, ...] = ()
    """A sentence on each decision."""

    def facts(self) -> dict[str, object]:
        """Return findings and decisions as JSON values."""
        grain = self.grain
        return about_scan(self.info) | {
            "crop": asdict(self.crop) if self.crop else None,
            "head_switching_lines": self.head_lines,
            "chroma_shift": list(self.chroma_shift) if self.chroma_shift else None,
            "grain": about_grain(grain) | {"kept": self.grain_is_kept} if grain else None,
        }

    def describe(self) -> list[tuple[str, str]]:
        """Return the findings as pairs of a name and a description."""
        lines: list[tuple[str, str]] = []
        if self.info.repeated_field is not None:
            lines.append(("telecine", "soft: frames are flagged to last two or three fields"))
        if self.crop is not None:
            lines.append(("borders", f"{_sides(self.crop, self.head_lines)}; --crop auto cuts them off"))
        if self.chroma_shift is not None:
            lines.append(("colours", f"shifted {_ways(self.chroma_shift)}; --chroma-shift auto moves them back"))
        if self.grain is not None:
            grain = f"{self.grain.strength:.1f} levels of 255, about {self.grain.size_px:.1f} px wide"
            lines.append(("grain", f"{grain}; --grain keep preserves it"))
        return lines


def about_scan(info: ClipInfo) -> dict[str, object]:
    """Return the information about a clip's fields as JSON values."""
    return {
        "scan": info.scan,
        "first_field": info.first_field,
        "soft_telecine": info.repeated_field is not None,
        "frames": "film" if info.film else "fields" if info.fields else "all",
    }


def about_grain(grain: Grain) -> dict[str, object]:
    """Return the human-readable measures of a clip's grain."""
    return {
        "strength": round(grain.strength, 2),
        "size_px": round(grain.size_px, 2),
        "levels": list(grain.levels),
        "luma": list(grain.luma),
        "chroma": list(grain.chroma),
    }


def mended(info: ClipInfo) -> Mending:
    """Measure all defects for display, without changing how the clip is read."""
    borders, chroma, grain = BorderMeter(), ChromaMeter(), GrainMeter()
    _measure(info, (borders, chroma, grain), threads=1)
    crop = borders.result()
    return Mending(
        info=info,
        crop=crop,
        head_lines=borders.head_lines if crop else 0,
        chroma_shift=chroma.result(),
        grain=grain.result(),
    )


def mend(
    info: ClipInfo, *, crop: str = "none", chroma_shift: str = "none", grain: GrainChoice = "none", threads: int = 1
) -> Mending:
    """Decide how a clip is read, by measurement if requested; the result depends only
    on the file.

    ``crop`` and ``chroma_shift`` are as ``asked`` reads them. Raises UsageError for a crop that leaves nothing.
    """
    notes: list[str] = []
    head_lines = 0
    cut: Crop | None = None
    if crop == "auto":
        borders = BorderMeter()
        _measure(info, (borders,), threads)
        cut = borders.result()
        head_lines = borders.head_lines if cut else 0
        info = _cropped(info, cut) if cut else info
        notes.append(_about_crop(info, cut, head_lines))
    elif (asked := read_crop(crop)) is not None and any(asked):
        cut = Crop(left_px=asked[0], top_px=asked[1], right_px=asked[2], bottom_px=asked[3])
        info = _cropped(info, cut)

    shift = read_shift(chroma_shift)
    chroma, grains = ChromaMeter(), GrainMeter()
    wanted: list[_Meter] = [chroma] if chroma_shift == "auto" else []
    wanted += [grains] if grain != "none" else []
    _measure(info, wanted, threads)
    if chroma_shift == "auto":
        shift = chroma.result()
        notes.append(_about_shift(shift))
    if shift is not None and any(shift):
        info = replace(info, chroma_shift=shift)
    found = grains.result() if grain != "none" else None
    if grain != "none":
        notes.append(_about_grain(found, grain))
    if found is not None:
        info = replace(info, denoise=found.removal)
    return Mending(
        info=info,
        crop=cut,
        head_lines=head_lines,
        chroma_shift=info.chroma_shift,
        grain=found,
        grain_is_kept=found is not None and grain == "keep",
        notes=tuple(notes),
    )


def _measure(info: ClipInfo, meters: Iterable[_Meter], threads: int) -> None:
    meters = tuple(meters)
    for pictures in sampled_runs(info, threads=threads) if meters else ():
        for meter in meters:
            meter.push(pictures)


def _cropped(info: ClipInfo, cut: Crop) -> ClipInfo:
    width_px, height_px = info.width_px - cut.width_px, info.height_px - cut.height_px
    if min(width_px, height_px) < _LEAST_SIDE_PX:
        raise UsageError(
            f"--crop leaves {width_px}x{height_px} of {info.width_px}x{info.height_px}, expected at least "
            f"{_LEAST_SIDE_PX} pixels a side; crop less"
        )
    before = info.crop or Crop()
    whole = Crop(
        left_px=before.left_px + cut.left_px,
        top_px=before.top_px + cut.top_px,
        right_px=before.right_px + cut.right_px,
        bottom_px=before.bottom_px + cut.bottom_px,
    )
    return replace(info, crop=whole, width_px=width_px, height_px=height_px)


def _about_crop(info: ClipInfo, cut: Crop | None, head_lines: int) -> str:
    if cut is None:
        return "--crop auto found neither borders nor head-switching lines; nothing is cropped"
    cuts = _sides(cut, head_lines)
    return f"cropped to {info.width_px}x{info.height_px}: {cuts}"


def _sides(cut: Crop, head_lines: int) -> str:
    sides = {"left": cut.left_px, "top": cut.top_px, "right": cut.right_px, "bottom": cut.bottom_px}
    cuts = ", ".join(f"{size} px {side}" for side, size in sides.items() if size)
    return cuts + (f" ({head_lines} lines of head switching)" if head_lines else "")


def _ways(shift: ChromaShift) -> str:
    names = (("left", "right"), ("up", "down"))
    ways = [f"{abs(size):g} px {words[size > 0]}" for size, words in zip(shift, names, strict=True) if size]
    return " and ".join(ways)


def _about_shift(shift: ChromaShift | None) -> str:
    if shift is None:
        return "--chroma-shift auto found no chroma shift, or too few edges to measure one; nothing is moved"
    return f"the colours are shifted {_ways(shift)}; moved back"


def _about_grain(grain: Grain | None, choice: GrainChoice) -> str:
    if grain is None:
        return f"--grain {choice} found hardly any grain; none is removed or added"
    then = "similar new grain is added to the result" if choice == "keep" else "none is added to the result"
    return f"grain of {grain.strength:.1f} levels of 255 is removed before the model; {then}"
