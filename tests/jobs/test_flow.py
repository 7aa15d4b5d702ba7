"""Frames through the three threads: none lost, none moved, memory bounded, every stop resumable."""

import os
import signal
import threading
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.jobs.fakes import FakeState, FakeUpscaler, TextSegment, frames_of
from ultraflash_cli.errors import InputError, Interrupted, OutputError
from ultraflash_cli.jobs.flow import Busy, SourceFrame, move_frames
from ultraflash_cli.jobs.journal import Journal
from ultraflash_cli.jobs.stop import Stop, stopping_on_signals


def flow(
    folder: Path,
    *,
    count: int = 40,
    cuts: set[int] | None = None,
    stop_at: int | None = None,
    upscaler: FakeUpscaler | None = None,
    segment: Callable[[Path], TextSegment] = TextSegment,
    source: Callable[[], "list[SourceFrame]"] | None = None,
    frame_bytes: int = 1,
) -> tuple[Journal, bool]:
    """Run the flow in `folder`, requesting a stop once `stop_at` frames are done."""
    folder.mkdir(exist_ok=True)
    journal, stop = Journal(folder, {"seed": 0}), Stop()

    def on_group(done: int) -> None:
        if stop_at is not None and done >= stop_at:
            stop.request()

    finished = journal.complete or move_frames(
        lambda: iter(source()) if source is not None else frames_of(count, cuts or set()),
        upscaler or FakeUpscaler(),
        journal,
        segment,
        output=folder / "out.mp4",
        segment_frames=12,
        seed=0,
        output_frame_bytes=frame_bytes,
        source_frame_bytes=frame_bytes,
        stop=stop,
        busy=Busy(),
        on_group=on_group,
    )
    return journal, finished


def text(journal: Journal) -> str:
    return "".join(path.read_text() for path in journal.files)


def test_every_frame_comes_out_once_in_order_with_its_own_time(tmp_path: Path) -> None:
    journal, finished = flow(tmp_path / "a", cuts={7, 8, 30})
    assert finished
    assert journal.complete
    assert [line.split()[:2] for line in text(journal).splitlines()] == [
        [str(10 * number + number % 3), "10"] for number in range(40)
    ]


def test_what_the_model_finished_is_written_before_its_failure_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A slow writer: it begins when the model has failed and everybody waits for it.
    awaited = threading.Event()
    join = threading.Thread.join

    def announced_join(thread: threading.Thread, timeout: float | None = None) -> None:
        if thread.name == "writing":
            awaited.set()
        join(thread, timeout)

    class Slow(TextSegment):
        def write(self, rgb_hwc: np.ndarray, pts: int, duration: int) -> None:
            awaited.wait()
            super().write(rgb_hwc, pts, duration)

    class Failing(FakeUpscaler):
        def step(self, state: FakeState, frames: list[np.ndarray]) -> tuple[FakeState, list[np.ndarray]]:
            if state.count >= 20:
                raise MemoryError
            return super().step(state, frames)

    monkeypatch.setattr(threading.Thread, "join", announced_join)
    with pytest.raises(MemoryError):
        flow(tmp_path / "a", upscaler=Failing(), segment=Slow)
    assert Journal(tmp_path / "a", {"seed": 0}).frames == 11


def test_segments_end_at_fixed_groups_and_at_cuts(tmp_path: Path) -> None:
    journal, _ = flow(tmp_path / "a", cuts={20})
    assert [(entry.first_frame, entry.end_frame) for entry in journal.segments] == [
        (0, 11),
        (11, 20),
        (20, 31),
        (31, 40),
    ]
    assert [entry.state is None for entry in journal.segments] == [False, True, False, True]


def test_a_cut_on_a_segment_border_makes_no_empty_segment(tmp_path: Path) -> None:
    journal, _ = flow(tmp_path / "a", cuts={11})
    assert [entry.first_frame for entry in journal.segments] == [0, 11, 22, 34]


def test_only_the_last_state_lies_on_the_disk(tmp_path: Path) -> None:
    journal, finished = flow(tmp_path / "a", count=200, stop_at=100)
    assert not finished
    assert [path.name for path in sorted((tmp_path / "a").glob("state-*"))] == [journal.segments[-1].state]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    count=st.integers(0, 45),
    cuts=st.sets(st.integers(1, 44), max_size=4),
    stops=st.lists(st.integers(1, 44), max_size=3),
)
def test_any_interruptions_give_the_frames_of_an_uninterrupted_run(
    tmp_path_factory: pytest.TempPathFactory, count: int, cuts: set[int], stops: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("flow")
    whole, _ = flow(folder / "whole", count=count, cuts=cuts)
    for stop_at in stops:
        flow(folder / "broken", count=count, cuts=cuts, stop_at=stop_at)
    broken, finished = flow(folder / "broken", count=count, cuts=cuts)
    assert finished
    assert text(broken) == text(whole)
    assert [entry.end_frame for entry in broken.segments] == [entry.end_frame for entry in whole.segments]
    assert all(first.end_frame == second.first_frame for first, second in pairwise(broken.segments))


def test_what_is_finished_is_not_computed_again(tmp_path: Path) -> None:
    flow(tmp_path / "a", count=40, stop_at=23)
    upscaler = FakeUpscaler()
    flow(tmp_path / "a", count=40, upscaler=upscaler)
    assert sum(upscaler.pushes[:-1]) < 40 - 11


def test_a_clip_without_frames_makes_no_segment(tmp_path: Path) -> None:
    journal, finished = flow(tmp_path / "a", count=0)
    assert finished
    assert journal.segments == []


def test_a_failing_source_ends_the_run_with_its_own_error_and_keeps_segments(tmp_path: Path) -> None:
    def broken() -> list[SourceFrame]:
        raise InputError("the tape ends here")

    with pytest.raises(InputError, match="tape"):
        flow(tmp_path / "a", source=broken)


class FullDisk(TextSegment):
    """A segment on a disk that fills up at frame 25."""

    def write(self, rgb_hwc: object, pts: int, duration: int) -> None:
        if pts >= 250:
            raise OSError(28, "No space left on device")


def test_a_full_disk_is_an_output_error_that_names_the_output_and_keeps_segments(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"out\.mp4.*full") as caught:
        flow(tmp_path / "a", segment=FullDisk)
    assert caught.value.exit_code == 7
    assert Journal(tmp_path / "a", {"seed": 0}).frames == 23


class Failing(FakeUpscaler):
    """A model that fails in its third group."""

    def step(self, state: object, frames: object) -> object:  # type: ignore[override]
        self.pushes.append(0)
        if len(self.pushes) == 3:
            raise MemoryError
        return super().step(state, frames)  # type: ignore[arg-type]


def test_a_failing_model_ends_the_run_with_its_own_error(tmp_path: Path) -> None:
    with pytest.raises(MemoryError):
        flow(tmp_path / "a", upscaler=Failing())


def test_frames_alive_stay_bounded_however_long_the_clip_is(tmp_path: Path) -> None:
    made = 0
    written = 0
    most = 0

    class Counting(TextSegment):
        def write(self, rgb_hwc: object, pts: int, duration: int) -> None:
            nonlocal written
            written += 1

    class Source:
        def __iter__(self) -> "Source":
            self._frames = frames_of(600, set())
            return self

        def __next__(self) -> SourceFrame:
            nonlocal made, most
            frame = next(self._frames)
            made += 1
            most = max(most, made - written)
            return frame

    flow(tmp_path / "a", source=Source, segment=Counting, frame_bytes=256 << 20)  # type: ignore[arg-type]
    # Two in each queue, a group at the model, one in the hands of each thread.
    assert made == 600
    assert most <= 2 + 3 + 3 + 2 + 2


def test_a_stop_keeps_signal_and_exit_code_together() -> None:
    stop = Stop()
    assert not stop.requested
    stop.request(15)
    assert stop.requested
    error = stop.interruption("stopped")
    assert isinstance(error, Interrupted)
    assert error.exit_code == 143


def test_a_second_signal_leaves_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[int] = []
    monkeypatch.setattr("os._exit", left.append)
    before = signal.getsignal(signal.SIGTERM)
    with stopping_on_signals() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested
        assert left == []
        os.kill(os.getpid(), signal.SIGTERM)
        assert left == [143]
    assert signal.getsignal(signal.SIGTERM) is before
