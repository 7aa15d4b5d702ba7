"""Upscale one clip: what is decided, done in segments that survive any interruption, joined, checked, put in place."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ultraflash_cli.errors import UsageError
from ultraflash_cli.jobs.events import Listener, Planned, Started
from ultraflash_cli.jobs.flow import SourceFrame, move_frames
from ultraflash_cli.jobs.model import Builder, Built
from ultraflash_cli.jobs.preflight import Prepared, UpscaleJob, estimate_frames, prepare
from ultraflash_cli.jobs.report import Progress, Report
from ultraflash_cli.jobs.stop import Stop
from ultraflash_cli.jobs.work import Work, file_facts, library_versions, telling_memory_errors, working_on
from ultraflash_cli.jobs.writing import SEGMENT_FRAMES

if TYPE_CHECKING:
    from ultraflash_cli.video.color import Picture
    from ultraflash_cli.video.decode import DecodedFrame

__all__ = ["UpscaleJob", "UpscaleReport", "planned", "run", "run_prepared"]

_DECODE_THREADS = 4
"""More do not help one clip; the frames are the same with any number."""


@dataclass(frozen=True, kw_only=True)
class UpscaleReport(Report):
    """How a clip went."""


def run(
    job: UpscaleJob,
    on_event: Listener,
    *,
    stop: Stop | None = None,
    build: Builder | None = None,
    clock: Callable[[], float] = time.monotonic,
    segment_frames: int = SEGMENT_FRAMES,
) -> UpscaleReport:
    """Upscale one clip and put the result in place, going on where an interrupted run left off.

    Raises the errors of `ultraflash_cli.errors`: Interrupted once `stop` was requested, with every finished segment
    kept for the next run. `on_event` is never called by two threads at a time.
    """
    return run_prepared(prepare(job), on_event, stop=stop, build=build, clock=clock, segment_frames=segment_frames)


def run_prepared(
    prepared: Prepared,
    on_event: Listener,
    *,
    stop: Stop | None = None,
    build: Builder | None = None,
    clock: Callable[[], float] = time.monotonic,
    segment_frames: int = SEGMENT_FRAMES,
) -> UpscaleReport:
    """Do what `prepare` has decided; see `run`."""
    started_s = clock()
    job = prepared.job
    if prepared.exists:
        return UpscaleReport(input=str(job.source), output=str(prepared.output), skipped=True, model=prepared.model)
    name = str(job.source)
    with working_on(
        prepared.output, name=name, label=name, resume=job.resume, plan=planned(prepared), listener=on_event, stop=stop
    ) as work:
        report = _Upscaling(prepared, work, build or _build, clock, segment_frames).run(started_s)
    work.listener(report.done())
    return report


def planned(prepared: Prepared) -> Planned:
    """Tell what a prepared job is going to do."""
    info, spec = prepared.info, prepared.spec
    return Planned(
        input=str(prepared.job.source),
        output=str(prepared.output),
        source_width=info.width_px,
        source_height=info.height_px,
        width=spec.width_px,
        height=spec.height_px,
        scale=prepared.plan.scale,
        model=prepared.model,
        codec=spec.codec,
        pix_fmt=spec.pix_fmt,
        frames_total=estimate_frames(info, prepared.window),
        kept=tuple(stream.describe() for stream in prepared.streams.copied),
        dropped=tuple(str(dropped) for dropped in prepared.streams.dropped),
    )


class _Upscaling:
    """One clip on its way into its output."""

    def __init__(
        self, prepared: Prepared, work: Work, build: Builder, clock: Callable[[], float], segment_frames: int
    ) -> None:
        self._prepared = prepared
        self._work = work
        self._build = build
        self._clock = clock
        self._segment_frames = segment_frames

    def run(self, started_s: float) -> UpscaleReport:
        prepared, spec, work = self._prepared, self._prepared.spec, self._work
        for message in prepared.warnings:
            work.warn(message)
        with telling_memory_errors():
            built = self._build(prepared)
            for message in built.warnings:
                work.warn(message)
            journal = work.open_journal(_fingerprint(prepared, built, self._segment_frames))
            total = estimate_frames(prepared.info, prepared.window)
            progress = Progress(work, total=total, clock=self._clock, started_s=started_s)
            work.listener(
                Started(
                    input=work.name,
                    output=str(prepared.output),
                    model=prepared.model,
                    device=built.device,
                    precision=built.precision,
                    threads=prepared.threads,
                    frames_total=total,
                    frames_resumed=journal.frames,
                    note=work.note,
                )
            )
            if not journal.complete:
                self._move(built, progress)
        work.check_stop()
        if not journal.frames:
            raise UsageError(f"{work.name}: no frame lies in the part that was asked for")
        self._put_in_place()
        return UpscaleReport(
            input=work.name,
            output=str(prepared.output),
            skipped=False,
            model=prepared.model,
            precision=built.precision,
            encoder=spec.summary,
            frames_in=journal.frames,
            frames_out=journal.frames,
            width=spec.width_px,
            height=spec.height_px,
            warnings=tuple(work.warnings),
            **progress.measured(device=built.device, stages=built.upscaler.stage_seconds),
        )

    def _move(self, built: Built, progress: Progress) -> None:
        from ultraflash_cli.video.encode import SegmentWriter

        prepared, spec, info = self._prepared, self._prepared.spec, self._prepared.info
        sample_bytes = 2 if info.bit_depth > 8 else 1
        move_frames(
            self._source_frames,
            built.upscaler,
            self._work.journal,
            lambda path: [SegmentWriter(path, spec)],
            output=prepared.output,
            segment_frames=self._segment_frames,
            seed=prepared.job.seed,
            output_frame_bytes=3 * sample_bytes * spec.width_px * spec.height_px,
            source_frame_bytes=3 * sample_bytes * info.width_px * info.height_px,
            stop=self._work.stop,
            busy=progress.busy,
            on_group=progress.on_group,
            compose=_side_by_side(prepared) if prepared.job.side_by_side else None,
        )

    def _source_frames(self) -> Iterator[SourceFrame]:
        """Give every wanted frame, numbered from 0, with the scene cuts marked; they depend on the frames alone."""
        info, window = self._prepared.info, self._prepared.window
        number = 0
        for frame, starts_scene in self._marked_frames():
            if window is not None and frame.pts * info.time_base < window[0]:
                continue
            if window is not None and frame.pts * info.time_base >= window[1]:
                return
            yield SourceFrame(number, starts_scene, frame.rgb_hwc, frame.pts, frame.duration)
            number += 1

    def _marked_frames(self) -> "Iterator[tuple[DecodedFrame, bool]]":
        from ultraflash_cli.video.cuts import CutDetector
        from ultraflash_cli.video.decode import read_frames

        frames = read_frames(
            self._prepared.info, warn=self._work.warn, threads=min(_DECODE_THREADS, self._prepared.threads)
        )
        if self._prepared.job.cuts == "off":
            for frame in frames:
                yield frame, False
            return
        detector = CutDetector()
        undecided: deque[DecodedFrame] = deque()
        for frame in frames:
            undecided.append(frame)
            for starts_scene in detector.push(frame.rgb_hwc):
                yield undecided.popleft(), starts_scene
        for starts_scene in detector.flush():
            yield undecided.popleft(), starts_scene
        assert not undecided, "the cut detector decides on every frame"

    def _put_in_place(self) -> None:
        from ultraflash_cli.video.encode import read_record
        from ultraflash_cli.video.passthrough import check_output, join

        prepared, journal = self._prepared, self._work.journal
        info, streams, spec = prepared.info, prepared.streams, prepared.spec
        first, last = read_record(journal.files[0]), read_record(journal.files[-1])
        duration_s = (last.last_pts + last.last_duration - first.first_pts) * spec.time_base

        def make(joined: Path) -> tuple[str, ...]:
            notes = join(journal.files, info, streams, spec, joined, window=prepared.window)
            check_output(joined, plan=streams, frames=journal.frames, spec=spec, duration_s=duration_s)
            return notes

        self._work.put_in_place({prepared.output: make})


def _side_by_side(prepared: Prepared) -> "Callable[[Picture, Picture], Picture]":
    """Give what puts the plain resample on the left, as shown, and the result on the right."""
    import numpy as np

    from ultraflash_cli.video.color import as_picture, resize_rgb

    rotation = prepared.info.rotation_deg
    axis = 0 if rotation in (90, 270) else 1
    left_first = rotation in (0, 270)

    def compose(source_hwc: "Picture", sharp_hwc: "Picture") -> "Picture":
        plain_hwc = resize_rgb(source_hwc, sharp_hwc.shape[1], sharp_hwc.shape[0])
        pair = [plain_hwc, sharp_hwc] if left_first else [sharp_hwc, plain_hwc]
        return as_picture(np.concatenate(pair, axis=axis))

    return compose


def _build(prepared: Prepared) -> Built:
    from ultraflash_cli.jobs.model import build

    return build(prepared)


def _fingerprint(prepared: Prepared, built: Built, segment_frames: int) -> dict[str, object]:
    """Collect, by the names people know, all that the pixels and packets of the output depend on."""
    job = prepared.job
    return {
        **file_facts("the input", job.source),
        "--model": prepared.model,
        "the model's weights": built.weights,
        "--res": f"{prepared.spec.width_px}x{prepared.spec.height_px}",
        "--strength": job.strength,
        "--color": job.color,
        "--seed": job.seed,
        "--cuts": job.cuts,
        "--audio": job.audio,
        "--subs": job.subs,
        "--start and --end": repr(prepared.window),
        "--device": built.device,
        "--precision": built.precision,
        "--threads": prepared.threads,
        "--codec": prepared.spec.codec,
        "--crf": prepared.spec.crf,
        "--pix-fmt": prepared.spec.pix_fmt,
        "--enc-opt": job.enc_options,
        "--side-by-side": job.side_by_side,
        "the plan": repr(prepared.plan),
        "the memory plan": built.memory_plan,
        "the encoder": repr(prepared.spec),
        "the streams": repr(prepared.streams),
        "the segments' length": segment_frames,
        **library_versions(),
    }
