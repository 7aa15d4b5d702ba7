"""A clip through the whole job with a tiny stand-in for the model: the output, and the
files left behind."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.jobs.clips import audio_packets, decoded, make_clip, moving_picture, stream_kinds, timestamps
from tests.jobs.doubler import job, left_over, upscale
from ultraflash_cli.errors import (
    ConfigError,
    InputError,
    OutputCheckError,
    OutputError,
    UsageError,
)
from ultraflash_cli.jobs.events import Chunk, Done, Event, Planned, Started, Warned
from ultraflash_cli.jobs.planning.upscale import Prepared, UpscaleJob, default_res
from ultraflash_cli.jobs.resume.work_folder import OutputLock, work_folder
from ultraflash_cli.jobs.running.prepare import prepare
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


def test_a_disk_that_cannot_hold_the_output_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_clip(tmp_path / "in.mkv")
    monkeypatch.setattr("ultraflash_cli.jobs.planning.target.free_bytes", lambda folder: 1000)
    with pytest.raises(OutputError, match="disk full"):
        upscale(job(source))
    assert left_over(tmp_path) == []


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


def test_a_target_of_a_different_shape_is_reported_to_stretch_the_picture(tmp_path: Path) -> None:
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
