"""Jobs whose output is a stream: the data that its reader receives, its timing, and the
files that remain when the reader leaves."""

import io
import os
import re
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest

from tests.jobs.clips import audio_packets, decoded, make_clip
from tests.jobs.doubler import Doubler, Trail, builder, job, upscale
from tests.jobs.fakes import FakeGenerator, MadeState, plain_file
from tests.jobs.generating import generate
from tests.jobs.generating import job as generation_job
from ultraflash_cli.errors import Interrupted, OutOfMemory, OutputError
from ultraflash_cli.jobs.events import Event, Retrying, Started
from ultraflash_cli.jobs.planning.generate import PreparedGeneration
from ultraflash_cli.jobs.planning.upscale import Prepared
from ultraflash_cli.jobs.resume.entries import SegmentEntry
from ultraflash_cli.jobs.resume.owned_files import segment_name
from ultraflash_cli.jobs.running.live import LiveStream, ReaderGone
from ultraflash_cli.jobs.running.stop import Stop
from ultraflash_cli.models.built import Built
from ultraflash_cli.models.frames import FrameGenerator, FrameUpscaler
from ultraflash_cli.video.live import Streamed
from ultraflash_cli.video.pipe import Pipe
from ultraflash_cli.video.segment_file import SegmentFile

FRAME_BYTES = len(b"FRAME\n") + 128 * 96 * 3 // 2
PATIENCE_S = 60
"""Time after which a hanging test fails."""


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return make_clip(tmp_path / "in.mkv", frames=60)


@contextmanager
def read_pipe() -> Generator[tuple[BinaryIO, BinaryIO]]:
    """Return the reading and the writing end of a pipe."""
    reading, writing = os.pipe()
    with open(reading, "rb") as reader, open(writing, "wb") as writer:
        yield reader, writer


class Held(Doubler):
    """A model that makes no more than a segment's frames until it is released."""

    def __init__(self, prepared: Prepared, *, allowed: threading.Event) -> None:
        super().__init__(prepared)
        self.allowed = allowed
        self.frames = 0

    def step(self, state: Trail, frames: list[np.ndarray]) -> tuple[Trail, list[np.ndarray]]:
        if state.seen >= 40:
            assert self.allowed.wait(PATIENCE_S), "nothing was read"
        self.frames += len(frames)
        return super().step(state, frames)


class Reading(threading.Thread):
    """Reads a number of y4m frames, then releases the work; then reads the rest or
    closes the pipe."""

    def __init__(self, reader: BinaryIO, allowed: threading.Event, *, frames: int, leaves: bool) -> None:
        super().__init__(daemon=True)
        self.taken = b""
        self._reader, self._allowed, self._frames, self._leaves = reader, allowed, frames, leaves

    def run(self) -> None:
        header = self._reader.readline()
        self.taken = header + self._reader.read(self._frames * FRAME_BYTES)
        if self._leaves:
            self._reader.close()
        self._allowed.set()
        if not self._leaves:
            self.taken += self._reader.read()


def y4m(clip: Path, tmp_path: Path, stdout: BinaryIO, **options: Any) -> Any:
    settings: dict[str, Any] = {"codec": "y4m", "crf": None, "pix_fmt": "yuv420p", "temp": tmp_path / "temp"}
    return job(clip, stdout=stdout, **(settings | options))


def whole(clip: Path, tmp_path: Path) -> bytes:
    """The data that a reader receives if it reads everything."""
    stdout = io.BytesIO()
    upscale(y4m(clip, tmp_path, stdout))
    return stdout.getvalue()


def test_the_first_frames_arrive_while_the_last_ones_are_not_made(clip: Path, tmp_path: Path) -> None:
    allowed = threading.Event()
    with read_pipe() as (reader, writer):
        reading = Reading(reader, allowed, frames=12, leaves=False)
        reading.start()
        report = upscale(y4m(clip, tmp_path, writer), build=builder(lambda prepared: Held(prepared, allowed=allowed)))
        writer.close()
        reading.join(PATIENCE_S)
    assert reading.taken == whole(clip, tmp_path)
    assert (report.output, report.frames_out) == ("-", 60)
    assert list((tmp_path / "temp").iterdir()) == []


def test_a_reader_that_leaves_ends_the_work_early_and_what_is_done_is_kept(clip: Path, tmp_path: Path) -> None:
    allowed, held = threading.Event(), list[Held]()

    def build(prepared: Prepared) -> Held:
        held.append(Held(prepared, allowed=allowed))
        return held[-1]

    with read_pipe() as (reader, writer):
        Reading(reader, allowed, frames=1, leaves=True).start()
        with pytest.raises(ReaderGone, match=r"stdout was closed by its reader; \d+ frames are finished") as caught:
            upscale(y4m(clip, tmp_path, writer), build=builder(build))
    assert caught.value.exit_code == 7
    events: list[Event] = []
    stdout = io.BytesIO()
    report = upscale(y4m(clip, tmp_path, stdout), events=events)
    (started,) = [event for event in events if isinstance(event, Started)]
    told = re.search(r"(\d+) frames are finished", str(caught.value))
    assert told is not None and 1 <= int(told[1]) <= 60
    assert started.frames_resumed == report.frames_resumed == int(told[1])
    assert stdout.getvalue() == whole(clip, tmp_path)


def test_an_interrupted_stream_is_rewritten_from_what_is_finished(clip: Path, tmp_path: Path) -> None:
    first, second = io.BytesIO(), io.BytesIO()
    options: dict[str, Any] = {"temp": tmp_path / "temp"}
    with pytest.raises(Interrupted, match="the same command resumes"):
        upscale(job(clip, stdout=first, **options), stop_at=17)
    report = upscale(job(clip, stdout=second, **options))
    assert (report.output, report.frames_resumed, report.frames_out) == ("-", 17, 60)
    (tmp_path / "caught.mkv").write_bytes(second.getvalue())
    upscale(job(clip, tmp_path / "out.mkv"))
    shown = decoded(tmp_path / "caught.mkv")
    assert all(np.array_equal(a, b) for a, b in zip(shown, decoded(tmp_path / "out.mkv"), strict=True))
    assert audio_packets(tmp_path / "caught.mkv") == audio_packets(clip)
    assert list((tmp_path / "temp").iterdir()) == []


def segment_of(folder: Path, number: int) -> SegmentEntry:
    """A segment with files for two outputs."""
    files = [folder / segment_name(number, output) for output in range(2)]
    for path in files:
        path.write_text("segment")
    return SegmentEntry(
        files=tuple(map(plain_file, files)),
        first_frame=number,
        end_frame=number + 1,
        scene_first=0,
        state=None,
        state_sha256=None,
    )


@pytest.mark.parametrize("keeps", [True, False])
def test_a_segment_that_nothing_can_be_resumed_from_is_deleted_once_it_is_written(tmp_path: Path, keeps: bool) -> None:
    segments = [segment_of(tmp_path, number) for number in range(3)]
    left: list[int] = []

    def write(files: Iterator[SegmentFile], _sink: object) -> Streamed:
        for _ in files:
            left.append(len(list(tmp_path.iterdir())))
        return Streamed(frames=len(left))

    stream = LiveStream(write, io.BytesIO(), stop=Stop(), keeps=keeps)
    with stream:
        stream.begin(segments[:2])
        stream.add(segments[2])
        stream.finish()
    assert left == ([6, 6, 6] if keeps else [6, 4, 2])
    assert stream.streamed.frames == 3


def test_what_comes_through_a_pipe_goes_through_a_pipe_with_its_sound(clip: Path, tmp_path: Path) -> None:
    stdout = io.BytesIO()
    made = job(Path("-"), stdout=stdout, temp=tmp_path / "temp", pipe=Pipe(io.BytesIO(clip.read_bytes())))
    assert upscale(made).frames_out == 60
    (tmp_path / "caught.mkv").write_bytes(stdout.getvalue())
    assert audio_packets(tmp_path / "caught.mkv") == audio_packets(clip)
    assert list((tmp_path / "temp").iterdir()) == []


def test_a_stream_is_not_begun_twice(clip: Path, tmp_path: Path) -> None:
    """A smaller plan is possible before any output; later the pixels would change
    within the clip."""

    def hungry(fails_at: int) -> Callable[[Prepared], Built[FrameUpscaler]]:
        def build(prepared: Prepared) -> Built[FrameUpscaler]:
            smaller = prepared.job.max_memory is not None
            made = builder(lambda each: Doubler(each, fails_at=None if smaller else fails_at))(prepared)
            return replace(made, planned_bytes=1000)

        return build

    events: list[Event] = []
    stdout = io.BytesIO()
    assert upscale(y4m(clip, tmp_path, stdout), build=hungry(2), events=events).frames_out == 60
    assert sum(isinstance(event, Retrying) for event in events) == 1
    assert stdout.getvalue() == whole(clip, tmp_path)

    class Full(io.BytesIO):
        out = threading.Event()

        def write(self, content: Any, /) -> int:
            self.out.set()
            return super().write(content)

    class Failing(Doubler):
        def step(self, state: Trail, frames: list[np.ndarray]) -> tuple[Trail, list[np.ndarray]]:
            if state.seen >= 40:
                assert Full.out.wait(PATIENCE_S)
                raise MemoryError
            return super().step(state, frames)

    with pytest.raises(OutOfMemory):
        upscale(
            y4m(clip, tmp_path, Full()), build=lambda prepared: replace(builder(Failing)(prepared), planned_bytes=1000)
        )


def test_a_sink_that_takes_no_more_is_an_output_error(clip: Path, tmp_path: Path) -> None:
    class Full(io.BytesIO):
        def write(self, content: Any, /) -> int:
            raise OSError(28, "No space left on device")

    for codec in ("h264", "y4m"):
        made = y4m(clip, tmp_path, Full(), codec=codec, crf=1 if codec == "h264" else None)
        with pytest.raises(OutputError, match="stdout cannot be written: the disk is full"):
            upscale(made)


@pytest.mark.parametrize("at", [1, 2, 5])
def test_a_reader_of_matroska_that_leaves_is_reported_in_one_line(clip: Path, tmp_path: Path, at: int) -> None:
    class Leaving(io.BytesIO):
        writes = 0

        def write(self, content: Any, /) -> int:
            self.writes += 1
            if self.writes >= at:
                raise BrokenPipeError(32, "Broken pipe")
            return super().write(content)

    with pytest.raises(ReaderGone, match=r"stdout was closed by its reader; \d+ frames are finished"):
        upscale(job(clip, stdout=Leaving(), temp=tmp_path / "temp"))


@pytest.mark.parametrize("state_bytes", [100, 8 << 30], ids=["states that are saved", "states too large for a stream"])
def test_a_generated_clip_is_streamed_while_it_is_made(tmp_path: Path, state_bytes: int) -> None:
    allowed = threading.Event()

    class HeldGenerator(FakeGenerator):
        def step(self, state: MadeState) -> tuple[MadeState, list[np.ndarray], list[np.ndarray]]:
            if state.groups >= 2:
                assert allowed.wait(PATIENCE_S), "nothing was read"
            return super().step(state)

    def build(prepared: PreparedGeneration) -> Built[FrameGenerator]:
        height, width = prepared.base_size
        assert len(prepared.plan.pixel_frames) > 3
        generator = HeldGenerator(prepared.plan.pixel_frames, size=(height, width), state_bytes=state_bytes)
        return Built(model=generator, device="cpu", precision="fp32", weights={}, state_bytes=state_bytes)

    options: dict[str, Any] = {"codec": "y4m", "crf": None, "seconds": 5, "temp": tmp_path / "temp"}
    with read_pipe() as (reader, writer):
        reading = Reading(reader, allowed, frames=1, leaves=False)
        reading.start()
        made = generation_job(tmp_path, stdout=writer, output=None, **options)
        report = generate(made, build=build)
        writer.close()
        reading.join(PATIENCE_S)
    assert reading.taken.count(b"FRAME\n") == report.frames_out > 70
    stdout = io.BytesIO()
    with pytest.raises(Interrupted, match="the same command resumes"):
        generate(generation_job(tmp_path, stdout=io.BytesIO(), output=None, **options), stop_at=30)
    assert generate(generation_job(tmp_path, stdout=stdout, output=None, **options)).frames_resumed > 0
    assert stdout.getvalue() == reading.taken
