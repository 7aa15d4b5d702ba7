"""Frames through the three threads: none lost, none moved, memory bounded, every stop resumable."""

import threading
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.jobs.fakes import AheadUpscaler, FakeState, FakeUpscaler, TextSegment, frames_of
from tests.jobs.running.flows import flow, text
from ultraflash_cli.errors import InputError, OutputError
from ultraflash_cli.jobs.resume.journal import Journal
from ultraflash_cli.jobs.running.upscaling import SourceFrame
from ultraflash_cli.video.frame import Frame


def test_every_frame_comes_out_once_in_order_with_its_own_time(tmp_path: Path) -> None:
    journal, finished = flow(tmp_path / "a", cuts={7, 8, 30})
    assert finished
    assert journal.complete
    assert [line.split()[:2] for line in text(journal).splitlines()] == [
        [str(10 * number + number % 3), "10"] for number in range(40)
    ]


def test_the_model_makes_two_more_groups_of_2k_while_the_encoder_works_on_one_frame(tmp_path: Path) -> None:
    third_group = threading.Event()

    class Large(FakeUpscaler):
        def group_frames(self, first: bool) -> int:
            return 24

        def step(self, state: FakeState, frames: list[np.ndarray]) -> tuple[FakeState, list[np.ndarray]]:
            state, out = super().step(state, frames)
            if state.count == 72:
                third_group.set()
            return state, out

    class Held(TextSegment):
        def write(self, frame: Frame) -> None:
            assert third_group.wait(60), "the model waits for the encoder"
            super().write(frame)

    journal, _ = flow(
        tmp_path / "a", count=90, upscaler=Large(), segment=Held, frame_bytes=2496 * 1440 * 3, segment_frames=72
    )
    assert journal.complete


def test_what_the_model_finished_is_written_before_its_failure_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A slow writer: it begins when the model has failed and all threads wait for it.
    awaited = threading.Event()
    join = threading.Thread.join

    def announced_join(thread: threading.Thread, timeout: float | None = None) -> None:
        if thread.name == "writing":
            awaited.set()
        join(thread, timeout)

    class Slow(TextSegment):
        def write(self, frame: Frame) -> None:
            awaited.wait()
            super().write(frame)

    class Failing(FakeUpscaler):
        def step(self, state: FakeState, frames: list[np.ndarray]) -> tuple[FakeState, list[np.ndarray]]:
            if state.count >= 20:
                raise MemoryError
            return super().step(state, frames)

    monkeypatch.setattr(threading.Thread, "join", announced_join)
    with pytest.raises(MemoryError):
        flow(tmp_path / "a", upscaler=Failing(), segment=Slow)
    assert Journal(tmp_path / "a", {"seed": 0}).frames == 11


class PendingPicture:
    """A picture that is still being copied; it records which threads wait for it."""

    def __init__(self, picture: np.ndarray, waited: list[str]) -> None:
        self._picture, self._waited = picture, waited

    def result(self) -> np.ndarray:
        self._waited.append(threading.current_thread().name)
        return self._picture


def test_pictures_in_transit_are_waited_for_where_they_are_written(tmp_path: Path) -> None:
    waited: list[str] = []

    class Launching(FakeUpscaler):
        def step(self, state: FakeState, frames: list[np.ndarray]) -> Any:
            state, out = super().step(state, frames)
            return state, [PendingPicture(picture, waited) for picture in out]

    plain, _ = flow(tmp_path / "a", cuts={7, 30})
    launched, _ = flow(tmp_path / "b", cuts={7, 30}, upscaler=Launching())
    assert text(launched) == text(plain)
    # The model's thread also waits for the first picture of a run, so that its time is
    # reported correctly.
    assert [name for name in waited if name != "writing"] == ["MainThread"]
    assert waited.count("writing") == 40


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
    model=st.sampled_from([FakeUpscaler, AheadUpscaler]),
)
def test_any_interruptions_give_the_frames_of_an_uninterrupted_run(
    tmp_path_factory: pytest.TempPathFactory, count: int, cuts: set[int], stops: list[int], model: type[FakeUpscaler]
) -> None:
    folder = tmp_path_factory.mktemp("flow")
    whole, _ = flow(folder / "whole", count=count, cuts=cuts, upscaler=model())
    for stop_at in stops:
        flow(folder / "broken", count=count, cuts=cuts, stop_at=stop_at, upscaler=model())
    broken, finished = flow(folder / "broken", count=count, cuts=cuts, upscaler=model())
    assert finished
    assert [line.split()[0] for line in text(broken).splitlines()] == [str(10 * n + n % 3) for n in range(count)]
    assert text(broken) == text(whole)
    assert [entry.end_frame for entry in broken.segments] == [entry.end_frame for entry in whole.segments]
    assert all(first.end_frame == second.first_frame for first, second in pairwise(broken.segments))


def test_what_is_finished_is_not_computed_again(tmp_path: Path) -> None:
    flow(tmp_path / "a", count=40, stop_at=23)
    upscaler = FakeUpscaler()
    flow(tmp_path / "a", count=40, upscaler=upscaler)
    assert sum(upscaler.pushes[:-1]) < 40 - 11


@pytest.mark.parametrize("model", [FakeUpscaler, AheadUpscaler])
def test_a_stop_keeps_every_group_that_is_done(tmp_path: Path, model: type[FakeUpscaler]) -> None:
    journal, finished = flow(tmp_path / "a", stop_at=17, upscaler=model())
    assert not finished
    assert 0 < journal.frames < 12
    kept = Journal(tmp_path / "a", {"seed": 0})
    assert kept.safe_frames >= 17 - 1
    rest = model()
    resumed, _ = flow(tmp_path / "a", upscaler=rest)
    whole, _ = flow(tmp_path / "b", upscaler=model())
    assert text(resumed) == text(whole)
    assert [entry.end_frame for entry in resumed.segments] == [entry.end_frame for entry in whole.segments]
    assert sum(rest.pushes) < 40 - kept.safe_frames + 3, "all but the padding of the last group is new"
    assert not list((tmp_path / "a").glob("begun-*"))


def test_what_a_stop_has_kept_outlives_a_kill_of_the_run_that_continues(tmp_path: Path) -> None:
    flow(tmp_path / "a", stop_at=17)

    class Killed(FakeUpscaler):
        def step(self, state: FakeState, frames: list[np.ndarray]) -> tuple[FakeState, list[np.ndarray]]:
            if state.count >= 20:
                raise KeyboardInterrupt
            return super().step(state, frames)

    with pytest.raises(KeyboardInterrupt):
        flow(tmp_path / "a", upscaler=Killed())
    assert Journal(tmp_path / "a", {"seed": 0}).safe_frames == 17
    resumed, _ = flow(tmp_path / "a")
    whole, _ = flow(tmp_path / "b")
    assert text(resumed) == text(whole)


def test_a_stop_on_a_disk_without_room_for_pictures_keeps_whole_segments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("ultraflash_cli.jobs.resume.spool._HEAD", SimpleNamespace(pack=full))
        flow(tmp_path / "a", stop_at=17)
    assert Journal(tmp_path / "a", {"seed": 0}).safe_frames == 11
    assert sum(path.stat().st_size for path in (tmp_path / "a").glob("begun-*")) == 0
    resumed, _ = flow(tmp_path / "a")
    whole, _ = flow(tmp_path / "b")
    assert text(resumed) == text(whole)


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

    def write(self, frame: Frame) -> None:
        if frame.pts >= 250:
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
        def write(self, frame: Frame) -> None:
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
    # Two in each queue, a group in the model, one in each thread.
    assert made == 600
    assert most <= 2 + 3 + 3 + 2 + 2


def test_a_large_state_makes_long_segments(tmp_path: Path) -> None:
    class Large(FakeUpscaler):
        def state_bytes(self, state: FakeState) -> int:
            return 20 * (24 << 20)

    journal, _ = flow(tmp_path / "a", upscaler=Large())
    assert [entry.end_frame for entry in journal.segments] == [17, 35, 40]
