"""Generate one planned clip in segments that survive interruptions; join and check
them, and put the output in place."""

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

from ultraflash_cli.buffers import SEGMENT_FRAMES
from ultraflash_cli.engine.schedule import GENERATED_FPS
from ultraflash_cli.jobs.events import GenerationPlanned, Listener
from ultraflash_cli.jobs.planning.generate import GenerateJob, PreparedGeneration
from ultraflash_cli.jobs.provenance.made import made_by_generating
from ultraflash_cli.jobs.resume.fingerprint import ATTENTION, file_facts
from ultraflash_cli.jobs.running import run as running
from ultraflash_cli.jobs.running.finish import finish_of
from ultraflash_cli.jobs.running.generating import make_frames
from ultraflash_cli.jobs.running.init_clip import read_ending
from ultraflash_cli.jobs.running.live import LiveStream
from ultraflash_cli.jobs.running.loader import GenerationBuilder, Models
from ultraflash_cli.jobs.running.prepare import prepare_generation
from ultraflash_cli.jobs.running.report import Progress, Report
from ultraflash_cli.jobs.running.stop import Stop
from ultraflash_cli.jobs.running.work import Finish, Work
from ultraflash_cli.models.built import Built
from ultraflash_cli.models.frames import FrameGenerator
from ultraflash_cli.video.color import Picture
from ultraflash_cli.video.encode import EncodeSpec, made_times
from ultraflash_cli.video.join import join_alone
from ultraflash_cli.video.live import Streamed, stream_clip
from ultraflash_cli.video.segment import SegmentWriter
from ultraflash_cli.video.segment_file import SegmentFile, SegmentSink
from ultraflash_cli.video.y4m import ByteSink

__all__ = ["GenerateReport", "Generation", "run_generation"]

_STREAM_SEGMENT_FRAMES = 12
"""About half a group, so that every group, including the first and the last, is
streamed as soon as it is finished."""
_DECODE_THREADS = 4
"""Threads for decoding; more do not help with a single clip, and the frames do not
depend on their number."""


@dataclass(frozen=True, kw_only=True)
class GenerateReport(Report):
    """The report of one generated clip; `input` is the prompt, `frames_in` the number
    of frames of an initial clip."""

    prompt: str
    seed: int
    low_output: str | None = None
    """Path of the clip at the base size, if requested."""
    fps: float | None = None
    """Frames per second in the file."""
    counters: dict[str, int] | None = None
    """Counts of the model's computed and skipped operations, by name; empty if an
    interrupted run had finished everything."""


def run_generation(
    job: GenerateJob,
    on_event: Listener,
    *,
    stop: Stop | None = None,
    build: GenerationBuilder | None = None,
    clock: Callable[[], float] = time.monotonic,
    segment_frames: int = SEGMENT_FRAMES,
) -> GenerateReport:
    """Generate one clip; see `running.run.run`."""
    task = Generation(prepare_generation(job), build or Models().generator, segment_frames=segment_frames)
    return running.run(task, on_event, stop=stop, clock=clock)


class Generation(running.Task[PreparedGeneration, FrameGenerator, GenerateReport]):
    """The task of generating one clip."""

    def __init__(
        self, prepared: PreparedGeneration, build: GenerationBuilder, *, segment_frames: int = SEGMENT_FRAMES
    ) -> None:
        super().__init__(prepared, build, name=prepared.prompt, label=prepared.label, segment_frames=segment_frames)
        if prepared.job.stdout is not None:
            self.segment_frames = min(self.segment_frames, _STREAM_SEGMENT_FRAMES)
        self.is_resumable = prepared.job.resume
        self.total_frames = prepared.frames
        self._clip: list[Picture] = []
        self._counters: dict[str, int] = {}
        self._clip_frames: int | None = None

    def planned(self) -> GenerationPlanned:
        prepared = self.prepared
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
            encoder=spec.encoder,
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

    @contextmanager
    def reading(self, work: Work) -> Generator[None]:
        """Read the end of the clip to continue, only once."""
        prepared = self.prepared
        if prepared.clip is not None:
            height_px, width_px = prepared.base_size
            self._clip = read_ending(
                prepared.clip,
                lengths=prepared.clip_lengths,
                rate=GENERATED_FPS,
                height_px=height_px,
                width_px=width_px,
                warn=work.warn,
                threads=min(_DECODE_THREADS, prepared.threads),
            )
        yield

    def inputs(self) -> dict[str, object]:
        job = self.prepared.job
        clip = file_facts("the initial clip", job.init_clip) if job.init_clip is not None else {}
        return {"the prompt": self.prepared.prompt, **clip}

    def options(self) -> dict[str, object]:
        prepared, job = self.prepared, self.prepared.job
        return {
            "--decoder": job.decoder,
            "the number of frames": prepared.frames,
            "--fps": str(prepared.spec.rate),
            "--save-lr": job.save_lr,
            "--cache-management": str(prepared.cache_management),
            "--init-clip": prepared.clip_lengths,
            "--resume": job.resume,
            "the plan": repr((prepared.plan, prepared.generator)),
            "the encoder": repr((prepared.spec, prepared.low_spec)),
            **({ATTENTION: "in 8 bits"} if job.precision == "fp8" else {}),
        }

    def tag(self, prepared: PreparedGeneration, built: Built[FrameGenerator]) -> str | None:
        return made_by_generating(prepared, built)

    def move(self, work: Work, built: Built[FrameGenerator], progress: Progress, stream: LiveStream | None) -> None:
        prepared = self.prepared
        specs = [spec for spec in (prepared.spec, prepared.low_spec) if spec is not None]
        self._counters = make_frames(
            built.model,
            work.journal,
            self._open_segment,
            output=prepared.output,
            frames=prepared.frames,
            show=lambda number: _shown(prepared, number),
            seed=prepared.job.seed,
            clip=self._clip or None,
            frame_bytes=sum(3 * spec.width_px * spec.height_px for spec in specs),
            stop=work.stop if stream is None else stream.stop,
            busy=progress.busy,
            on_group=progress.on_group,
            on_segment=stream.add if stream is not None else None,
            keep_states=self.is_resumable,
            segment_frames=self.segment_frames,
        )

    def _open_segment(self, path: Path) -> list[SegmentSink]:
        writer, show = SegmentWriter(path, self.prepared.spec), self.prepared.job.show
        sinks: list[SegmentSink] = [writer if show is None else show.shown(writer)]
        if self.prepared.low_spec is not None:
            sinks.append(SegmentWriter(path.with_name(f"{path.name}.480p"), self.prepared.low_spec))
        return sinks

    def stream_out(self, segments: Iterator[SegmentFile], sink: ByteSink, name: str) -> Streamed:
        prepared = self.prepared
        return stream_clip(
            segments, prepared.streams, prepared.spec, sink, tags=_tags(prepared), name=name, made=self.made
        )

    def finishes(self, work: Work) -> tuple[Mapping[Path, Finish], int]:
        prepared = self.prepared
        finishes: dict[Path, Finish] = {}
        # The main output is last: if it is in place, all outputs are.
        if prepared.low_output is not None and prepared.low_spec is not None:
            finishes[prepared.low_output] = self._finish(work.journal.files(1), prepared.low_spec)
        finishes[prepared.output] = self._finish(work.journal.files(), prepared.spec)
        return finishes, _shown_frames(prepared)

    def _finish(self, files: Sequence[SegmentFile], spec: EncodeSpec) -> Finish:
        prepared, frames = self.prepared, _shown_frames(self.prepared)
        return finish_of(
            files,
            prepared.streams,
            spec,
            frames=frames,
            duration_s=Fraction(frames) / spec.rate,
            join=lambda joined, plan: join_alone(files, plan, spec, joined, tags=_tags(prepared), made=self.made),
            made=self.made,
        )

    def findings(self, built: Built[FrameGenerator]) -> dict[str, object]:
        return {"counters": self._counters, "clip_frames": len(self._clip)}

    def recall(self, findings: Sequence[Mapping[str, object]]) -> None:
        (found,) = findings
        self._counters = cast(dict[str, int], found["counters"])
        self._clip_frames = cast(int, found["clip_frames"])

    def report(self, work: Work | None, built: Built[FrameGenerator] | None, **common: Any) -> GenerateReport:
        prepared = self.prepared
        about: dict[str, Any] = {"prompt": prepared.prompt, "seed": prepared.job.seed}
        if work is not None:
            rate = prepared.spec.rate
            about |= {
                "low_output": str(prepared.low_output) if prepared.low_output is not None else None,
                "fps": int(rate) if rate.denominator == 1 else float(rate),
                "counters": self._counters,
                "frames_in": len(self._clip) if self._clip_frames is None else self._clip_frames,
            }
        return GenerateReport(**about, **common)


def _shown_frames(prepared: PreparedGeneration) -> int:
    """Return the number of frames in the file: the clip's duration at the file's rate,
    rounded."""
    return max(1, round(prepared.frames * prepared.spec.rate / GENERATED_FPS))


def _shown(prepared: PreparedGeneration, number: int) -> Iterator[tuple[int, int]]:
    """Return timestamp and duration of each frame in the file that shows the generated
    frame `number`. A frame in the file shows the generated frame at its time.
    """
    rate = prepared.spec.rate
    _, ticks = made_times(rate)
    first, end = (-(-at * rate // GENERATED_FPS) for at in (number, number + 1))
    for place in range(first, min(end, _shown_frames(prepared))):
        yield place * ticks, ticks


def _tags(prepared: PreparedGeneration) -> dict[str, str]:
    """Return the tags of the file: the prompt, and the program and model; none if the
    job disables tags."""
    if not prepared.job.tag:
        return {}
    made_by = f"ultraflash {version('ultraflash')}, model {prepared.model}, seed {prepared.job.seed}"
    return {"title": prepared.prompt, "comment": f"Generated by {made_by}"}
