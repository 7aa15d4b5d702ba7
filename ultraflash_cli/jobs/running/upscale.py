"""Upscale one planned clip in segments that survive interruptions; join and check them,
and put the output in place."""

import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from ultraflash_cli.buffers import SEGMENT_FRAMES
from ultraflash_cli.errors import UsageError
from ultraflash_cli.jobs.events import Done, Listener, Planned
from ultraflash_cli.jobs.planning.inputs import (
    check_unchanged,
    file_head,
    first_number,
    input_bytes,
    input_facts,
    is_photo,
)
from ultraflash_cli.jobs.planning.spans import Span
from ultraflash_cli.jobs.planning.target import check_space, encoded_bytes
from ultraflash_cli.jobs.planning.upscale import Prepared, UpscaleJob, estimate_frames
from ultraflash_cli.jobs.provenance.made import made_by_upscaling, with_guarded_share
from ultraflash_cli.jobs.resume.owned_files import SPOOL, take_away
from ultraflash_cli.jobs.running import run as running
from ultraflash_cli.jobs.running.finish import finish_of
from ultraflash_cli.jobs.running.live import LiveStream
from ultraflash_cli.jobs.running.loader import Builder, Models
from ultraflash_cli.jobs.running.prepare import prepare
from ultraflash_cli.jobs.running.report import Progress, Report
from ultraflash_cli.jobs.running.sinks import ThinnedSegment, writer_of
from ultraflash_cli.jobs.running.source import check_whole, source_frames
from ultraflash_cli.jobs.running.stop import Stop
from ultraflash_cli.jobs.running.upscaling import move_frames
from ultraflash_cli.jobs.running.work import Finish, Work
from ultraflash_cli.models.built import Built
from ultraflash_cli.models.frames import FrameUpscaler
from ultraflash_cli.video.join import join
from ultraflash_cli.video.live import Streamed, stream_clip
from ultraflash_cli.video.photos import photo_data
from ultraflash_cli.video.pipe import Pipe
from ultraflash_cli.video.segment import SegmentWriter
from ultraflash_cli.video.segment_file import SegmentFile, SegmentSink
from ultraflash_cli.video.sequence import ImageSequence
from ultraflash_cli.video.y4m import ByteSink

__all__ = ["UpscaleReport", "Upscaling", "run"]


@dataclass(frozen=True, kw_only=True)
class UpscaleReport(Report):
    """The report of one upscaled clip."""

    guard: float | None = None
    """Maximum allowed deviation of the result from its source, in levels of 255."""
    guarded_share: float | None = None
    """Share of pixels, at the smaller size, that departed further and were blended
    back."""

    reading: dict[str, object] | None = None
    """Measurements for reading the clip, and the repairs made."""

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
    """Upscale one clip; see `running.run.run`."""
    task = Upscaling(prepare(job), build or Models().upscaler, segment_frames=segment_frames)
    return running.run(task, on_event, stop=stop, clock=clock)


class Upscaling(running.Task[Prepared, FrameUpscaler, UpscaleReport]):
    """The task of upscaling one clip."""

    def __init__(
        self,
        prepared: Prepared,
        build: Builder,
        *,
        segment_frames: int = SEGMENT_FRAMES,
        span: Span | None = None,
    ) -> None:
        """With `span`, upscale only its frames; otherwise see `running.Task`."""
        name = str(prepared.job.source)
        label = name if span is None else f"{name}, frames {span.first} to {span.end}"
        super().__init__(prepared, build, name=name, label=label, segment_frames=segment_frames)
        job = prepared.job
        self.is_resumable = job.resume and job.pipe is None
        self.total_frames = estimate_frames(prepared.info, prepared.window)
        self._span = span
        if span is not None:
            self.first_frame, self.total_frames = span.first, span.end
        self._spools = job.pipe is not None and job.temp is not None and bool(prepared.streams.copied)
        """Whether the input is a pipe that must supply more than the picture."""
        self.can_retry = job.pipe is None or self._spools or isinstance(prepared.info.source, Path)
        self._head = file_head(prepared.info.source)

    def planned(self) -> Planned:
        prepared, info, spec = self.prepared, self.prepared.info, self.prepared.spec
        return Planned(
            input=self.name,
            output=prepared.shown_output,
            source_width=info.width_px,
            source_height=info.height_px,
            width=spec.coded_size_px[0],
            height=spec.coded_size_px[1],
            scale=prepared.plan.scale,
            model=prepared.model,
            codec=spec.codec,
            encoder=spec.encoder,
            pix_fmt=spec.pix_fmt,
            frames_total=self.total_frames,
            kept=(
                *(stream.describe() for stream in prepared.streams.copied),
                *(str(converted) for converted in prepared.streams.converted),
            ),
            dropped=tuple(str(dropped) for dropped in prepared.streams.dropped),
        )

    @contextmanager
    def reading(self, work: Work) -> Generator[None]:
        """Keep a pipe's content for a second reading; with `--strict` read a file once
        before the work."""
        job, spool = self.prepared.job, work.folder / SPOOL
        if job.strict and job.pipe is None and self._span is None:
            check_whole(self.prepared, work.warn, work.check_stop)
        if job.pipe is None or not self._spools:
            yield
            return
        try:
            take_away(spool)
            job.pipe.spool_to(spool)
            yield
        finally:
            job.pipe.release()
            spool.unlink(missing_ok=True)

    def inputs(self) -> dict[str, object]:
        check_unchanged(self.prepared.info.source, self._head, frames=0)
        return input_facts(self.prepared.info.source)

    def options(self) -> dict[str, object]:
        prepared, job = self.prepared, self.prepared.job

        return {
            "--strength": job.strength,
            "--detail": 1.0 if job.detail is None else job.detail,
            "--color": job.color,
            "--guard": job.guard,
            "--cuts": job.cuts,
            "--audio": job.audio,
            "--subs": job.subs,
            "--deinterlace": job.deinterlace,
            "--crop": job.crop,
            "--chroma-shift": job.chroma_shift,
            "--grain": job.grain,
            "what was measured": repr(prepared.reading.facts()),
            "--fps": str(prepared.fps),
            "--start and --end": repr(prepared.window),
            "--side-by-side": job.side_by_side,
            "the plan": repr(prepared.plan),
            "the encoder": repr(prepared.spec),
            "the streams": repr(prepared.streams),
        }

    def tag(self, prepared: Prepared, built: Built[FrameUpscaler]) -> str | None:
        return made_by_upscaling(prepared, built)

    def check(self, work: Work, built: Built[FrameUpscaler]) -> None:
        """Raise an error if the disk lacks room for everything still to be written:
        segments, states, the joined file."""
        prepared, spec = self.prepared, self.prepared.spec
        if work.journal.placed:
            return
        total = self.total_frames or 0
        left = 0 if work.journal.complete else max(0, total - work.journal.frames)

        def encoded(frames: int) -> int:
            return encoded_bytes(spec.codec, width_px=spec.width_px, height_px=spec.height_px, frames=frames)

        # The previous state is deleted once the next one is safe.
        kept = encoded(left) + (2 * built.state_bytes if left > self.segment_frames else 0)
        joined = encoded(total) + (input_bytes(prepared.info.source) if prepared.streams.copied else 0)
        if prepared.job.stdout is not None or self._span is not None:
            joined = 0
        if work.folder == work.place:
            check_space(work.folder, kept + joined)
        else:
            check_space(work.folder, kept, option="--temp-dir")
            check_space(work.place, joined)

    def note(self, work: Work) -> str | None:
        if isinstance(self.prepared.info.source, Pipe) and self.prepared.job.resume:
            return f"{self.label}: stdin cannot be read twice, so this run cannot be resumed"
        return work.note

    def move(self, work: Work, built: Built[FrameUpscaler], progress: Progress, stream: LiveStream | None) -> None:
        prepared, spec, info = self.prepared, self.prepared.spec, self.prepared.info
        pixel_bytes = (4 if spec.alpha else 3) * (2 if info.bit_depth > 8 else 1)
        move_frames(
            lambda: source_frames(prepared, work.warn, self._span),
            built.model,
            work.journal,
            self._open_segment,
            output=prepared.output,
            segment_frames=self.segment_frames,
            seed=prepared.job.seed,
            output_frame_bytes=pixel_bytes * spec.width_px * spec.height_px,
            source_frame_bytes=pixel_bytes * info.width_px * info.height_px,
            stop=work.stop if stream is None else stream.stop,
            busy=progress.busy,
            on_group=progress.on_group,
            on_segment=stream.add if stream is not None else None,
            write=writer_of(prepared),
            pausable=self.is_resumable,
            keep_states=self.is_resumable,
        )

    def _open_segment(self, path: Path) -> list[SegmentSink]:
        spec, show = self.prepared.spec, self.prepared.job.show
        sink = SegmentWriter(path, spec) if self.prepared.fps is None else ThinnedSegment(path, spec)
        return [sink if show is None else show.shown(sink)]

    def check_moved(self, work: Work) -> None:
        if not work.journal.frames:
            raise UsageError(f"{self.name}: no frames in the selected range")
        if self._spools and self.prepared.job.pipe is not None:
            self.prepared.job.pipe.read_to_end()

    def stream_out(self, segments: Iterator[SegmentFile], sink: ByteSink, name: str) -> Streamed:
        prepared = self.prepared
        return stream_clip(
            segments,
            prepared.streams,
            prepared.spec,
            sink,
            info=prepared.info,
            window=prepared.window,
            name=name,
            made=self.made,
        )

    def finishes(self, work: Work) -> tuple[Mapping[Path, Finish], int]:
        prepared, info, spec = self.prepared, self.prepared.info, self.prepared.spec
        check_unchanged(info.source, self._head, frames=work.journal.frames)
        files = work.journal.files()
        frames, first, last = sum(file.frames for file in files), files[0], files[-1]
        self.made = with_guarded_share(self.made, _guarded_share(work))
        finish = finish_of(
            files,
            prepared.streams,
            spec,
            frames=frames,
            duration_s=(last.last_pts + last.last_duration - first.first_pts) * spec.time_base,
            first_number=prepared.first_number,
            join=lambda joined, plan: join(files, info, plan, spec, joined, window=prepared.window, made=self.made),
            made=self.made,
            photo=_photo_reader(prepared),
            strict=prepared.job.strict,
        )
        return {prepared.output: finish}, frames

    def report(self, work: Work | None, built: Built[FrameUpscaler] | None, **common: Any) -> UpscaleReport:
        if work is None or built is None:
            return UpscaleReport(**common)
        return UpscaleReport(
            frames_in=work.journal.frames,
            guard=self.prepared.job.guard,
            guarded_share=_guarded_share(work),
            reading=self.prepared.reading.facts(),
            **common,
        )


def _photo_reader(prepared: Prepared) -> Callable[[int], Mapping[str, bytes]] | None:
    """Return what reads the tags and the profile of the input of each frame, counted
    from 0; None unless the inputs are pictures and the first has some."""
    info, window = prepared.info, prepared.window
    source, skipped = info.source, 0
    if isinstance(source, ImageSequence):
        start_s = window[0] - (info.start_pts or 0) * info.time_base if window is not None else Fraction(0)
        skipped = first_number(source, start_s) - source.first
    elif not is_photo(info):
        return None
    if not photo_data(source, skipped):
        return None
    return lambda number: photo_data(source, skipped + number)


def _guarded_share(work: Work) -> float | None:
    """Return the share of pixels in the whole clip that were blended back; None without
    a guard."""
    strayed, compared = work.journal.guarded or (0, 0)
    return strayed / compared if compared else None
