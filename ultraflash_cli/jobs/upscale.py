"""Upscale one clip: what is decided, done in segments that survive any interruption, joined, checked, put in place."""

import hashlib
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from ultraflash_cli.errors import OutOfMemory, OutputCheckError, UsageError
from ultraflash_cli.jobs.events import Chunk, Done, Event, Listener, Planned, Started, Warned
from ultraflash_cli.jobs.flow import SEGMENT_FRAMES, Busy, SourceFrame, move_frames
from ultraflash_cli.jobs.host import keep_freed_memory, peak_rss_bytes
from ultraflash_cli.jobs.journal import Journal, OutputLock, count_frames, work_folder
from ultraflash_cli.jobs.model import Builder, Built
from ultraflash_cli.jobs.preflight import Prepared, UpscaleJob, estimate_frames, prepare
from ultraflash_cli.jobs.stop import Stop

if TYPE_CHECKING:
    from ultraflash_cli.video.color import Picture
    from ultraflash_cli.video.decode import DecodedFrame

__all__ = ["UpscaleJob", "UpscaleReport", "planned", "run", "run_prepared"]

_DECODE_THREADS = 4
"""More do not help one clip; the frames are the same with any number."""

_DIGEST_BYTES = 1 << 20
"""How much of an input's head and tail goes into its digest."""


@dataclass(frozen=True, kw_only=True)
class UpscaleReport:
    """How a clip went."""

    input: str
    output: str
    skipped: bool
    """The output was there already and was left alone."""
    model: str
    device: str | None = None
    precision: str | None = None
    encoder: dict[str, object] | None = None
    frames_in: int = 0
    frames_out: int = 0
    frames_resumed: int = 0
    """Frames that an interrupted run had finished before."""
    width: int = 0
    height: int = 0
    fps_wall: float | None = None
    """Frames of this run a second of its whole time, loading the model and joining included."""
    fps_model: float | None = None
    """Frames of this run a second of model time."""
    seconds: float = 0.0
    peak_rss_bytes: int = 0
    peak_vram_bytes: int | None = None
    limit: str | None = None
    """The side that the others waited for: reading, model or writing."""
    seconds_by_stage: dict[str, float] | None = None
    warnings: tuple[str, ...] = ()


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
    listener = _one_at_a_time(on_event)
    if prepared.exists:
        return UpscaleReport(input=str(job.source), output=str(prepared.output), skipped=True, model=prepared.model)
    listener(planned(prepared))
    keep_freed_memory()
    folder = work_folder(prepared.output)
    with OutputLock(folder):
        found = count_frames(folder)
        work = _Work(prepared, folder, listener, stop or Stop(), build or _build, clock, segment_frames)
        try:
            report = work.run(started_s)
        except BaseException:
            if not work.worth_keeping and not (found and work.untouched):
                shutil.rmtree(folder, ignore_errors=True)
            raise
        shutil.rmtree(folder, ignore_errors=True)
    listener(
        Done(
            input=report.input,
            output=report.output,
            frames=report.frames_out,
            seconds=report.seconds,
            fps=report.fps_wall or 0.0,
        )
    )
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


class _Work:
    """One locked output on its way from nothing, or from an interrupted run's segments, to its place."""

    def __init__(
        self,
        prepared: Prepared,
        folder: Path,
        listener: Listener,
        stop: Stop,
        build: Builder,
        clock: Callable[[], float],
        segment_frames: int,
    ) -> None:
        self._prepared = prepared
        self._folder = folder
        self._listener = listener
        self._stop = stop
        self._build = build
        self._clock = clock
        self._segment_frames = segment_frames
        self._journal: Journal | None = None
        self._warnings: list[str] = []
        self._busy = Busy()
        self._name = str(prepared.job.source)

    @property
    def untouched(self) -> bool:
        """What an earlier run left has not been looked at yet."""
        return self._journal is None

    @property
    def worth_keeping(self) -> bool:
        """Something is finished that the same command can use later."""
        return self._prepared.job.resume and self._journal is not None and bool(self._journal.segments)

    def run(self, started_s: float) -> UpscaleReport:
        prepared, spec = self._prepared, self._prepared.spec
        for message in prepared.warnings:
            self._warn(message)
        with _telling_memory_errors():
            built = self._build(prepared)
            journal = self._open_journal(built)
            resumed = journal.frames
            if not journal.complete:
                self._move(built, journal, resumed)
        self._check_stop(journal)
        if not journal.frames:
            raise UsageError(f"{self._name}: no frame lies in the part that was asked for")
        self._put_in_place(journal)
        seconds = self._clock() - started_s
        frames = journal.frames - resumed
        times = built.upscaler.stage_seconds | asdict(self._busy)
        return UpscaleReport(
            input=self._name,
            output=str(prepared.output),
            skipped=False,
            model=prepared.model,
            device=built.device,
            precision=built.precision,
            encoder={"codec": spec.codec, "crf": spec.crf, "pix_fmt": spec.pix_fmt, "preset": spec.preset},
            frames_in=journal.frames,
            frames_out=journal.frames,
            frames_resumed=resumed,
            width=spec.width_px,
            height=spec.height_px,
            fps_wall=_rate(frames, seconds),
            fps_model=_rate(frames, self._busy.model),
            seconds=round(seconds, 3),
            peak_rss_bytes=peak_rss_bytes(),
            peak_vram_bytes=_peak_vram_bytes(built.device),
            limit=self._busy.limit if frames else None,
            seconds_by_stage={name: round(value, 3) for name, value in times.items()},
            warnings=tuple(self._warnings),
        )

    def _open_journal(self, built: Built) -> Journal:
        from ultraflash_cli.video.partial import output_errors

        with output_errors(self._prepared.output):
            if not self._prepared.job.resume:
                _empty(self._folder)
            journal = Journal(self._folder, _fingerprint(self._prepared, built, self._segment_frames))
        self._journal = journal
        note = None
        if journal.segments:
            note = f"{self._name}: going on after {journal.frames} finished frames of an interrupted run"
        elif journal.fresh_because:
            note = f"{self._name}: starting afresh, {journal.fresh_because}"
        self._listener(
            Started(
                input=self._name,
                output=str(self._prepared.output),
                model=self._prepared.model,
                device=built.device,
                precision=built.precision,
                threads=self._prepared.threads,
                frames_total=estimate_frames(self._prepared.info, self._prepared.window),
                frames_resumed=journal.frames,
                note=note,
            )
        )
        return journal

    def _move(self, built: Built, journal: Journal, resumed: int) -> None:
        from ultraflash_cli.video.encode import SegmentWriter

        prepared, spec, info = self._prepared, self._prepared.spec, self._prepared.info
        started_s = self._clock()
        total = estimate_frames(info, prepared.window)
        sample_bytes = 2 if info.bit_depth > 8 else 1

        def report_group(done: int) -> None:
            seconds = self._clock() - started_s
            fps = _rate(done - resumed, seconds) or 0.0
            left = max(total - done, 0) if total else None
            self._listener(
                Chunk(
                    input=self._name,
                    frames_done=done,
                    frames_safe=journal.frames,
                    frames_total=max(total, done) if total else None,
                    fps=round(fps, 3),
                    eta_s=round(left / fps, 1) if left is not None and fps else None,
                    limit=self._busy.limit,
                )
            )

        move_frames(
            self._source_frames,
            built.upscaler,
            journal,
            lambda path: SegmentWriter(path, spec),
            output=prepared.output,
            segment_frames=self._segment_frames,
            seed=prepared.job.seed,
            output_frame_bytes=3 * sample_bytes * spec.width_px * spec.height_px,
            source_frame_bytes=3 * sample_bytes * info.width_px * info.height_px,
            stop=self._stop,
            busy=self._busy,
            on_group=report_group,
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

        frames = read_frames(self._prepared.info, warn=self._warn, threads=min(_DECODE_THREADS, self._prepared.threads))
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

    def _check_stop(self, journal: Journal) -> None:
        if not self._stop.requested:
            return
        if self._prepared.job.resume and journal.segments:
            future = f"{journal.frames} frames are finished, the same command goes on from there"
        else:
            future = "nothing is kept, the same command starts anew"
        raise self._stop.interruption(f"interrupted; {future}")

    def _put_in_place(self, journal: Journal) -> None:
        from ultraflash_cli.video.encode import read_record
        from ultraflash_cli.video.partial import output_errors, sync_folder
        from ultraflash_cli.video.passthrough import check_output, join

        prepared, output = self._prepared, self._prepared.output
        # Joined in the work folder, so that a file under the final name is always one that has passed its check.
        joined = self._folder / output.name
        for note in join(journal.files, prepared.info, prepared.streams, prepared.spec, joined, window=prepared.window):
            self._warn(f"{output.name}: {note}")
        first, last = read_record(journal.files[0]), read_record(journal.files[-1])
        ticks = last.last_pts + last.last_duration - first.first_pts
        try:
            check_output(
                joined,
                info=prepared.info,
                plan=prepared.streams,
                frames=journal.frames,
                spec=prepared.spec,
                duration_s=ticks * prepared.spec.time_base,
            )
        except OutputCheckError as error:
            raise OutputCheckError(f"{error} The finished segments are kept; --resume off makes them anew.") from error
        with output_errors(output):
            joined.replace(output)
            sync_folder(output.parent)

    def _warn(self, message: str) -> None:
        self._warnings.append(message)
        self._listener(Warned(input=self._name, message=message))


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
    source = job.source.stat()
    found: dict[str, object] = {
        "the input's size": source.st_size,
        "the input's time of change": source.st_mtime_ns,
        "the input's content": _digest(job.source),
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
        "the encoder": repr(prepared.spec),
        "the streams": repr(prepared.streams),
        "the segments' length": segment_frames,
    }
    return found | {f"the version of {name}": version(name) for name in ("ultraflash", "torch", "av", "numpy")}


def _digest(path: Path) -> str:
    """Hash the head and the tail of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        digest.update(file.read(_DIGEST_BYTES))
        file.seek(max(file.tell(), path.stat().st_size - _DIGEST_BYTES))
        digest.update(file.read(_DIGEST_BYTES))
    return digest.hexdigest()


@contextmanager
def _telling_memory_errors() -> Generator[None]:
    try:
        yield
    except MemoryError as error:
        raise OutOfMemory(_OUT_OF_MEMORY) from error
    except RuntimeError as error:
        # torch.OutOfMemoryError by name, so that torch need not be imported to look.
        if type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error):
            raise OutOfMemory(_OUT_OF_MEMORY) from error
        raise


_OUT_OF_MEMORY = "out of memory; close other programs, choose a smaller --res, or --device cpu"


def _peak_vram_bytes(device: str) -> int | None:
    if not device.startswith("cuda"):
        return None
    import torch

    return torch.cuda.max_memory_allocated(device)


def _rate(frames: int, seconds: float) -> float | None:
    return round(frames / seconds, 3) if frames and seconds > 0 else None


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name != "lock":
            path.unlink()


def _one_at_a_time(listener: Listener) -> Listener:
    lock = threading.Lock()

    def listen(event: Event) -> None:
        with lock:
            listener(event)

    return listen
