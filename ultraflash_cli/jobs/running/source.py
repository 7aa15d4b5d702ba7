"""The frames of an input for the model: selected range, scene cuts, frame rate."""

from collections import deque
from collections.abc import Callable, Iterator

from ultraflash_cli.errors import InputError
from ultraflash_cli.jobs.planning.spans import Span
from ultraflash_cli.jobs.planning.upscale import Prepared
from ultraflash_cli.jobs.running.pace import Pace
from ultraflash_cli.jobs.running.upscaling import SourceFrame
from ultraflash_cli.video.captions import carries_captions
from ultraflash_cli.video.containers import FORMATS
from ultraflash_cli.video.cuts import CutDetector
from ultraflash_cli.video.decode import ReadReport, read_frames
from ultraflash_cli.video.encode import made_times
from ultraflash_cli.video.frame import Frame

__all__ = ["check_whole", "source_frames"]

_DECODE_THREADS = 4
"""Threads for decoding; more do not help with a single clip, and the frames do not
depend on their number."""

Warn = Callable[[str], None]


def check_whole(prepared: Prepared, warn: Warn, check_stop: Callable[[], None]) -> None:
    """Read the input once, so that damage is found before the work rather than after
    it."""
    report = ReadReport()
    # with transparency and captions requested, it does not warn about losing them
    for _ in read_frames(
        prepared.info, alpha=True, warn=warn, threads=_threads(prepared), report=report, captions=True
    ):
        check_stop()
    _refuse_damage(prepared, report)


def source_frames(prepared: Prepared, warn: Warn, span: Span | None = None) -> Iterator[SourceFrame]:
    """Yield every wanted frame, numbered from 0, with the scene cuts marked; they depend on the frames alone.

    With a `span`, yields frames up to its end, with the cuts stored in it.
    """
    info, window, pace = prepared.info, prepared.window, _pace(prepared)
    cuts = None if span is None else {span.first, *span.cuts}
    number = 0
    for frame, found_cut in _marked_frames(prepared, warn, finds_cuts=cuts is None):
        if span is not None and number >= span.end:
            return
        time_s = frame.pts * info.time_base
        if window is not None and time_s < window[0]:
            continue
        if window is not None and time_s >= window[1]:
            return
        times = tuple(pace.times(frame.pts, frame.duration)) if pace is not None else None
        starts_scene = found_cut if cuts is None else number in cuts
        yield SourceFrame(number, starts_scene, frame, times)
        number += 1


def _pace(prepared: Prepared) -> Pace | None:
    fps, info = prepared.fps, prepared.info
    if fps is None:
        return None
    return Pace(fps, time_base=info.time_base, rate=info.average_rate, ticks=made_times(fps)[1])


def _marked_frames(prepared: Prepared, warn: Warn, *, finds_cuts: bool) -> Iterator[tuple[Frame, bool]]:
    frames = _decoded_frames(prepared, warn)
    if prepared.job.cuts == "off" or not finds_cuts:
        for frame in frames:
            yield frame, False
        return

    detector = CutDetector()
    undecided: deque[Frame] = deque()
    for frame in frames:
        undecided.append(frame)
        for starts_scene in detector.push(frame.rgb_hwc):
            yield undecided.popleft(), starts_scene
    for starts_scene in detector.flush():
        yield undecided.popleft(), starts_scene
    assert not undecided, "the cut detector decides on every frame"


def _decoded_frames(prepared: Prepared, warn: Warn) -> Iterator[Frame]:
    report, info, spec = ReadReport(), prepared.info, prepared.spec
    to_file = prepared.job.stdout is None
    captions = to_file and prepared.streams.suffix in FORMATS and carries_captions(info, spec)
    yield from read_frames(
        info, alpha=spec.alpha, warn=warn, threads=_threads(prepared), report=report, captions=captions
    )
    if prepared.job.strict:
        _refuse_damage(prepared, report)


def _refuse_damage(prepared: Prepared, report: ReadReport) -> None:
    if report.damaged:
        found = (
            report.about_cut_off(prepared.info.source)
            if report.cut_off
            else f"{report.frames} frames could be read, {report.failures} packets could not, "
            f"the last {float(report.lost_s):.2f} s are lost"
        )
        raise InputError(f"{prepared.job.source}: damaged or truncated, refused by --strict: {found}")


def _threads(prepared: Prepared) -> int:
    return min(_DECODE_THREADS, prepared.threads)
