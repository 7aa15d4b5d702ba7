"""Run one job of `upscale` or `generate`, from its lock to its report."""

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from ultraflash_cli.buffers import SEGMENT_FRAMES, segment_length
from ultraflash_cli.errors import OutOfMemory
from ultraflash_cli.host import keep_freed_memory, running_threads
from ultraflash_cli.jobs.events import Event, Listener, Planned, Retrying, Started
from ultraflash_cli.jobs.planning.generate import PreparedGeneration
from ultraflash_cli.jobs.planning.upscale import Prepared
from ultraflash_cli.jobs.resume.fingerprint import library_versions
from ultraflash_cli.jobs.running.live import STREAM_SEGMENT_FRAMES, LiveStream
from ultraflash_cli.jobs.running.report import Progress, Report
from ultraflash_cli.jobs.running.stop import Stop
from ultraflash_cli.jobs.running.work import Finish, Work, locked_work
from ultraflash_cli.models.built import Built
from ultraflash_cli.models.frames import FrameGenerator, FrameUpscaler, saving_bytes
from ultraflash_cli.models.oom import free_memory, oom_errors
from ultraflash_cli.video.live import Streamed
from ultraflash_cli.video.segment_file import SegmentFile
from ultraflash_cli.video.y4m import ByteSink

__all__ = ["Task", "compute", "fingerprint", "run"]

PreparedT = TypeVar("PreparedT", Prepared, PreparedGeneration)
ModelT = TypeVar("ModelT", FrameUpscaler, FrameGenerator)
ReportT = TypeVar("ReportT", bound=Report)


class Task(ABC, Generic[PreparedT, ModelT, ReportT]):
    """The parts of a job that differ between the commands; `run` calls the methods in
    this order."""

    is_resumable: bool
    """Whether a later run can reuse the finished work of this one."""
    first_frame: int = 0
    """The first frame of the work; tasks of a clip's units start later."""
    numbers_devices: bool = True
    """Whether `cuda:0` and `cuda:1` are different devices; on several machines they are
    of the same kind."""
    can_retry: bool = True
    """Whether the input can be read again, with a smaller memory plan."""
    total_frames: int | None
    """Number of frames that the model produces; None if unknown."""
    made: str | None = None
    """The tag of the outputs, which records how they were made; available once the
    model is loaded."""

    def __init__(
        self,
        prepared: PreparedT,
        build: Callable[[PreparedT], Built[ModelT]],
        *,
        name: str,
        label: str,
        segment_frames: int = SEGMENT_FRAMES,
    ) -> None:
        """Args:
        prepared: the prepared job.
        build: loads the model.
        name: name of the input in events.
        label: name of the input in messages.
        segment_frames: approximate minimum number of frames in a segment.
        """
        self.prepared = prepared
        self.build = build
        self.name = name
        self.label = label
        is_stream = prepared.job.stdout is not None
        self.segment_frames = min(segment_frames, STREAM_SEGMENT_FRAMES) if is_stream else segment_frames

    @abstractmethod
    def planned(self) -> Planned:
        """Return the plan of the job."""

    @abstractmethod
    def reading(self, work: Work) -> AbstractContextManager[None]:
        """Check or read everything that must come before loading the model; the input
        stays readable inside the block."""

    @abstractmethod
    def tag(self, prepared: PreparedT, built: Built[ModelT]) -> str | None:
        """Return the tag of the outputs; None for no tag."""

    def check(self, work: Work, built: Built[ModelT]) -> None:
        """Make the checks that are possible before the first frame, with the journal
        open."""

    @abstractmethod
    def inputs(self) -> dict[str, object]:
        """Return the facts that identify the inputs, under user-facing names."""

    @abstractmethod
    def options(self) -> dict[str, object]:
        """Return the settings that affect pixels and packets, besides those common to
        both commands."""

    def note(self, work: Work) -> str | None:
        """Return why the work resumes or starts over; None for a plain start."""
        return work.note

    @abstractmethod
    def move(self, work: Work, built: Built[ModelT], progress: Progress, stream: LiveStream | None) -> None:
        """Process all missing frames with the model, and write segments."""

    def check_moved(self, work: Work) -> None:
        """Reject an empty result, and read the rest of the input."""

    @abstractmethod
    def stream_out(self, segments: Iterator[SegmentFile], sink: ByteSink, name: str) -> Streamed:
        """Write segments, as they arrive, to a stream whose name in messages is
        `name`."""

    @abstractmethod
    def finishes(self, work: Work) -> tuple[Mapping[Path, Finish], int]:
        """Return how to finish each output, the main one last, and the main one's number of frames."""

    def findings(self, built: Built[ModelT]) -> dict[str, object]:
        """Return the findings about the work for the report, as JSON, for `recall`."""
        return {}

    def recall(self, findings: Sequence[Mapping[str, object]]) -> None:
        """Restore the findings of the joined units, in order."""

    @abstractmethod
    def report(self, work: Work | None, built: Built[ModelT] | None, **common: Any) -> ReportT:
        """Return the report, given the fields common to all reports; without `work`
        nothing was done."""


def run(
    task: Task[Any, Any, ReportT],
    on_event: Listener,
    *,
    stop: Stop | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> ReportT:
    """Run a task and put its outputs in place, resuming where an interrupted run
    stopped.

    Raises the errors of `ultraflash_cli.errors`: Interrupted once `stop` was requested, with every
    finished segment kept for the next run. `on_event` is never called by two threads at a time.
    """
    started_s, prepared, job = clock(), task.prepared, task.prepared.job
    about = {"input": task.name, "output": prepared.shown_output, "model": prepared.model}
    if prepared.exists:
        return task.report(None, None, **about, skipped=True)

    listener = _one_at_a_time(on_event)
    listener(task.planned())
    keep_freed_memory()
    with locked_work(
        prepared.output,
        temp=job.temp,
        name=task.name,
        label=task.label,
        resume=task.is_resumable,
        overwrite=job.overwrite,
        listener=listener,
        stop=stop,
    ) as work:
        for message in prepared.warnings:
            work.warn(message)
        with task.reading(work), _stream_of(task, work) as stream:
            built, progress = _with_smaller_plans(task, work, stream, started_s, clock)
            frames = _finish(task, work, stream)
        report = task.report(
            work,
            built,
            **about,
            skipped=False,
            precision=built.precision,
            settings=dict(built.settings),
            encoder=prepared.spec.summary,
            frames_out=frames,
            width=prepared.spec.coded_size_px[0],
            height=prepared.spec.coded_size_px[1],
            warnings=tuple(work.warnings),
            **progress.measured(device=built.device, stages=built.model.stage_seconds),
        )
    listener(report.done())
    return report


def compute(
    task: Task[Any, Any, Any],
    work: Work,
    *,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[Built[Any], Progress]:
    """Process all frames of a task, and leave the segments in a work folder. Raises the
    same errors as `run`.
    """
    with task.reading(work):
        built, progress = _with_smaller_plans(task, work, None, clock(), clock)
    work.check_stop()
    return built, progress


def _attempt(
    task: Task[Any, Any, Any],
    work: Work,
    stream: LiveStream | None,
    max_memory: str | None,
    started_s: float,
    clock: Callable[[], float],
) -> tuple[Built[Any], Progress]:
    """Load the model and process all frames into segments, within `max_memory`."""
    prepared = task.prepared
    if max_memory != prepared.job.max_memory:
        prepared = replace(prepared, job=replace(prepared.job, max_memory=max_memory))
    with oom_errors():
        built = task.build(prepared)
    task.made = task.tag(prepared, built)
    for message in built.warnings:
        work.warn(f"{task.label}: {message}")
    if stream is not None and task.is_resumable and _delays(built, task.segment_frames):
        # Segments would have to be so long that saving their states pays off, which
        # would delay the stream.
        task.is_resumable = False
        work.keep_nothing(f"the states of {prepared.model} are too large to save within a stream")
        stream.keep_nothing()
    with oom_errors(built.planned_bytes if task.can_retry else None, by_device=built.planned_by_device):
        journal = work.open_journal(fingerprint(task, built), first_frame=task.first_frame)
        progress = Progress(work, total=task.total_frames, clock=clock, started_s=started_s)
        task.check(work, built)
        work.listener(
            Started(
                input=work.name,
                output=prepared.shown_output,
                model=prepared.model,
                device=built.device,
                precision=built.precision,
                threads=running_threads(prepared.threads),
                frames_total=task.total_frames,
                frames_resumed=journal.safe_frames - journal.first_frame,
                note=task.note(work),
                label=task.label if task.label != task.name else None,
                predicted_s=built.predicted_seconds(task.total_frames, journal.safe_frames),
            )
        )

        if prepared.job.show is not None:
            prepared.job.show.begin(prepared.spec, lambda: built.model.stage_seconds | asdict(progress.busy))
        if stream is not None:
            stream.begin(journal.segments)
        if not journal.complete:
            task.move(work, built, progress, stream)
    return built, progress


def _delays(built: Built[Any], segment_frames: int) -> bool:
    """Return whether saving states would make the segments of a stream longer than necessary."""
    return segment_length(segment_frames, saving_bytes(built.state_bytes, built.device)) > segment_frames


def _with_smaller_plans(
    task: Task[Any, Any, Any], work: Work, stream: LiveStream | None, started_s: float, clock: Callable[[], float]
) -> tuple[Built[Any], Progress]:
    """Attempt the task, and retry with smaller plans while memory runs out.

    Raises OutOfMemory if there is no smaller plan, or if part of the result has already been streamed.
    """
    max_memory = task.prepared.job.max_memory
    while True:
        try:
            return _attempt(task, work, stream, max_memory, started_s, clock)
        except OutOfMemory as error:
            if error.planned_bytes is None or (stream is not None and stream.has_begun):
                raise
            planned_bytes, retry_within = error.planned_bytes, error.retry_within
            on = f" on {error.device}" if error.device else ""
        # Its memory is freed only once the exception and its traceback are released.
        free_memory()
        size = f"{planned_bytes / 1e9:.2f} GB"
        message = f"{work.label}: memory ran out{on} under a plan for {size}; trying a smaller one"
        work.listener(Retrying(input=work.name, message=message, planned_bytes=planned_bytes))
        max_memory = retry_within or str(planned_bytes - 1)


def _finish(task: Task[Any, Any, Any], work: Work, stream: LiveStream | None) -> int:
    """Finish the outputs from their segments; return the number of frames of the main one."""
    work.check_stop()
    if stream is not None:
        work.check_stream(stream)
    task.check_moved(work)
    if stream is not None:
        return work.stream_out(stream)
    placement = work.journal.placement
    if placement is not None and work.journal.placed:
        return placement.frames
    finishes, frames = task.finishes(work)
    work.put_in_place(finishes, frames=frames)
    return frames


def fingerprint(task: Task[Any, Any, Any], built: Built[Any]) -> dict[str, object]:
    """Collect, under user-facing names, everything that affects the output's pixels and packets."""
    job, spec = task.prepared.job, task.prepared.spec
    return {
        **task.inputs(),
        "--model": task.prepared.model,
        "the weights": built.weights,
        "--res": f"{spec.width_px}x{spec.height_px}",
        "--seed": job.seed,
        "--device": built.device if task.numbers_devices else built.device.partition(":")[0],
        "--precision": built.precision,
        "--threads": task.prepared.threads,
        "--codec": spec.codec_name,
        "--crf": spec.crf,
        "--pix-fmt": spec.pix_fmt,
        "--enc-opt": job.enc_options,
        **task.options(),
        "the memory plan": built.memory_plan,
        "the segment length": task.segment_frames,
        **library_versions(),
    }


def _stream_of(task: Task[Any, Any, Any], work: Work) -> AbstractContextManager[LiveStream | None]:
    """Return the writer of finished segments to stdout; None if the output is a
    file."""
    job = task.prepared.job
    if job.stdout is None:
        return nullcontext()

    def write(segments: Iterator[SegmentFile], sink: ByteSink) -> Streamed:
        return task.stream_out(segments, sink, stream.called)

    stream = LiveStream(write, job.stdout, name=job.stdout_name, stop=work.stop, keeps=task.is_resumable)
    return stream


def _one_at_a_time(listener: Listener) -> Listener:
    lock = threading.Lock()

    def listen(event: Event) -> None:
        with lock:
            listener(event)

    return listen
