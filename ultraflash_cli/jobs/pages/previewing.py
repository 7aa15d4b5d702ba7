"""The preview page: plain resampling next to the result, the predicted cost of the
whole job, and its command."""

import shlex
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ultraflash_cli.errors import UltraflashError, UsageError
from ultraflash_cli.jobs.pages import page
from ultraflash_cli.jobs.pages.page import check_page_place, clip_facts, filled, made_by, webp_url, write_page
from ultraflash_cli.jobs.planning.target import is_pictures
from ultraflash_cli.jobs.planning.upscale import Prepared, UpscaleJob, estimate_frames
from ultraflash_cli.jobs.provenance.words import corrected
from ultraflash_cli.jobs.running.forecast import duration_words, forecast_from_part, size_words
from ultraflash_cli.jobs.running.prepare import prepare
from ultraflash_cli.metrics.pairs import Crop, distinct_crops, worst_places

if TYPE_CHECKING:
    from ultraflash_cli.jobs.running.report import Report
    from ultraflash_cli.video.color import Picture
    from ultraflash_cli.video.probe import ClipInfo

__all__ = ["check_preview", "preview_page_path", "write_preview_page"]

_SHOWN = 6
"""Number of frames on the page, spread over the preview."""
_CROP_PX = 192
_OWN_FLAGS = frozenset({"--preview", "--device", "--precision", "--threads", "--cuda-graphs"})
"""Options that are omitted from the command for the whole clip."""


@dataclass(frozen=True)
class _Shown:
    """One frame before and after."""

    number: int
    time_s: float
    before_hwc: "Picture"
    after_hwc: "Picture"


def check_preview(job: UpscaleJob) -> None:
    """Reject, before any work, a job that a page cannot show. Raises UsageError,
    OutputError. Other problems are left to the run, which reports them.
    """
    if job.pipe is not None or job.stdout is not None:
        raise UsageError("--html reads input and output again, which a pipe does not allow; use files")
    if job.side_by_side:
        raise UsageError("--html already shows lanczos and the result side by side; remove --side-by-side")
    try:
        prepared = prepare(job)
    except UltraflashError:
        return
    if is_pictures(prepared.output):
        raise UsageError(f"--html needs a video, but {prepared.output.name} is images; choose a video with -o")
    if not prepared.exists:
        place = preview_page_path(prepared.output)
        check_page_place(place, (prepared.output, job.source), overwrite=job.overwrite)


def preview_page_path(output: Path) -> Path:
    """Return the path of an output's page."""
    return output.with_suffix(".html")


def write_preview_page(job: UpscaleJob, report: "Report") -> Path:
    """Write the page of a preview next to its output. Raises InputError,
    OutputError."""
    from ultraflash_cli.video.probe import probe

    prepared = prepare(job, to_write=False)
    output = Path(report.output)
    result = probe(output)
    shown, pictures = _fitting(list(_shown_frames(prepared, result, report)))
    height_px, width_px = shown[0].after_hwc.shape[:2]
    crop_px = min(_CROP_PX, width_px, height_px)
    crops = _crops(shown, report.frames_out, crop_px)
    forecast = forecast_from_part(prepared, report, output)
    whole = job.preview is None and job.start is None and job.end is None
    info = prepared.info
    size = f"{info.display_width_px}x{info.display_height_px} to {result.display_width_px}x{result.display_height_px}"
    rows = [["time", f"about {duration_words(forecast.seconds)}"]] if forecast.seconds is not None else []
    rows += [["size", f"about {size_words(forecast.output_bytes)}"]] if forecast.output_bytes is not None else []
    text = filled(
        {
            "title": f"{'Result' if whole else 'Preview'} of {info.path.name}",
            "summary": f"{report.frames_out} frames, {size}, model {report.model}",
            "names": ["lanczos", "result"],
            "width": width_px,
            "height": height_px,
            "frames": [
                {
                    "number": each.number,
                    "label": f"{each.time_s:.2f} s",
                    "before": webp_url(before),
                    "after": webp_url(after),
                }
                for each, (before, after) in zip(shown, pictures, strict=True)
            ],
            "thumbs": [],
            "thumb_step": 1,
            "times": [],
            "scores": [],
            "left_out": [],
            "crops": [
                {
                    "picture": [each.number for each in shown].index(crop.frame),
                    "top": crop.top_px,
                    "left": crop.left_px,
                    "side": crop_px,
                    "label": f"frame {crop.frame}: {crop.error_levels:.1f} levels",
                }
                for crop in crops
            ],
            "forecast": None if whole or not rows else {"rows": rows, "basis": f"Rests on {forecast.basis}."},
            "files": [
                {"role": "source", "facts": clip_facts(info, frames=estimate_frames(info, None))},
                {"role": "result", "facts": clip_facts(result, frames=report.frames_out)},
            ],
            "made": _made(job, output, report, whole=whole),
        }
    )
    place = preview_page_path(output)
    write_page(place, text)
    return place


def _made(job: UpscaleJob, output: Path, report: "Report", *, whole: bool) -> dict[str, object]:
    """Return how the preview was made, and the command for the whole clip."""
    from ultraflash_cli.jobs.provenance.explain import explanation_of

    found = explanation_of(output)
    words = ["ultraflash", "upscale", str(job.source)]
    options = {} if found is None else dict(found.made.options)
    asked = {"--res": job.res, "--model": None if job.model == "auto" else job.model, "--seed": job.seed or None}
    for flag, value in options.items():
        if flag in _OWN_FLAGS or (flag in asked and asked[flag] is None):
            continue
        if flag == "--guard" and job.guard == UpscaleJob(source=job.source).guard:
            continue
        for each in value if isinstance(value, list) else [value]:
            words += [flag] if each is True else [flag, str(each)]
    name = "make it again" if whole else "the whole clip"
    made = made_by(output, {name: shlex.join(words)})
    facts = dict(made["facts"]) if isinstance(made["facts"], dict) else {}
    share = asdict(report).get("guarded_share")
    if share is not None and "guard" not in facts:
        facts["guard"] = corrected(share)
    commands = {name: shlex.join(words)}
    return {"facts": facts, "commands": commands}


def _shown_frames(prepared: Prepared, result: "ClipInfo", report: "Report") -> Iterator[_Shown]:
    """Yield a few frames of the source, enlarged by a Lanczos filter, and of the
    result."""
    from ultraflash_cli.video.color import resize_rgb

    count = max(1, min(report.frames_in, report.frames_out))
    wanted = sorted({round(index * (count - 1) / max(1, _SHOWN - 1)) for index in range(_SHOWN)})
    sources = _frames(prepared.info, wanted, prepared)
    made = [round(number * (report.frames_out - 1) / max(1, report.frames_in - 1)) for number in wanted]
    results = _frames(result, made, None)
    for number in wanted:
        if number not in sources:
            return
        time_s, source_hwc = sources[number]
        after = results.get(made[wanted.index(number)])
        if after is None:
            return
        height_px, width_px = after[1].shape[:2]
        yield _Shown(number, time_s, resize_rgb(source_hwc, width_px, height_px), after[1])


def _frames(info: "ClipInfo", numbers: list[int], prepared: Prepared | None) -> "dict[int, tuple[float, Picture]]":
    """Return frames of a clip by number, in display orientation; with `prepared`,
    frames within its window."""
    from ultraflash_cli.video.decode import read_frames

    window = prepared.window if prepared is not None else None
    found: dict[int, tuple[float, Picture]] = {}
    number, first_s = 0, (info.start_pts or 0) * info.time_base
    for frame in read_frames(info, warn=lambda message: None):
        at_s = frame.pts * info.time_base
        if window is not None and at_s < window[0]:
            continue
        if number in numbers:
            found[number] = float(at_s - first_s), _as_shown(frame.rgb_hwc, info)
        number += 1
        if number > max(numbers):
            break
    return found


def _as_shown(rgb_hwc: "Picture", info: "ClipInfo") -> "Picture":
    shown = rgb_hwc if rgb_hwc.dtype == np.uint8 else (rgb_hwc >> 8).astype(np.uint8)
    shown = np.fliplr(shown) if info.mirrored else shown
    return np.ascontiguousarray(np.rot90(shown, -(info.rotation_deg // 90)), dtype=np.uint8)


def _crops(shown: list[_Shown], frames: int, crop_px: int) -> list[Crop]:
    found: list[Crop] = []
    for each in shown:
        planes = (picture.mean(axis=2, dtype=np.float32) for picture in (each.after_hwc, each.before_hwc))
        found += worst_places(np.abs(next(planes) - next(planes)), each.number, crop_px)
    found.sort(key=lambda crop: -crop.error_levels)
    return distinct_crops(found, count=3, frames=frames, crop_px=crop_px)


def _fitting(shown: list[_Shown]) -> tuple[list[_Shown], list[tuple[bytes, bytes]]]:
    """Return frames and their pictures at the highest quality that keeps the page
    small."""
    from ultraflash_cli.video.color import resize_rgb
    from ultraflash_cli.video.stills import webp_bytes

    fitted, pictures = shown, list[tuple[bytes, bytes]]()
    height_px, width_px = shown[0].after_hwc.shape[:2]
    for quality, longest_px in page.FITTING:
        scale = min(1.0, longest_px / max(height_px, width_px))
        if scale < 1:
            shown_wh = max(2, round(width_px * scale)), max(2, round(height_px * scale))
            fitted = [
                replace(
                    each,
                    before_hwc=resize_rgb(each.before_hwc, *shown_wh),
                    after_hwc=resize_rgb(each.after_hwc, *shown_wh),
                )
                for each in shown
            ]
        pictures = [
            (webp_bytes(each.before_hwc, quality=quality), webp_bytes(each.after_hwc, quality=quality))
            for each in fitted
        ]
        if sum(len(before) + len(after) for before, after in pictures) <= page.PICTURES_BYTES:
            break
    return fitted, pictures
