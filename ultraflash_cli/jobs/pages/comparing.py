"""The page of a comparison: before and after on chosen frames, curves, the places that differ most."""

import base64
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from ultraflash_cli.metrics.comparison import COMPARED, Comparison
from ultraflash_cli.metrics.ffmpeg import RESIZE, run_ffmpeg

__all__ = ["FileFacts", "chosen_frames", "comparison_page"]

_SPREAD = 5
"""Frames that are shown for being spread over the clip."""
_CROPS = 6
_PICTURE_QUALITY = 88
"""Of WebP: above this the eye sees no difference, and files grow fast."""
_LONGEST_PX = 2560
"""Pictures in the page are at most this wide or high."""


@dataclass(frozen=True, kw_only=True)
class FileFacts:
    """What the page tells of one of the two files."""

    role: str
    path: Path
    facts: Mapping[str, str]


def chosen_frames(comparison: Comparison) -> list[int]:
    """Return the frames to show: evenly spread ones, and those that hold the places that differ most."""
    last = comparison.frames - 1
    spread = {round(last * share / (_SPREAD - 1)) for share in range(_SPREAD)}
    return sorted(spread | {crop.frame for crop in comparison.crops[:_CROPS]})


def comparison_page(
    comparison: Comparison,
    reference: FileFacts,
    output: FileFacts,
    *,
    size_wh: tuple[int, int],
    crop_px: int,
    times_s: Sequence[float],
    made: Mapping[str, object] | None = None,
) -> str:
    """Return the whole page as HTML; nothing in it asks for anything outside.

    Args:
        comparison: The numbers.
        reference: The original, or the source that the output was made from; it is shown on the left.
        output: The result, shown on the right.
        size_wh: Size of the output in pixels; a smaller source is enlarged by lanczos to it.
        crop_px: Side of the compared crops, at the size of the comparison.
        times_s: When each frame is shown.
        made: How the output was made, ``facts`` and ``command``; None where that is not known.
    """
    scale = min(1.0, _LONGEST_PX / max(size_wh))
    shown_wh = (round(size_wh[0] * scale) // 2 * 2, round(size_wh[1] * scale) // 2 * 2)
    numbers = chosen_frames(comparison)
    pictures = [_pictures(each.path, numbers, shown_wh) for each in (reference, output)]
    frames = [
        {
            "number": number,
            "label": f"{times_s[number]:.2f} s" if number < len(times_s) else f"frame {number}",
            "before": before,
            "after": after,
        }
        for number, before, after in zip(numbers, *pictures, strict=True)
    ]
    enlarged = shown_wh[0] / comparison.size_wh[0]
    crops = [
        {
            "picture": numbers.index(crop.frame),
            "top": round(crop.top_px * enlarged),
            "left": round(crop.left_px * enlarged),
            "side": round(crop_px * enlarged),
            "label": f"frame {crop.frame}, {crop.left_px} across, {crop.top_px} down: {crop.error_levels:.1f} levels",
        }
        for crop in comparison.crops[:_CROPS]
    ]
    original = comparison.mode == "original"
    data = {
        "title": f"{output.path.name} beside its {comparison.mode}",
        "summary": (
            f"{comparison.frames} frames at {comparison.size_wh[0]}x{comparison.size_wh[1]}"
            + ("" if original else "; scores say how far the result, made small again, strays from its source")
        ),
        "names": [comparison.mode if original else "source, lanczos", "result"],
        "width": shown_wh[0],
        "height": shown_wh[1],
        "frames": frames,
        "times": [f"{time:.3f}" for time in times_s],
        "scores": [_score(name, values, comparison.means[name]) for name, values in comparison.series.items()],
        "crops": crops,
        "files": [{"role": each.role, "facts": dict(each.facts)} for each in (reference, output)],
        "made": made,
    }
    text = json.dumps(data).replace("<", "\\u003c")  # so that no name can end the script
    page = resources.files("ultraflash_cli.jobs.pages").joinpath("compare.html").read_text(encoding="utf-8")
    return page.replace("__DATA__", text)


def _score(name: str, values: Sequence[float], mean: float) -> dict[str, object]:
    metric = COMPARED[name]
    signed = name.startswith("drift")
    worst = max(values, key=abs) if signed else min(values) if metric.higher_is_better else max(values)
    return {
        "title": metric.title,
        "unit": metric.unit,
        "mean": f"{mean:.{metric.digits}f}",
        "worst": f"{worst:.{metric.digits}f}",
        "values": [round(value, metric.digits + 1) for value in values],
    }


def _pictures(path: Path, numbers: Sequence[int], size_wh: tuple[int, int]) -> list[str]:
    """Return frames of a clip as data URLs, resized by lanczos where they have another size."""
    chosen = "+".join(f"eq(n\\,{number})" for number in numbers)
    graph = f"select='{chosen}',scale={size_wh[0]}:{size_wh[1]}:{RESIZE},format=yuv420p"
    with tempfile.TemporaryDirectory(prefix="page_") as folder:
        arguments = ["-i", str(path.resolve()), "-map", "0:v:0", "-vf", graph, "-fps_mode", "passthrough"]
        run_ffmpeg(
            [*arguments, "-c:v", "libwebp", "-quality", str(_PICTURE_QUALITY), "%04d.webp"],
            what=str(path),
            folder=Path(folder),
        )
        files = sorted(Path(folder).glob("*.webp"))
        return [f"data:image/webp;base64,{base64.b64encode(file.read_bytes()).decode()}" for file in files]
