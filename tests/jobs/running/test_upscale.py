"""A clip through the whole job with a tiny stand-in for the model: what comes out, and what is left behind."""

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.jobs.clips import audio_packets, decoded, make_clip, moving_picture, stream_kinds, timestamps
from tests.jobs.doubler import Doubler, Trail, builder, job, left_over, upscale
from ultraflash_cli.engine.guard import Counting
from ultraflash_cli.errors import (
    ConfigError,
    InputError,
    Interrupted,
    OutOfMemory,
    OutputCheckError,
    OutputError,
    UsageError,
    WeightsError,
)
from ultraflash_cli.jobs.events import Chunk, Done, Event, Planned, Started, Warned
from ultraflash_cli.jobs.explain import explanation_of
from ultraflash_cli.jobs.planning.upscale import Prepared, UpscaleJob, default_res
from ultraflash_cli.jobs.resume.entries import SegmentEntry
from ultraflash_cli.jobs.resume.journal import Journal, OutputLock, work_folder
from ultraflash_cli.jobs.running import work
from ultraflash_cli.jobs.running.prepare import prepare
from ultraflash_cli.jobs.running.upscale import UpscaleReport, run
from ultraflash_cli.models.built import Built
from ultraflash_cli.models.frames import FrameUpscaler


def test_every_frame_its_time_and_the_sound_come_out(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "in.mkv", frames=20, uneven=True)
    events: list[Event] = []
    report = upscale(job(source), events=events)
    output = tmp_path / "in_2x.mkv"
    assert Path(report.output) == output
    assert (report.frames_in, report.frames_out, report.width, report.height) == (20, 20, 128, 96)
    assert timestamps(output) == timestamps(source)
    assert audio_packets(output) == audio_packets(source)
    for number, frame in enumerate(decoded(output)):
        want = moving_picture(number, width=64, height=48).repeat(2, axis=0).repeat(2, axis=1)
        assert np.abs(frame[8:].astype(int) - want[8:]).mean() < 4, f"frame {number} is another one"
        assert abs(int(frame[4, 4, 0]) - 8 * number) <= 4
    assert left_over(tmp_path) == []
    kinds = [type(event) for event in events]
    assert kinds[0] is Planned
    assert kinds[-1] is Done
    assert kinds.index(Started) < kinds.index(Chunk)


def test_a_cut_begins_a_new_scene_and_can_be_switched_off(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "in.mkv", frames=24, cut_at=9)
    upscale(job(source, tmp_path / "cut.mkv"))
    upscale(job(source, tmp_path / "uncut.mkv", cuts="off"))
    stamps = [round(int(frame[4, 4, 0]) / 8) for frame in decoded(tmp_path / "cut.mkv")]
    assert stamps == [*range(9), *range(15)]
    assert [round(int(frame[4, 4, 0]) / 8) for frame in decoded(tmp_path / "uncut.mkv")] == list(range(24))


@pytest.mark.parametrize("stop_at", [2, 11, 20, 23])
def test_an_interrupted_run_goes_on_to_the_frames_of_an_uninterrupted_one(tmp_path: Path, stop_at: int) -> None:
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


def test_no_memory_is_said_and_what_is_finished_is_kept(tmp_path: Path) -> None:
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


def test_a_full_disk_ends_with_an_output_error_and_can_go_on_later(
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


def test_a_disk_that_cannot_hold_the_output_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_clip(tmp_path / "in.mkv")
    monkeypatch.setattr("ultraflash_cli.jobs.planning.target.free_bytes", lambda folder: 1000)
    with pytest.raises(OutputError, match="disk full"):
        upscale(job(source))
    assert left_over(tmp_path) == []


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


def test_a_failed_check_leaves_no_file_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_clip(tmp_path / "in.mkv")

    def lost(*_: object, **__: object) -> None:
        raise OutputCheckError("a frame is missing")

    monkeypatch.setattr("ultraflash_cli.jobs.running.finish.check_output", lost)
    with pytest.raises(OutputCheckError, match="--no-resume"):
        upscale(job(source))
    assert not (tmp_path / "in_2x.mkv").exists()


def test_a_part_of_the_clip_is_cut_at_its_times_and_shown_from_zero(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "in.mkv", frames=50)
    report = upscale(job(source, start="0.4", end="50%"))
    assert Path(report.output).name == "in_2x_part.mkv"
    assert report.frames_out == 15
    times = timestamps(Path(report.output))
    assert times[0] == 0
    assert [float(b - a) for a, b in pairwise(times)] == pytest.approx([0.04] * 14)
    first = decoded(Path(report.output))[0]
    want = moving_picture(10, width=64, height=48).repeat(2, axis=0).repeat(2, axis=1)
    assert np.abs(first[8:].astype(int) - want[8:]).mean() < 4


def test_side_by_side_shows_the_plain_resample_and_the_result(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "in.mkv", frames=4)
    report = upscale(job(source, side_by_side=True))
    assert Path(report.output).name == "in_2x_side_by_side.mkv"
    assert (report.width, report.height) == (256, 96)
    left, right = np.hsplit(decoded(Path(report.output))[3].astype(int), 2)
    assert abs(right[4, 4, 0] - 8 * 3) <= 4, "the result is stamped"
    assert abs(left[4, 4, 0] - 8 * 3) > 40
    assert np.abs(left[8:] - right[8:]).mean() < 12


def test_sound_and_subtitles_can_be_left_out(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "in.mkv")
    report = upscale(job(source, audio="none"))
    assert stream_kinds(Path(report.output)) == ["video"]


def test_what_is_left_out_is_named_in_the_warnings(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "in.mkv")
    events: list[Event] = []
    report = upscale(job(source, tmp_path / "out.webm", codec="av1"), events=events)
    warning, colours = report.warnings
    assert "audio aac" in warning
    assert "finer chroma" in colours
    assert warning in [event.message for event in events if isinstance(event, Warned)]


def test_a_target_of_another_shape_is_said_to_stretch_the_picture(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "in.mkv", frames=2)
    assert prepare(job(source, res="130x97"), to_write=False).warnings == ()
    (warning,) = prepare(job(source, res="128x128"), to_write=False).warnings
    assert "stretched" in warning and "64x48" in warning


def test_an_existing_output_is_refused_skipped_or_replaced_as_asked(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "in.mkv")
    output = tmp_path / "in_2x.mkv"
    output.write_text("mine")
    with pytest.raises(UsageError, match="exists"):
        upscale(job(source))
    assert upscale(job(source, skip_existing=True)).skipped
    assert output.read_text() == "mine"
    assert not upscale(job(source, overwrite=True)).skipped
    assert len(decoded(output)) == 20


def test_cheap_refusals_come_before_the_model_is_loaded(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "in.mkv")
    empty, text, plain = tmp_path / "empty.mp4", tmp_path / "text.mp4", tmp_path / "plain"
    empty.touch()
    text.write_text("hello\n" * 100)
    plain.write_text("file")
    cases: list[tuple[UpscaleJob, type[Exception], str]] = [
        (job(tmp_path / "nope.mp4"), InputError, "no such file"),
        (job(empty), InputError, "empty"),
        (job(text), InputError, "text.mp4"),
        (job(tmp_path), InputError, "folder"),
        (job(source, source, overwrite=True), UsageError, "input itself"),
        (job(source, plain / "out.mkv"), OutputError, "is a file"),
        (job(source, tmp_path / "noextension"), UsageError, "extension"),
        (job(source, tmp_path / "out.txt"), UsageError, "container"),
        (job(source, res="32x24"), UsageError, "downscale"),
        (job(source, crf=60), UsageError, "crf"),
        (job(source, pix_fmt="rgb24"), UsageError, "pix-fmt"),
        (job(source, start="5"), UsageError, "long"),
        (job(source, enc_options=(("no-such-option", "1"),)), UsageError, "enc-opt"),
        (job(source, enc_options=(("preset", "warp9"),)), UsageError, "enc-opt"),
        (job(source, enc_options=(("x264-params", "bogus=1"),)), UsageError, "bogus"),
    ]

    def never(prepared: Prepared) -> Built[FrameUpscaler]:
        raise AssertionError("the model was loaded")

    for made, error, words in cases:
        with pytest.raises(error, match=words):
            upscale(made, build=never)
    assert left_over(tmp_path) == []


@pytest.mark.parametrize(
    "options",
    [
        {"strength": float("nan")},
        {"strength": 1.5},
        {"res": "huge"},
        {"res": "0x10"},
        {"model": "best"},
        {"codec": "vp6"},
        {"device": "tpu"},
        {"crf": -1},
        {"seed": -1},
        {"threads": 0},
        {"overwrite": True, "skip_existing": True},
    ],
    ids=lambda options: "-".join(f"{name}={value}" for name, value in options.items()),
)
def test_a_job_with_an_impossible_value_is_refused_at_birth(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        job(Path("in.mp4"), **options)


@pytest.mark.parametrize(
    ("size", "res"),
    [
        ((832, 480), "1k"),
        ((480, 832), "1k"),
        ((1280, 800), "1k"),
        ((1280, 801), "2k"),
        ((1920, 1080), "2k"),
        ((2560, 1440), "2x"),
    ],
)
def test_the_default_target_is_the_first_worthwhile_one(size: tuple[int, int], res: str) -> None:
    assert default_res(*size) == res


def test_a_second_run_on_one_output_is_refused_while_the_first_is_at_work(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "in.mkv")
    output = prepare(job(source)).output
    with OutputLock(work_folder(output)), pytest.raises(OutputError, match="another run"):
        upscale(job(source))


@pytest.fixture
def untidy(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Runs end as if killed before they tidy up, until this is called."""
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


def test_what_a_run_with_another_task_has_put_in_place_is_not_replaced(
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
