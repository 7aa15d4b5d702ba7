"""Upscale one clip: what is decided, done in segments that survive any interruption, joined, checked, put in place."""

import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ultraflash_cli.buffers import SEGMENT_FRAMES
from ultraflash_cli.errors import InputError, UsageError
from ultraflash_cli.jobs.events import Done, Listener, Planned, Started
from ultraflash_cli.jobs.made import made_by_upscaling
from ultraflash_cli.jobs.planning.inputs import check_unchanged, file_head, input_bytes, input_facts
from ultraflash_cli.jobs.planning.target import check_space, encoded_bytes
from ultraflash_cli.jobs.planning.upscale import Prepared, UpscaleJob, estimate_frames, prepare
from ultraflash_cli.jobs.resume.fingerprint import library_versions
from ultraflash_cli.jobs.resume.owned_files import SPOOL, take_away
from ultraflash_cli.jobs.resume.spool import SegmentSink
from ultraflash_cli.jobs.running.finish import finish_of
from ultraflash_cli.jobs.running.live import STREAM_SEGMENT_FRAMES, LiveStream
from ultraflash_cli.jobs.running.loader import Builder, Built
from ultraflash_cli.jobs.running.pace import Pace
from ultraflash_cli.jobs.running.report import Progress, Report
from ultraflash_cli.jobs.running.run import Work, telling_memory_errors, with_smaller_plans, working_on
from ultraflash_cli.jobs.running.sinks import ThinnedSegment, writer_of
from ultraflash_cli.jobs.running.upscaling import SourceFrame, move_frames
from ultraflash_cli.jobs.stop import Stop

if TYPE_CHECKING:
    from ultraflash_cli.video.decode import DecodedFrame, ReadReport
    from ultraflash_cli.video.live import Streamed
    from ultraflash_cli.video.y4m import ByteSink

__all__ = ["UpscaleJob", "UpscaleReport", "planned", "run", "run_prepared"]

_DECODE_THREADS = 4
"""More do not help one clip; the frames are the same with any number."""


@dataclass(frozen=True, kw_only=True)
class UpscaleReport(Report):
    """How a clip went."""

    guard: float | None = None
    """How far the result was allowed to stray from its source, in levels of 255."""
    guarded_share: float | None = None
    """Share of the pixels of this run's frames, at the smaller size, that strayed further and were blended back."""

    def done(self) -> Done:
        return replace(super().done(), guarded_share=self.guarded_share)


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
        return UpscaleReport(input=str(job.source), output=prepared.shown_output, skipped=True, model=prepared.model)
    name = str(job.source)
    with working_on(
        prepared.output,
        name=name,
        label=name,
        resume=job.resume and job.pipe is None,
        overwrite=job.overwrite,
        plan=planned(prepared),
        listener=on_event,
        stop=stop,
        temp=job.temp,
    ) as work:
        report = _Upscaling(prepared, work, build or _build, clock, segment_frames).run(started_s)
    work.listener(report.done())
    return report


def planned(prepared: Prepared) -> Planned:
    """Tell what a prepared job is going to do."""
    info, spec = prepared.info, prepared.spec
    return Planned(
        input=str(prepared.job.source),
        output=prepared.shown_output,
        source_width=info.width_px,
        source_height=info.height_px,
        width=spec.coded_size_px[0],
        height=spec.coded_size_px[1],
        scale=prepared.plan.scale,
        model=prepared.model,
        codec=spec.codec,
        pix_fmt=spec.pix_fmt,
        frames_total=estimate_frames(info, prepared.window),
        kept=(
            *(stream.describe() for stream in prepared.streams.copied),
            *(str(converted) for converted in prepared.streams.converted),
        ),
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
        self._head = file_head(prepared.info.source)
        job = prepared.job
        self._made: str | None = None
        self._live: LiveStream | None = None
        if job.stdout is not None:
            keeps = job.resume and job.pipe is None
            self._live = LiveStream(self._stream, job.stdout, name=job.stdout_name, stop=work.stop, keeps=keeps)
            self._segment_frames = min(segment_frames, STREAM_SEGMENT_FRAMES)

    def run(self, started_s: float) -> UpscaleReport:
        prepared, spec, work = self._prepared, self._prepared.spec, self._work
        for message in prepared.warnings:
            work.warn(message)
        if prepared.job.strict and prepared.job.pipe is None:
            self._check_whole()
        with self._spooling(), self._live or nullcontext():
            built, progress = with_smaller_plans(
                lambda max_memory: self._attempt(max_memory, started_s),
                prepared.job.max_memory,
                work,
                stream=self._live,
            )
            work.check_stop()
            if self._live is not None:
                work.check_stream(self._live)
            if not work.journal.frames:
                raise UsageError(f"{work.name}: no frame lies in the part that was asked for")
            placement = work.journal.placement
            frames = placement.frames if placement is not None and work.journal.placed else self._put_in_place()
        return UpscaleReport(
            input=work.name,
            output=prepared.shown_output,
            skipped=False,
            model=prepared.model,
            precision=built.precision,
            settings=dict(built.settings),
            encoder=spec.summary,
            frames_in=work.journal.frames,
            frames_out=frames,
            width=spec.coded_size_px[0],
            height=spec.coded_size_px[1],
            warnings=tuple(work.warnings),
            guard=prepared.job.guard,
            guarded_share=built.upscaler.guarded_share,
            **progress.measured(device=built.device, stages=built.upscaler.stage_seconds),
        )

    def _attempt(self, max_memory: str | None, started_s: float) -> tuple[Built, Progress]:
        """Load the model and bring all frames into segments, within so much memory."""
        prepared, work = self._prepared, self._work
        if max_memory != prepared.job.max_memory:
            prepared = replace(prepared, job=replace(prepared.job, max_memory=max_memory))
        with telling_memory_errors():
            built = self._build(prepared)
        self._made = made_by_upscaling(prepared, built)
        for message in built.warnings:
            work.warn(message)
        is_used_up = prepared.job.pipe is not None and not self._spools
        with telling_memory_errors(None if is_used_up else built.planned_bytes):
            check_unchanged(prepared.info.source, self._head, frames=0)
            journal = work.open_journal(_fingerprint(prepared, built, self._segment_frames))
            total = estimate_frames(prepared.info, prepared.window)
            progress = Progress(work, total=total, clock=self._clock, started_s=started_s)
            self._check_space(built)
            work.listener(
                Started(
                    input=work.name,
                    output=prepared.shown_output,
                    model=prepared.model,
                    device=built.device,
                    precision=built.precision,
                    threads=prepared.threads,
                    frames_total=total,
                    frames_resumed=journal.safe_frames,
                    note=self._note,
                    predicted_s=built.predicted_seconds(total, journal.safe_frames),
                )
            )
            if self._live is not None:
                self._live.begin(journal.files)
            if not journal.complete:
                self._move(built, progress)
        return built, progress

    @property
    def _note(self) -> str | None:
        if self._prepared.job.pipe is not None and self._prepared.job.resume:
            return f"{self._work.label}: what comes from stdin cannot be read twice, so this run cannot be resumed"
        return self._work.note

    @property
    def _spools(self) -> bool:
        """Whether the input is a pipe of which more than the picture is wanted."""
        job = self._prepared.job
        return job.pipe is not None and job.temp is not None and bool(self._prepared.streams.copied)

    @contextmanager
    def _spooling(self) -> Generator[None]:
        """Keep what comes through a pipe for a second reading, while the block runs."""
        pipe, spool = self._prepared.job.pipe, self._work.folder / SPOOL
        if pipe is None or not self._spools:
            yield
            return
        try:
            take_away(spool)
            pipe.spool_to(spool)
            yield
        finally:
            pipe.release()
            spool.unlink(missing_ok=True)

    def _check_whole(self) -> None:
        """Read the input once, so that what is damaged is refused before the work and not after it."""
        from ultraflash_cli.video.decode import ReadReport, read_frames

        report = ReadReport()
        info, threads = self._prepared.info, self._decode_threads
        # Asked for transparency and captions, it does not warn of losing them.
        for _ in read_frames(info, alpha=True, warn=self._work.warn, threads=threads, report=report, captions=True):
            self._work.check_stop()
        self._refuse_damage(report)

    def _refuse_damage(self, report: "ReadReport") -> None:
        if report.damaged:
            raise InputError(
                f"{self._work.name}: damaged or cut, refused by --strict: {report.frames} frames could be read, "
                f"{report.failures} packets could not, {float(report.lost_s):.2f} s of the end are lost"
            )

    def _check_space(self, built: Built) -> None:
        """Refuse a disk without room for what is still to be written: segments, states, the joined file."""
        prepared, work, spec = self._prepared, self._work, self._prepared.spec
        if work.journal.placed:
            return
        total = estimate_frames(prepared.info, prepared.window) or 0
        left = 0 if work.journal.complete else max(0, total - work.journal.frames)

        def encoded(frames: int) -> int:
            return encoded_bytes(spec.codec, width_px=spec.width_px, height_px=spec.height_px, frames=frames)

        # The state before is deleted when the next one is safe.
        kept = encoded(left) + (2 * built.state_bytes if left > self._segment_frames else 0)
        joined = encoded(total) + (input_bytes(prepared.info.source) if prepared.streams.copied else 0)
        if self._live is not None:
            joined = 0
        if work.folder == work.place:
            check_space(work.folder, kept + joined)
        else:
            check_space(work.folder, kept)
            check_space(work.place, joined)

    @property
    def _decode_threads(self) -> int:
        return min(_DECODE_THREADS, self._prepared.threads)

    def _move(self, built: Built, progress: Progress) -> None:
        prepared, spec, info = self._prepared, self._prepared.spec, self._prepared.info
        pixel_bytes = (4 if spec.alpha else 3) * (2 if info.bit_depth > 8 else 1)
        move_frames(
            self._source_frames,
            built.upscaler,
            self._work.journal,
            self._open_segment,
            output=prepared.output,
            segment_frames=self._segment_frames,
            seed=prepared.job.seed,
            output_frame_bytes=pixel_bytes * spec.width_px * spec.height_px,
            source_frame_bytes=pixel_bytes * info.width_px * info.height_px,
            stop=self._work.stop if self._live is None else self._live.stop,
            busy=progress.busy,
            on_group=progress.on_group,
            on_segment=self._live.add if self._live is not None else None,
            write=writer_of(prepared),
            pausable=prepared.job.resume and prepared.job.pipe is None,
        )

    def _open_segment(self, path: Path) -> "list[SegmentSink]":
        from ultraflash_cli.video.segment import SegmentWriter

        spec = self._prepared.spec
        return [SegmentWriter(path, spec) if self._prepared.fps is None else ThinnedSegment(path, spec)]

    def _source_frames(self) -> Iterator[SourceFrame]:
        """Give every wanted frame, numbered from 0, with the scene cuts marked; they depend on the frames alone."""
        info, window, pace = self._prepared.info, self._prepared.window, self._pace()
        number = 0
        for frame, starts_scene in self._marked_frames():
            if window is not None and frame.pts * info.time_base < window[0]:
                continue
            if window is not None and frame.pts * info.time_base >= window[1]:
                return
            times = tuple(pace.times(frame.pts, frame.duration)) if pace is not None else None
            yield SourceFrame(number, starts_scene, frame.rgb_hwc, frame.pts, frame.duration, frame.alpha_hw, times)
            number += 1

    def _pace(self) -> Pace | None:
        from ultraflash_cli.video.encode import made_times

        fps, info = self._prepared.fps, self._prepared.info
        if fps is None:
            return None
        return Pace(fps, time_base=info.time_base, rate=info.average_rate, ticks=made_times(fps)[1])

    def _marked_frames(self) -> "Iterator[tuple[DecodedFrame, bool]]":
        from ultraflash_cli.video.cuts import CutDetector

        frames = self._read_frames()
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

    def _read_frames(self) -> "Iterator[DecodedFrame]":
        from ultraflash_cli.video.captions import carries_captions
        from ultraflash_cli.video.containers import FORMATS
        from ultraflash_cli.video.decode import ReadReport, read_frames

        report, info, threads = ReadReport(), self._prepared.info, self._decode_threads
        spec = self._prepared.spec
        captions = self._live is None and self._prepared.streams.suffix in FORMATS and carries_captions(info, spec)
        yield from read_frames(
            info, alpha=spec.alpha, warn=self._work.warn, threads=threads, report=report, captions=captions
        )
        if self._prepared.job.strict:
            self._refuse_damage(report)

    def _put_in_place(self) -> int:
        """Join, check, and hand over the output; gives its number of frames."""
        from ultraflash_cli.video.join import join
        from ultraflash_cli.video.segment import read_record

        prepared, work = self._prepared, self._work
        info, streams, spec, made = prepared.info, prepared.streams, prepared.spec, self._made
        if self._spools and prepared.job.pipe is not None:
            prepared.job.pipe.read_to_end()
        if self._live is not None:
            return work.stream_out(self._live)
        check_unchanged(info.source, self._head, frames=work.journal.frames)
        # A segment of which no frame is shown at another rate is an empty file.
        files = [path for path in work.journal.files if path.stat().st_size]
        records = [read_record(path) for path in files]
        frames, first, last = sum(record.frames for record in records), records[0], records[-1]
        finish = finish_of(
            files,
            streams,
            spec,
            frames=frames,
            duration_s=(last.last_pts + last.last_duration - first.first_pts) * spec.time_base,
            first_number=prepared.first_number,
            join=lambda joined, plan: join(files, info, plan, spec, joined, window=prepared.window, made=made),
            made=made,
            strict=prepared.job.strict,
        )
        work.put_in_place({prepared.output: finish}, frames=frames)
        return frames

    def _stream(self, segments: Iterator[Path], sink: "ByteSink") -> "Streamed":
        from ultraflash_cli.video.live import stream_clip

        assert self._live is not None, "who streams has a stream"
        prepared, name = self._prepared, self._live.called
        streams, spec, window = prepared.streams, prepared.spec, prepared.window
        return stream_clip(segments, streams, spec, sink, info=prepared.info, window=window, name=name, made=self._made)


def _build(prepared: Prepared) -> Built:
    from ultraflash_cli.jobs.running.loader import build

    return build(prepared)


def _fingerprint(prepared: Prepared, built: Built, segment_frames: int) -> dict[str, object]:
    """Collect, by the names people know, all that the pixels and packets of the output depend on."""
    job = prepared.job
    return {
        **input_facts(prepared.info.source),
        "--model": prepared.model,
        "the model's weights": built.weights,
        "--res": f"{prepared.spec.width_px}x{prepared.spec.height_px}",
        "--strength": job.strength,
        "--detail": 1.0 if job.detail is None else job.detail,
        "--color": job.color,
        "--guard": job.guard,
        "--seed": job.seed,
        "--cuts": job.cuts,
        "--audio": job.audio,
        "--subs": job.subs,
        "--deinterlace": job.deinterlace,
        "--fps": str(prepared.fps),
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
