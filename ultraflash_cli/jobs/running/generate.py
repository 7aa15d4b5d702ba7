"""Generate one clip: what is decided, made in segments that survive any interruption, joined, checked, put in place."""

import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from fractions import Fraction
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from ultraflash_cli.buffers import SEGMENT_FRAMES
from ultraflash_cli.jobs.events import GenerationPlanned, Listener, Started
from ultraflash_cli.jobs.made import made_by_generating
from ultraflash_cli.jobs.planning.generate import GenerateJob, PreparedGeneration, prepare_generation
from ultraflash_cli.jobs.resume.fingerprint import file_facts, library_versions
from ultraflash_cli.jobs.running.finish import finish_of
from ultraflash_cli.jobs.running.live import STREAM_SEGMENT_FRAMES, LiveStream
from ultraflash_cli.jobs.running.loader import BuiltGeneration, GenerationBuilder, Models
from ultraflash_cli.jobs.running.report import Progress, Report
from ultraflash_cli.jobs.running.run import (
    Finish,
    Work,
    telling_memory_errors,
    with_smaller_plans,
    working_on,
)
from ultraflash_cli.jobs.running.upscaling import make_frames
from ultraflash_cli.jobs.stop import Stop

if TYPE_CHECKING:
    from ultraflash_cli.video.color import Picture
    from ultraflash_cli.video.encode import EncodeSpec
    from ultraflash_cli.video.live import Streamed
    from ultraflash_cli.video.y4m import ByteSink

__all__ = [
    "GenerateJob",
    "GenerateReport",
    "PreparedGeneration",
    "planned_generation",
    "prepare_generation",
    "run_generation",
    "run_prepared_generation",
]

_DECODE_THREADS = 4
"""More do not help one clip; the frames are the same with any number."""


@dataclass(frozen=True, kw_only=True)
class GenerateReport(Report):
    """How it went with one generated clip; `input` is the prompt, `frames_in` counts those of an initial clip."""

    prompt: str
    seed: int
    low_output: str | None = None
    """The clip at the base size, where it was asked for."""
    fps: float | None = None
    """Frames a second in the file."""
    counters: dict[str, int] | None = None
    """What the model did and what it spared, by name; empty where an interrupted run had made everything."""


def run_generation(
    job: GenerateJob,
    on_event: Listener,
    *,
    stop: Stop | None = None,
    build: GenerationBuilder | None = None,
    clock: Callable[[], float] = time.monotonic,
    segment_frames: int = SEGMENT_FRAMES,
) -> GenerateReport:
    """Generate one clip and put it in place, going on where an interrupted run left off.

    Raises the errors of `ultraflash_cli.errors`: Interrupted once `stop` was requested, with every finished segment
    kept for the next run. `on_event` is never called by two threads at a time.
    """
    prepared = prepare_generation(job)
    return run_prepared_generation(
        prepared, on_event, stop=stop, build=build, clock=clock, segment_frames=segment_frames
    )


def run_prepared_generation(
    prepared: PreparedGeneration,
    on_event: Listener,
    *,
    stop: Stop | None = None,
    build: GenerationBuilder | None = None,
    clock: Callable[[], float] = time.monotonic,
    segment_frames: int = SEGMENT_FRAMES,
) -> GenerateReport:
    """Do what `prepare_generation` has decided; see `run_generation`."""
    started_s = clock()
    job, prompt = prepared.job, prepared.prompt
    if prepared.exists:
        return GenerateReport(
            input=prompt,
            prompt=prompt,
            seed=job.seed,
            output=prepared.shown_output,
            skipped=True,
            model=prepared.model,
        )
    plan = planned_generation(prepared)
    with working_on(
        prepared.output,
        name=prompt,
        label=prepared.label,
        resume=job.resume,
        overwrite=job.overwrite,
        plan=plan,
        listener=on_event,
        stop=stop,
        temp=job.temp,
    ) as work:
        report = _Generation(prepared, work, build or _build, clock, segment_frames).run(started_s)
    work.listener(report.done())
    return report


def planned_generation(prepared: PreparedGeneration) -> GenerationPlanned:
    """Tell what a prepared job is going to do."""
    (height, width), spec = prepared.base_size, prepared.spec
    return GenerationPlanned(
        input=prepared.prompt,
        output=prepared.shown_output,
        source_width=width,
        source_height=height,
        width=spec.width_px,
        height=spec.height_px,
        scale=prepared.scale,
        model=prepared.model,
        codec=spec.codec,
        pix_fmt=spec.pix_fmt,
        frames_total=prepared.frames,
        kept=(),
        dropped=(),
        low_output=str(prepared.low_output) if prepared.low_output is not None else None,
        seed=prepared.job.seed,
        seconds=float(_shown_frames(prepared) / spec.rate),
        long=prepared.long,
        groups=prepared.plan.pixel_frames,
        cache_management=str(prepared.cache_management),
        notice=prepared.notice,
    )


class _Generation:
    """One clip on its way into its output."""

    def __init__(
        self,
        prepared: PreparedGeneration,
        work: Work,
        build: GenerationBuilder,
        clock: Callable[[], float],
        segment_frames: int,
    ) -> None:
        self._prepared = prepared
        self._work = work
        self._build = build
        self._clock = clock
        self._segment_frames = segment_frames
        self._made: str | None = None
        self._live: LiveStream | None = None
        job = prepared.job
        if job.stdout is not None:
            self._live = LiveStream(self._stream, job.stdout, name=job.stdout_name, stop=work.stop, keeps=job.resume)
            self._segment_frames = min(segment_frames, STREAM_SEGMENT_FRAMES)

    def run(self, started_s: float) -> GenerateReport:
        prepared, spec, work = self._prepared, self._prepared.spec, self._work
        for message in prepared.warnings:
            work.warn(message)
        clip, live = self._read_clip(), self._live
        with live or nullcontext():
            built, progress, counters = with_smaller_plans(
                lambda max_memory: self._attempt(max_memory, clip, started_s),
                prepared.job.max_memory,
                work,
                stream=live,
            )
            work.check_stop()
            if live is not None:
                work.check_stream(live)
                work.stream_out(live)
            elif not work.journal.placed:
                self._put_in_place()
        return GenerateReport(
            input=work.name,
            prompt=work.name,
            seed=prepared.job.seed,
            output=prepared.shown_output,
            low_output=str(prepared.low_output) if prepared.low_output is not None else None,
            skipped=False,
            model=prepared.model,
            precision=built.precision,
            settings=dict(built.settings),
            encoder=spec.summary,
            frames_in=len(clip or ()),
            frames_out=_shown_frames(prepared),
            width=spec.width_px,
            height=spec.height_px,
            fps=int(spec.rate) if spec.rate.denominator == 1 else float(spec.rate),
            counters=counters,
            warnings=tuple(work.warnings),
            **progress.measured(device=built.device, stages=built.generator.stage_seconds),
        )

    def _attempt(
        self, max_memory: str | None, clip: "list[Picture] | None", started_s: float
    ) -> tuple[BuiltGeneration, Progress, dict[str, int]]:
        """Load the model and bring all frames into segments, within so much memory; gives its counters, too."""
        prepared, work = self._prepared, self._work
        if max_memory != prepared.job.max_memory:
            prepared = replace(prepared, job=replace(prepared.job, max_memory=max_memory))
        with telling_memory_errors():
            built = self._build(prepared)
        self._made = made_by_generating(prepared, built)
        for message in built.warnings:
            work.warn(f"{work.label}: {message}")
        counters: dict[str, int] = {}
        with telling_memory_errors(built.planned_bytes):
            journal = work.open_journal(_fingerprint(prepared, built, self._segment_frames))
            progress = Progress(work, total=prepared.frames, clock=self._clock, started_s=started_s)
            work.listener(
                Started(
                    input=work.name,
                    output=prepared.shown_output,
                    model=prepared.model,
                    device=built.device,
                    precision=built.precision,
                    threads=prepared.threads,
                    frames_total=prepared.frames,
                    frames_resumed=journal.safe_frames,
                    note=work.note,
                    label=work.label,
                )
            )
            if self._live is not None:
                self._live.begin(journal.files)
            if not journal.complete:
                counters = self._make(built, clip, progress)
        return built, progress, counters

    def _read_clip(self) -> "list[Picture] | None":
        from ultraflash_cli.engine.schedule import GENERATED_FPS
        from ultraflash_cli.jobs.running.init_clip import read_ending

        prepared = self._prepared
        if prepared.clip is None:
            return None
        height_px, width_px = prepared.base_size
        return read_ending(
            prepared.clip,
            lengths=prepared.clip_lengths,
            rate=GENERATED_FPS,
            height_px=height_px,
            width_px=width_px,
            warn=self._work.warn,
            threads=min(_DECODE_THREADS, prepared.threads),
        )

    def _make(self, built: BuiltGeneration, clip: "list[Picture] | None", progress: Progress) -> dict[str, int]:
        from ultraflash_cli.video.segment import SegmentWriter

        prepared, spec, low_spec = self._prepared, self._prepared.spec, self._prepared.low_spec

        def open_segment(path: Path) -> list[SegmentWriter]:
            writers = [SegmentWriter(path, spec)]
            return [*writers, SegmentWriter(_low_segment(path), low_spec)] if low_spec is not None else writers

        sizes = [3 * each.width_px * each.height_px for each in (spec, low_spec) if each is not None]
        return make_frames(
            built.generator,
            self._work.journal,
            open_segment,
            output=prepared.output,
            frames=prepared.frames,
            show=lambda number: _shown(prepared, number),
            seed=prepared.job.seed,
            clip=clip,
            frame_bytes=sum(sizes),
            stop=self._work.stop if self._live is None else self._live.stop,
            busy=progress.busy,
            on_group=progress.on_group,
            on_segment=self._live.add if self._live is not None else None,
            keep_states=prepared.job.resume,
            segment_frames=self._segment_frames,
        )

    def _put_in_place(self) -> None:
        from ultraflash_cli.video.join import join_alone

        prepared, segments = self._prepared, self._work.journal.files
        frames, tags, made = _shown_frames(prepared), _tags(prepared), self._made

        def finish(files: list[Path], spec: "EncodeSpec") -> Finish:
            return finish_of(
                files,
                prepared.streams,
                spec,
                frames=frames,
                duration_s=Fraction(frames) / spec.rate,
                join=lambda joined, plan: join_alone(files, plan, spec, joined, tags=tags, made=made),
                made=made,
            )

        finishes: dict[Path, Finish] = {}
        # The main output comes last: where it is, everything is.
        if prepared.low_output is not None and prepared.low_spec is not None:
            finishes[prepared.low_output] = finish([_low_segment(path) for path in segments], prepared.low_spec)
        finishes[prepared.output] = finish(segments, prepared.spec)
        self._work.put_in_place(finishes, frames=frames)

    def _stream(self, segments: Iterator[Path], sink: "ByteSink") -> "Streamed":
        from ultraflash_cli.video.live import stream_clip

        assert self._live is not None, "who streams has a stream"
        prepared, name = self._prepared, self._live.called
        return stream_clip(
            segments, prepared.streams, prepared.spec, sink, tags=_tags(prepared), name=name, made=self._made
        )


def _low_segment(path: Path) -> Path:
    """Give the file beside a segment that holds its frames at the base size; the journal keeps both together."""
    return path.with_name(f"{path.name}.480p")


def _shown_frames(prepared: PreparedGeneration) -> int:
    """Count the frames of the file: the clip's duration at the file's rate, to the nearest frame."""
    from ultraflash_cli.engine.schedule import GENERATED_FPS

    return max(1, round(prepared.frames * prepared.spec.rate / GENERATED_FPS))


def _shown(prepared: PreparedGeneration, number: int) -> Iterator[tuple[int, int]]:
    """Give time stamp and duration of each frame of the file that shows the generated frame `number`.

    A frame of the file shows what is on at its time at the model's own rate.
    """
    from ultraflash_cli.engine.schedule import GENERATED_FPS
    from ultraflash_cli.video.encode import made_times

    rate = prepared.spec.rate
    _, ticks = made_times(rate)
    first, end = (-(-at * rate // GENERATED_FPS) for at in (number, number + 1))
    for place in range(first, min(end, _shown_frames(prepared))):
        yield place * ticks, ticks


def _tags(prepared: PreparedGeneration) -> dict[str, str]:
    """Give what the file says of itself: the prompt, and what made it; nothing where it is to say nothing."""
    if not prepared.job.tag:
        return {}
    made_by = f"ultraflash {version('ultraflash')}, model {prepared.model}, seed {prepared.job.seed}"
    return {"title": prepared.prompt, "comment": f"Generated by {made_by}"}


def _build(prepared: PreparedGeneration) -> BuiltGeneration:
    return Models().generator(prepared)


def _fingerprint(prepared: PreparedGeneration, built: BuiltGeneration, segment_frames: int) -> dict[str, object]:
    """Collect, by the names people know, all that the pixels and packets of the output depend on."""
    job, spec = prepared.job, prepared.spec
    return {
        "the prompt": prepared.prompt,
        "--seed": job.seed,
        "--model": prepared.model,
        "the model's weights": built.weights,
        "--decoder": job.decoder,
        "--res": f"{spec.width_px}x{spec.height_px}",
        "the number of frames": prepared.frames,
        "--fps": str(spec.rate),
        "--save-lr": job.save_lr,
        "--cache-management": str(prepared.cache_management),
        **(file_facts("the initial clip", job.init_clip) if job.init_clip is not None else {}),
        "--init-clip": prepared.clip_lengths,
        "--device": built.device,
        "--precision": built.precision,
        "--threads": prepared.threads,
        "--codec": spec.codec,
        "--crf": spec.crf,
        "--pix-fmt": spec.pix_fmt,
        "--enc-opt": job.enc_options,
        "--resume": job.resume,
        "the plan": repr((prepared.plan, prepared.generator)),
        "the memory plan": built.memory_plan,
        "the encoder": repr((spec, prepared.low_spec)),
        "the segments' length": segment_frames,
        **library_versions(),
    }
