"""Measure a result against its original or its source."""

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from ultraflash_cli.errors import InputError, UsageError
from ultraflash_cli.host import running_threads, usable_cores
from ultraflash_cli.jobs.pages.page import check_page_place, write_page
from ultraflash_cli.jobs.planning.options import MOST_THREADS

if TYPE_CHECKING:
    from ultraflash_cli.metrics.comparison import Comparison, Mode
    from ultraflash_cli.metrics.ffmpeg import Coding, View
    from ultraflash_cli.video.probe import ClipInfo

__all__ = ["SCHEMA", "CompareJob", "CompareReport", "about_timestamps", "run"]

SCHEMA = 1
"""Version of the report, as published in docs/schemas; increases when a field is
changed or removed."""

_ROUNDING_S = 0.0011
_CROP_PX = 128
_SMALLEST_CROP_PX = 48
_SAME_SHAPE = 0.02
"""Maximum difference between equal aspect ratios, as sizes are rounded to even
pixels."""


@dataclass(frozen=True, kw_only=True)
class CompareJob:
    """The clips to compare, and the path of the page."""

    reference: Path
    output: Path
    html: Path | None = None
    overwrite: bool = False
    threads: int | None = None

    @property
    def command(self) -> str:
        """The command that repeats the comparison."""
        words = ["ultraflash", "compare", str(self.reference), str(self.output)]
        return shlex.join([*words, *(["--html", str(self.html), "-y"] if self.html is not None else [])])


@dataclass(frozen=True, kw_only=True)
class CompareReport:
    """Scores of two clips."""

    schema: int
    reference: str
    output: str
    mode: str
    """``original``: a clip of the same size as the result; ``source``: the smaller clip
    that the result was made from."""
    width: int
    height: int
    """Size at which the clips were compared."""
    frames: int
    """Number of frames of each clip."""
    means: Mapping[str, float]
    """Mean of each score over the clip, by the names of ``metrics.comparison.COMPARED``."""
    series: Mapping[str, list[float | None]]
    """One number per frame; None for frames on which a score was not measured."""
    left_out: Mapping[str, str]
    """Reasons for missing scores, by name."""
    worst: tuple[dict[str, float], ...]
    """Positions of the largest differences: frame, top, left, levels."""
    timestamps_differ_s: float
    """The largest difference between the timestamps of two paired frames."""
    html: str | None


def run(job: CompareJob, say: Callable[[str], None]) -> CompareReport:
    """Measure the clips, and write the page if one is requested; ``say`` is called with
    progress messages.

    Raises UsageError (sizes that cannot be compared, a page that exists or is one of
    the clips), InputError (no video, different lengths), OutputError (the page cannot
    be written).
    """
    _check(job)
    if job.html is not None:
        check_page_place(job.html, (job.reference, job.output), overwrite=job.overwrite)

    from ultraflash_cli.metrics.ffmpeg import ffmpeg_program
    from ultraflash_cli.video.probe import probe

    ffmpeg_program()
    reference, output = probe(job.reference), probe(job.output)
    mode, size_wh = _mode(reference, output)

    # Imported late, since this imports torch.
    from ultraflash_cli.metrics.comparison import compare_clips

    crop_px = min(_CROP_PX, max(_SMALLEST_CROP_PX, min(size_wh) // 48 * 16), *size_wh)
    say(f"comparing {job.output.name} with its {mode} at {size_wh[0]}x{size_wh[1]}")
    coding = _coding(reference)
    views = [_view(info, size_wh, coding) for info in (output, reference)]
    comparison = compare_clips(
        views[0],
        views[1],
        mode=mode,
        size_wh=size_wh,
        coding=coding,
        fps=float(reference.average_rate),
        frames_estimate=reference.frame_count_estimate,
        crop_px=crop_px,
        threads=running_threads(job.threads or usable_cores()),
    )
    times = [_times(info) for info in (reference, output)]
    pairs = zip(*times, strict=False)
    differ_s = float(max((abs(a - b) for a, b in pairs), default=Fraction(0)))
    if job.html is not None:
        say(f"writing {job.html}")
        _write_page(job, comparison, reference, output, times[1], crop_px, differ_s)
    return CompareReport(
        schema=SCHEMA,
        reference=str(job.reference),
        output=str(job.output),
        mode=mode,
        width=size_wh[0],
        height=size_wh[1],
        frames=comparison.frames,
        means=comparison.means,
        series=comparison.series,
        left_out=comparison.left_out,
        worst=tuple(
            {"frame": crop.frame, "top_px": crop.top_px, "left_px": crop.left_px, "levels": crop.error_levels}
            for crop in comparison.crops
        ),
        timestamps_differ_s=differ_s,
        html=str(job.html) if job.html is not None else None,
    )


def _check(job: CompareJob) -> None:
    """Reject clips that cannot be compared. Raises UsageError, InputError."""
    from ultraflash_cli.jobs.planning.inputs import find_input

    if job.threads is not None and not 1 <= job.threads <= MOST_THREADS:
        raise UsageError(f"--threads must be between 1 and {MOST_THREADS}, got {job.threads}")
    for path in (job.reference, job.output):
        if str(path) == "-":
            raise UsageError(
                "compare reads each clip several times, which stdin does not allow; save it to a file first"
            )
        if path.is_dir():
            raise InputError(f"{path} is a folder, expected a video file; compare one clip and its result at a time")
        if not isinstance(find_input(path, None, images=False, rate=None), Path):
            raise InputError(f"{path}: numbered images, expected a video file; compare reads videos only")


def _mode(reference: "ClipInfo", output: "ClipInfo") -> "tuple[Mode, tuple[int, int]]":
    """Return the mode, judging by the sizes. Raises UsageError for sizes that cannot be
    compared."""
    ref_wh = (reference.display_width_px, reference.display_height_px)
    out_wh = (output.display_width_px, output.display_height_px)
    if ref_wh == out_wh:
        return "original", ref_wh
    shapes = [Fraction(*wh) for wh in (ref_wh, out_wh)]
    found = f"{reference.path.name} is {ref_wh[0]}x{ref_wh[1]}, {output.path.name} {out_wh[0]}x{out_wh[1]}"
    if abs(shapes[0] / shapes[1] - 1) > _SAME_SHAPE:
        raise UsageError(f"{found}: their shapes differ; compare a result with its original or its source")
    if ref_wh[0] > out_wh[0]:
        raise UsageError(
            f"{found}: the result is smaller than the reference; give the reference first, then the result"
        )
    return "source", ref_wh


def _coding(info: "ClipInfo") -> "Coding":
    """Return the YUV coding of a clip; RGB is measured as full-range bt709."""
    from ultraflash_cli.metrics.ffmpeg import Coding
    from ultraflash_cli.video.color import FULL, resolve_color, scale_matrix

    if info.is_rgb:
        return Coding("bt709", "pc")
    full = info.pix_fmt.startswith("yuvj")
    color = resolve_color(info.color, width_px=info.width_px, height_px=info.height_px, rgb=False, full=full)
    matrix = scale_matrix(color)
    return Coding("bt601" if matrix in ("bt470", "smpte170m") else matrix, "pc" if color.range == FULL else "tv")


def _view(info: "ClipInfo", size_wh: tuple[int, int], wanted: "Coding") -> "View":
    """Return a clip in the form to measure. Raises InputError unless it is a file."""
    from ultraflash_cli.metrics.ffmpeg import viewed

    if not isinstance(info.source, Path):
        raise InputError(f"{info.path}: pictures or a pipe, expected a video file; compare files")
    shown_wh = (info.display_width_px, info.display_height_px)
    own = None if info.is_rgb else _coding(info)
    return viewed(
        info.source,
        stream=str(info.video_index),
        size_wh=size_wh if shown_wh != size_wh or info.is_rgb else None,
        coding=own or (wanted if info.is_rgb else None),
        wanted=wanted,
        deinterlace=info.interlaced,
    )


def _times(info: "ClipInfo") -> list[Fraction]:
    """Return the time of each frame relative to the first; empty if the file has no
    timestamps."""
    from ultraflash_cli.video.source import open_input

    with open_input(info.source) as container:
        stream = container.streams[info.video_index]
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
    differ_s: float,
) -> None:
    from ultraflash_cli.jobs.pages.comparing import comparison_page
    from ultraflash_cli.jobs.pages.page import clip_facts, made_by

    assert job.html is not None
    size_wh = (output.display_width_px, output.display_height_px)
    facts = [clip_facts(info, frames=comparison.frames) for info in (reference, output)]
    facts[1]["timestamps"] = about_timestamps(differ_s) or "those of the reference"
    page = comparison_page(
        comparison,
        views=[_shown(info) for info in (reference, output)],
        codings=[_coding(info) for info in (reference, output)],
        facts=facts,
        title=f"{output.path.name} beside its {comparison.mode}",
        size_wh=size_wh,
        crop_px=crop_px,
        times_s=[float(time) for time in times],
        made=made_by(job.output, {"compare them again": job.command}),
    )
    write_page(job.html, page)


def about_timestamps(differ_s: float) -> str | None:
    """Describe by how much timestamps differ; None for mere rounding, as in
    Matroska."""
    return f"differ by up to {differ_s:.3f} s" if differ_s >= _ROUNDING_S else None


def _shown(info: "ClipInfo") -> "View":
    from ultraflash_cli.metrics.ffmpeg import viewed

    return viewed(info.path, stream=str(info.video_index), deinterlace=info.interlaced)
