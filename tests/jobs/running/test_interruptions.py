"""Upscales that were interrupted, failed or changed, and the next run."""

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.jobs.clips import audio_packets, decoded, make_clip
from tests.jobs.doubler import Doubler, Trail, builder, job, left_over, upscale
from ultraflash_cli.engine.guard import Counting
from ultraflash_cli.errors import (
    InputError,
    Interrupted,
    OutOfMemory,
    OutputError,
    UsageError,
    WeightsError,
)
from ultraflash_cli.jobs.events import Chunk, Event, Started
from ultraflash_cli.jobs.planning.upscale import Prepared
from ultraflash_cli.jobs.provenance.explain import explanation_of
from ultraflash_cli.jobs.resume.entries import SegmentEntry
from ultraflash_cli.jobs.resume.journal import Journal
from ultraflash_cli.jobs.resume.work_folder import work_folder
from ultraflash_cli.jobs.running import work
from ultraflash_cli.jobs.running.upscale import UpscaleReport, run
from ultraflash_cli.models.built import Built
from ultraflash_cli.models.frames import FrameUpscaler


@pytest.mark.parametrize("stop_at", [2, 11, 20, 23])
def test_an_interrupted_run_resumes_to_the_frames_of_an_uninterrupted_one(tmp_path: Path, stop_at: int) -> None:
    source = make_clip(tmp_path / "in.mkv", frames=40, cut_at=14)
    upscale(job(source, tmp_path / "whole.mkv"))
    with pytest.raises(Interrupted, match="the same command") as caught:
        upscale(job(source, tmp_path / "broken.mkv"), stop_at=stop_at)
    assert caught.value.exit_code == 143
    assert not (tmp_path / "broken.mkv").exists()
    events: list[Event] = []
    report = upscale(job(source, tmp_path / "broken.mkv"), events=events)
    whole, broken = decoded(tmp_path / "whole.mkv"), decoded(tmp_path / "broken.mkv")
    assert len(whole) == len(broken) == 40
    assert all(np.array_equal(a, b) for a, b in zip(whole, broken, strict=True))
    assert audio_packets(tmp_path / "broken.mkv") == audio_packets(source)
    (started,) = [event for event in events if isinstance(event, Started)]
    assert started.frames_resumed == report.frames_resumed
    if stop_at > 11:
        assert report.frames_resumed > 0
        assert "resuming after" in str(started.note)
    assert left_over(tmp_path) == []


class Blender(Doubler):
    """Blends 40 pixels of every fourth frame back, of 100."""

    def __init__(self, prepared: Prepared) -> None:
        super().__init__(prepared)
        self._blended = self._compared = 0

    def guarded(self) -> Counting:
        counts = self._blended, self._compared
        return lambda: counts

    def step(self, state: Trail, frames: list[np.ndarray]) -> tuple[Trail, list[np.ndarray]]:
        self._compared += 100 * len(frames)
        self._blended += 40 * sum(number % 4 == 0 for number in range(state.seen, state.seen + len(frames)))
        return super().step(state, frames)


@pytest.mark.parametrize("stop_at", [2, 11, 20, 23])
def test_what_a_guard_blended_back_counts_the_frames_of_interrupted_runs_too(tmp_path: Path, stop_at: int) -> None:
    source = make_clip(tmp_path / "in.mkv", frames=40, cut_at=20)
    with pytest.raises(Interrupted):
        upscale(job(source, tmp_path / "out.mkv"), stop_at=stop_at, build=builder(Blender))
    report = upscale(job(source, tmp_path / "out.mkv"), build=builder(Blender))
    assert isinstance(report, UpscaleReport) and report.frames_resumed > 0
    assert report.guarded_share == pytest.approx(0.1)
    explanation = explanation_of(tmp_path / "out.mkv")
    assert explanation is not None and explanation.made.guarded_share == pytest.approx(0.1)


def test_an_interruption_during_the_join_only_joins_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_clip(tmp_path / "in.mkv", frames=12)

    def broken(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("ultraflash_cli.jobs.running.upscale.join", broken)
        with pytest.raises(KeyboardInterrupt):
            upscale(job(source))

    def no_model(prepared: Prepared) -> FrameUpscaler:
        return Doubler(prepared, fails_at=0)

    report = upscale(job(source), build=builder(no_model))
    assert report.frames_resumed == 12
    assert len(decoded(tmp_path / "in_2x.mkv")) == 12


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        pytest.param({"seed": 5}, "--seed was 0 and is 5", id="seed"),
        pytest.param({"res": "3x"}, "--res was 128x96 and is 192x144", id="res"),
        pytest.param({"audio": "none"}, "--audio was copy and is none", id="audio"),
        pytest.param({"crf": 5}, "--crf was 1 and is 5", id="crf"),
        pytest.param({"guard": 8.0}, "--guard was 32.0 and is 8.0", id="guard"),
    ],
)
def test_a_changed_flag_starts_afresh_and_says_why(tmp_path: Path, changed: dict[str, Any], reason: str) -> None:
    source = make_clip(tmp_path / "in.mkv", frames=30)
    made = job(source, tmp_path / "out.mkv")
    with pytest.raises(Interrupted):
        upscale(made, stop_at=20)
    events: list[Event] = []
    report = upscale(replace(made, **changed), events=events)
    assert report.frames_resumed == 0
    (started,) = [event for event in events if isinstance(event, Started)]
    assert reason in str(started.note)


def test_changed_weights_and_a_changed_input_start_afresh(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "in.mkv", frames=30)
    made = job(source, tmp_path / "out.mkv")
    for change in ("weights", "input"):
        with pytest.raises(Interrupted):
            upscale(made, stop_at=20)
        if change == "input":
            make_clip(source, frames=29)
        report = upscale(made, build=builder(weights="1" if change == "weights" else "0"))
        assert report.frames_resumed == 0
        (tmp_path / "out.mkv").unlink()


def test_without_resume_an_interruption_leaves_nothing(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "in.mkv", frames=30)
    with pytest.raises(Interrupted, match="starts over"):
        upscale(job(source, resume=False), stop_at=20)
    assert left_over(tmp_path) == []


def test_no_memory_is_reported_and_what_is_finished_is_kept(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "in.mkv", frames=30)
    with pytest.raises(OutOfMemory):
        upscale(job(source), build=builder(lambda prepared: Doubler(prepared, fails_at=20)))
    assert upscale(job(source)).frames_resumed == 11


def test_a_failure_before_the_work_begins_keeps_what_an_earlier_run_finished(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "in.mkv", frames=30)
    with pytest.raises(Interrupted):
        upscale(job(source), stop_at=20)

    def no_weights(prepared: Prepared) -> Built[FrameUpscaler]:
        raise WeightsError("the decoder is gone")

    with pytest.raises(WeightsError):
        upscale(job(source), build=no_weights)
    assert upscale(job(source)).frames_resumed == 20


def test_a_full_disk_ends_with_an_output_error_and_can_continue_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_clip(tmp_path / "in.mkv", frames=30)
    add = Journal.add

    def full(self: Journal, files: Any, **entry: Any) -> SegmentEntry:
        if entry["end_frame"] > 20:
            raise OSError(28, "No space left on device")
        return add(self, files, **entry)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "add", full)
        with pytest.raises(OutputError, match="full"):
            upscale(job(source))
    assert not (tmp_path / "in_2x.mkv").exists()
    assert upscale(job(source)).frames_resumed == 11


@pytest.mark.parametrize("change", ["deleted", "replaced"])
def test_an_input_that_changes_during_the_run_costs_no_finished_frame(tmp_path: Path, change: str) -> None:
    source, other = make_clip(tmp_path / "in.mkv", frames=30), make_clip(tmp_path / "other.mkv", frames=4)
    kept = source.read_bytes(), source.stat().st_mtime_ns

    def listen(event: Event) -> None:
        if isinstance(event, Chunk) and event.frames_done == 30:
            source.unlink() if change == "deleted" else shutil.copy(other, source)

    with pytest.raises(InputError, match="all 30 frames are finished and kept"):
        run(job(source, tmp_path / "out.mkv"), listen, build=builder(), segment_frames=12)
    source.write_bytes(kept[0])
    os.utime(source, ns=(kept[1], kept[1]))
    assert upscale(job(source, tmp_path / "out.mkv")).frames_resumed == 30
    assert len(decoded(tmp_path / "out.mkv")) == 30


@pytest.fixture
def untidy(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Make runs end as if killed before their cleanup, until this is called."""
    monkeypatch.setattr(work, "discard", lambda folder: None)
    return monkeypatch.undo


@pytest.mark.parametrize("options", [{}, {"skip_existing": True}, {"overwrite": True}], ids=["plain", "n", "y"])
def test_a_run_killed_before_it_tidied_up_is_done_already(
    tmp_path: Path, untidy: Callable[[], None], options: dict[str, Any]
) -> None:
    source, output = make_clip(tmp_path / "in.mkv", frames=20), tmp_path / "out.mkv"
    upscale(job(source, output))
    for segment in work_folder(output).glob("segment-000000*"):
        segment.unlink()
    before = output.stat()
    untidy()
    events: list[Event] = []
    report = upscale(job(source, output, **options), events=events)
    (started,) = [event for event in events if isinstance(event, Started)]
    assert started.note is not None and "already finished" in started.note
    assert (report.frames_in, report.frames_out, report.skipped) == (20, 20, False)
    after = output.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns), "it was left alone"
    assert left_over(tmp_path) == []


def test_what_a_run_with_a_different_task_has_put_in_place_is_not_replaced(
    tmp_path: Path, untidy: Callable[[], None]
) -> None:
    source, output = make_clip(tmp_path / "in.mkv", frames=20), tmp_path / "out.mkv"
    upscale(job(source, output))
    before = output.read_bytes()
    untidy()
    with pytest.raises(UsageError, match="exists; use -y to replace it"):
        upscale(job(source, output, crf=30))
    assert output.read_bytes() == before
    upscale(job(source, output, crf=30, overwrite=True))
    assert output.read_bytes() != before
    assert left_over(tmp_path) == []


def test_an_output_that_was_changed_since_is_not_taken_for_ours(tmp_path: Path, untidy: Callable[[], None]) -> None:
    source, output = make_clip(tmp_path / "in.mkv", frames=20), tmp_path / "out.mkv"
    upscale(job(source, output))
    untidy()
    output.write_bytes(b"another film")
    with pytest.raises(UsageError, match="exists"):
        upscale(job(source, output))
    assert output.read_bytes() == b"another film"


def test_pictures_of_which_some_are_in_place_all_come_there(tmp_path: Path, untidy: Callable[[], None]) -> None:
    source, output = make_clip(tmp_path / "in.mkv", frames=20), tmp_path / "out" / "%05d.png"
    made = job(source, output, codec="png", crf=None)
    upscale(made)
    whole = {path.name: path.read_bytes() for path in output.parent.glob("*.png")}
    assert len(whole) == 20
    for number in range(9, 21):
        (output.parent / f"{number:05d}.png").unlink()
    untidy()
    upscale(made)
    assert {path.name: path.read_bytes() for path in output.parent.iterdir()} == whole
