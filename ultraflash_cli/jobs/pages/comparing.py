"""The comparison page: before and after in selected frames, curves, and crops of the
largest differences."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ultraflash_cli.jobs.pages import page
from ultraflash_cli.jobs.pages.page import filled, webp_url
from ultraflash_cli.metrics.comparison import COMPARED, Comparison
from ultraflash_cli.metrics.ffmpeg import RESIZE, Coding, View, run_ffmpeg

__all__ = ["chosen_frames", "comparison_page"]

_SPREAD = 5
"""Number of evenly spaced frames to show."""
_THUMBS = 90
"""Number of thumbnails shown with the curves."""
_THUMB_PX = 260
_THUMB_QUALITY = 60


@dataclass(frozen=True)
class _Pictures:
    """The pictures of one clip on a page, as WebP."""

    frames: list[bytes]
    thumbs: list[bytes]

    @property
    def size_bytes(self) -> int:
        return sum(map(len, (*self.frames, *self.thumbs)))


def chosen_frames(comparison: Comparison) -> list[int]:
    """Return the frames to show: evenly spaced ones, and those with the largest
    differences."""
    last = comparison.frames - 1
    spread = {round(last * share / (_SPREAD - 1)) for share in range(_SPREAD)}
    return sorted(spread | {crop.frame for crop in comparison.crops})


def comparison_page(
    comparison: Comparison,
    *,
    views: Sequence[View],
    codings: Sequence[Coding],
    facts: Sequence[Mapping[str, str]],
    title: str,
    size_wh: tuple[int, int],
    crop_px: int,
    times_s: Sequence[float],
    made: Mapping[str, object],
) -> str:
    """Return the whole page as HTML.

    Args:
        comparison: The numbers.
        views: The original or the source, then the result.
        codings: YUV coding of the two clips.
        facts: Facts about the two clips on the page.
        title: Title of the page.
        size_wh: Size of the output in pixels; a smaller source is enlarged to it by a
            Lanczos filter.
        crop_px: Side of the compared crops, at the size of the comparison.
        times_s: Time of each frame.
        made: How the output was made, as ``facts`` and ``commands``.
    """
    numbers = chosen_frames(comparison)
    step = -(-comparison.frames // _THUMBS)
    shown_wh, pictures = _fitting_pictures(views, codings, numbers, size_wh, step=step)
    enlarged = shown_wh[0] / comparison.size_wh[0]
    is_original = comparison.mode == "original"

    fidelity = "; scores show how far the downscaled result departs from its source"
    return filled(
        {
            "title": title,
            "summary": f"{comparison.frames} frames, compared at {comparison.size_wh[0]}x{comparison.size_wh[1]}"
            + ("" if is_original else fidelity),
            "names": ["original" if is_original else "source, lanczos", "result"],
            "width": shown_wh[0],
            "height": shown_wh[1],
            "frames": [
                {
                    "number": number,
                    "label": f"{times_s[number]:.2f} s" if number < len(times_s) else f"frame {number}",
                    "before": webp_url(before),
                    "after": webp_url(after),
                }
                for number, before, after in zip(numbers, *(each.frames for each in pictures), strict=True)
            ],
            "thumbs": [
                [webp_url(before), webp_url(after)]
                for before, after in zip(*(each.thumbs for each in pictures), strict=True)
            ],
            "thumb_step": step,
            "times": [round(time, 4) for time in times_s],
            "scores": [_score(name, values, comparison.means[name]) for name, values in comparison.series.items()],
            "left_out": [f"{COMPARED[name].title}: {reason}" for name, reason in comparison.left_out.items()],
            "crops": [
                {
                    "picture": numbers.index(crop.frame),
                    "top": round(crop.top_px * enlarged),
                    "left": round(crop.left_px * enlarged),
                    "side": round(crop_px * enlarged),
                    "label": f"frame {crop.frame} at {crop.left_px}, {crop.top_px}: {crop.error_levels:.1f} levels",
                }
                for crop in comparison.crops
            ],
            "files": [
                {"role": role, "facts": dict(each)}
                for role, each in zip((comparison.mode, "result"), facts, strict=True)
            ],
            "made": made,
        }
    )


def _score(name: str, values: Sequence[float | None], mean: float) -> dict[str, object]:
    metric = COMPARED[name]
    known = [value for value in values if value is not None]
    signed = name.startswith("drift")
    worst = max(known, key=abs) if signed else min(known) if metric.higher_is_better else max(known)
    some = f", {len(known)} of {len(values)} frames" if len(known) < len(values) else ""
    return {
        "title": metric.title,
        "unit": metric.unit,
        "note": some,
        "better": "nearer 0" if signed else "higher" if metric.higher_is_better else "lower",
        "mean": f"{mean:.{metric.digits}f}",
        "worst": f"{worst:.{metric.digits}f}",
        "values": [None if value is None else round(value, metric.digits + 1) for value in values],
    }


def _fitting_pictures(
    views: Sequence[View], codings: Sequence[Coding], numbers: Sequence[int], size_wh: tuple[int, int], *, step: int
) -> tuple[tuple[int, int], list[_Pictures]]:
    """Return the pictures of both clips, and their size, at the highest quality that
    keeps the page small."""
    found: list[_Pictures] = []
    shown_wh = size_wh
    for quality, longest_px in page.FITTING:
        scale = min(1.0, longest_px / max(size_wh))
        shown_wh = (max(2, round(size_wh[0] * scale)), max(2, round(size_wh[1] * scale)))
        found = [
            _pictures(view, coding, numbers, shown_wh, step=step, quality=quality)
            for view, coding in zip(views, codings, strict=True)
        ]
        if sum(each.size_bytes for each in found) <= page.PICTURES_BYTES:
            break
    return shown_wh, found


def _pictures(
    view: View, coding: Coding, numbers: Sequence[int], size_wh: tuple[int, int], *, step: int, quality: int
) -> _Pictures:
    """Return frames of a clip, resized by a Lanczos filter if necessary, and thumbnails
    of every ``step``-th frame."""
    # WebP is always limited-range bt601.
    recode = f"in_color_matrix={coding.matrix}:in_range={coding.range}:out_color_matrix=bt601:out_range=tv"
    chosen = "+".join(f"eq(n\\,{number})" for number in numbers)
    small_wh = f"{_THUMB_PX}:-2" if size_wh[0] >= size_wh[1] else f"-2:{_THUMB_PX}"
    ends = {
        "frame": f"select='{chosen}',scale={size_wh[0]}:{size_wh[1]}:{RESIZE}:{recode}",
        "thumb": f"select='not(mod(n\\,{step}))',scale={small_wh}:flags=area:{recode}",
    }
    graph = f"[0:{view.stream}]{view.filters},split[a][b]"
    graph += "".join(
        f";[{label}]{filters},format=yuv420p[{name}]" for label, (name, filters) in zip("ab", ends.items(), strict=True)
    )
    arguments = ["-i", str(view.path.resolve()), "-filter_complex", graph]
    for name, wanted in zip(ends, (quality, _THUMB_QUALITY), strict=True):
        arguments += ["-map", f"[{name}]", "-fps_mode", "passthrough", "-c:v", "libwebp"]
        arguments += ["-quality", str(wanted), f"{name}%05d.webp"]
    with tempfile.TemporaryDirectory(prefix="page_") as folder:
        run_ffmpeg(arguments, what=str(view.path), folder=Path(folder))
        found = {name: [file.read_bytes() for file in sorted(Path(folder).glob(f"{name}*.webp"))] for name in ends}
    return _Pictures(frames=found["frame"], thumbs=found["thumb"])
