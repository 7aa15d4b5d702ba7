"""A result measured against its original, or against the source that it was made from."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from ultraflash_cli.errors import InputError, OutputError, UsageError
from ultraflash_cli.host import usable_cores

if TYPE_CHECKING:
    from ultraflash_cli.metrics.comparison import Comparison, Mode
    from ultraflash_cli.video.probe import ClipInfo

__all__ = ["CompareJob", "CompareReport", "run"]

_CROP_PX = 128
_SAME_SHAPE = 0.02
"""Aspect ratios that differ by less are one shape: sizes are rounded to even pixels."""


@dataclass(frozen=True, kw_only=True)
class CompareJob:
    """What is compared, and where the page goes."""

    reference: Path
    output: Path
    html: Path | None = None
    overwrite: bool = False
    threads: int | None = None


@dataclass(frozen=True, kw_only=True)
class CompareReport:
    """How alike two clips are."""

    reference: str
    output: str
    mode: str
    """``original``: a clip of the result's size; ``source``: the smaller one that it was made from."""
    width: int
    height: int
    """Size at which they were compared."""
    frames: int
    means: Mapping[str, float]
    """Mean of each score over the clip, by the names of ``metrics.comparison.COMPARED``."""
    series: Mapping[str, list[float]]
    """One number a frame."""
    worst: tuple[dict[str, float], ...]
    """Where the clips differ most: frame, top, left, levels."""
    timestamps_differ_s: float
    """The largest difference between the timestamps of two paired frames."""
    html: str | None


def run(job: CompareJob, say: Callable[[str], None]) -> CompareReport:
    """Measure, and write the page if one is asked for; ``say`` hears what is being done.

    Raises UsageError (sizes that cannot be compared, a page that exists or is one of the clips), InputError (no video,
    other lengths), OutputError (the page cannot be written).
    """
    if job.html is not None:
        _check_place(job.html, job)

    from ultraflash_cli.metrics.comparison import compare_clips
    from ultraflash_cli.video.probe import probe

    reference, output = probe(job.reference), probe(job.output)
    mode, size_wh = _mode(reference, output)
    crop_px = min(_CROP_PX, *size_wh)
    say(f"comparing {job.output.name} with its {mode} at {size_wh[0]}x{size_wh[1]}")
    comparison = compare_clips(
        job.output,
        job.reference,
        mode=mode,
        size_wh=size_wh,
        crop_px=crop_px,
        threads=job.threads or usable_cores(),
    )
    times = {path: _times(path) for path in (job.reference, job.output)}
    if job.html is not None:
        say(f"writing {job.html}")
        _write_page(job, comparison, reference, output, times[job.output], crop_px)
    pairs = zip(times[job.reference], times[job.output], strict=False)
    return CompareReport(
        reference=str(job.reference),
        output=str(job.output),
        mode=mode,
        width=size_wh[0],
        height=size_wh[1],
        frames=comparison.frames,
        means=comparison.means,
        series=comparison.series,
        worst=tuple(
            {"frame": crop.frame, "top_px": crop.top_px, "left_px": crop.left_px, "levels": crop.error_levels}
            for crop in comparison.crops[:6]
        ),
        timestamps_differ_s=float(max((abs(a - b) for a, b in pairs), default=Fraction(0))),
        html=str(job.html) if job.html is not None else None,
    )


def _check_place(html: Path, job: CompareJob) -> None:
    """Refuse, before any work, a page that would replace a clip or what was not meant, or that has no place to lie."""
    for clip in (job.reference, job.output):
        if html.exists() and clip.exists() and html.samefile(clip):
            raise UsageError(f"{html} is one of the clips that are compared; name another file with --html")
    if html.is_dir():
        raise UsageError(f"{html} is a folder; name a file with --html")
    if html.exists() and not job.overwrite:
        raise UsageError(f"{html} exists; -y replaces it, or name another file with --html")
    if not html.parent.is_dir():
        raise OutputError(f"cannot write {html}: {html.parent} is no folder; choose another place with --html")


def _mode(reference: "ClipInfo", output: "ClipInfo") -> "tuple[Mode, tuple[int, int]]":
    """Tell by their sizes what the reference is. Raises UsageError for sizes that cannot be compared."""
    ref_wh = (reference.display_width_px, reference.display_height_px)
    out_wh = (output.display_width_px, output.display_height_px)
    if ref_wh == out_wh:
        return "original", ref_wh
    shapes = [Fraction(*wh) for wh in (ref_wh, out_wh)]
    said = f"{reference.path.name} is {ref_wh[0]}x{ref_wh[1]}, {output.path.name} {out_wh[0]}x{out_wh[1]}"
    if abs(shapes[0] / shapes[1] - 1) > _SAME_SHAPE:
        raise UsageError(f"{said}: they have other shapes; compare a result with its original or its source")
    if ref_wh[0] > out_wh[0]:
        raise UsageError(f"{said}: the result is the smaller one; name the reference first, then the result")
    return "source", (ref_wh[0] // 2 * 2, ref_wh[1] // 2 * 2)


def _times(path: Path) -> list[Fraction]:
    """Return when each frame is shown, from the first one's time on; empty where the file does not say."""
    from ultraflash_cli.video.source import open_input

    with open_input(path) as container:
        stream = container.streams.video[0]
        stamps = [packet.pts * packet.time_base for packet in container.demux(stream) if packet.pts is not None]
    stamps.sort()
    return [stamp - stamps[0] for stamp in stamps]


def _write_page(
    job: CompareJob,
    comparison: "Comparison",
    reference: "ClipInfo",
    output: "ClipInfo",
    times: list[Fraction],
    crop_px: int,
) -> None:
    from ultraflash_cli.jobs.pages.comparing import FileFacts, comparison_page
    from ultraflash_cli.video.partial import output_errors, partial_file

    assert job.html is not None
    page = comparison_page(
        comparison,
        FileFacts(role=comparison.mode, path=job.reference, facts=_facts(reference, comparison.frames)),
        FileFacts(role="result", path=job.output, facts=_facts(output, comparison.frames)),
        size_wh=(output.display_width_px, output.display_height_px),
        crop_px=crop_px,
        times_s=[float(time) for time in times],
        made=_made(job.output),
    )
    with partial_file(job.html) as part, output_errors(job.html):
        part.write_text(page, encoding="utf-8")


def _made(path: Path) -> dict[str, object] | None:
    """Return how the result was made, where its tag says so."""
    from ultraflash_cli.jobs.explain import explanation_of

    found = explanation_of(path)
    if found is None:
        return None
    made = found.made
    weights = ", ".join(f"{name} {sha256[:12]}" for name, sha256 in made.weights.items())
    facts = {"version": made.version, "model": made.model, "weights": weights, "seed": str(made.seed)}
    return {"facts": facts | {"device": f"{made.device}, {made.precision}"}, "command": found.command}


def _facts(info: "ClipInfo", frames: int) -> dict[str, str]:
    if not isinstance(info.source, Path):
        raise InputError(f"{info.path}: compare files, not pictures or pipes")
    color = info.color
    tags = ", ".join(str(tag) for tag in (color.matrix, color.transfer, color.range) if tag)
    return {
        "file": info.path.name,
        "size": f"{info.display_width_px}x{info.display_height_px}",
        "codec": f"{info.codec}, {info.pix_fmt}",
        "colour": tags or "not tagged",
        "frames": str(frames),
        "frames per second": f"{float(info.average_rate):.3f}",
        "megabytes": f"{info.source.stat().st_size / 1e6:.2f}",
    }
