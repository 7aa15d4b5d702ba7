"""Ways in and out of an upscaling besides a file for a file: pictures, pipes, rates, temporary folders, full disks."""

import io
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.video.stream import VideoStream

from tests.jobs.clips import audio_packets, decoded, make_clip, moving_picture, stream_kinds, timestamps
from tests.jobs.doubler import Doubler, builder, job, left_over, upscale
from ultraflash_cli.errors import ConfigError, InputError, Interrupted, OutOfMemory, OutputError, UsageError
from ultraflash_cli.jobs.events import Event, Planned, Retrying, Started, Warned
from ultraflash_cli.jobs.planning.upscale import Prepared, UpscaleJob
from ultraflash_cli.jobs.resume.journal import work_folder
from ultraflash_cli.jobs.running.pace import Pace
from ultraflash_cli.jobs.running.upscale import run
from ultraflash_cli.jobs.stop import Stop
from ultraflash_cli.models.built import Built
from ultraflash_cli.models.frames import FrameUpscaler
from ultraflash_cli.video.join import join
from ultraflash_cli.video.pipe import Pipe
from ultraflash_cli.video.stills import write_png


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return make_clip(tmp_path / "in.mkv", frames=30)


def pictures(folder: Path, count: int) -> Path:
    folder.mkdir()
    for number in range(count):
        write_png(folder / f"shot_{number:03d}.png", moving_picture(number, width=32, height=24))
    return folder


def same(a: list[np.ndarray], b: list[np.ndarray]) -> bool:
    return len(a) == len(b) and all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


# Rates


def test_a_pace_shows_what_is_on_when_each_frame_begins() -> None:
    def shown(fps: int, stamps: list[int], end: int, unit: Fraction) -> list[tuple[int, int]]:
        pace = Pace(Fraction(fps), time_base=unit, rate=Fraction(24), ticks=10)
        ends = [*stamps[1:], end]
        return [
            (number, pts)
            for number, (pts_in, after) in enumerate(zip(stamps, ends, strict=True))
            for pts, _ in pace.times(pts_in, after - pts_in)
        ]

    ms = Fraction(1, 1000)
    rounded = [0, 42, 83, 125, 167]
    assert [number for number, _ in shown(24, rounded, 208, ms)] == [0, 1, 2, 3, 4], "rounded times change nothing"
    assert [number for number, _ in shown(12, rounded, 208, ms)] == [0, 2, 4]
    assert [number for number, _ in shown(48, rounded, 208, ms)] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert shown(10, [500, 600, 700], 800, ms) == [(0, 50), (1, 60), (2, 70)], "the clip's own clock is kept"
    assert shown(1, [0], 1, ms) == [(0, 0)], "a clip is never without a frame"


@pytest.mark.parametrize(("fps", "count"), [(50, 60), (25, 30), (10, 12), (1, 2)])
def test_another_rate_repeats_or_drops_frames_and_keeps_the_length(clip: Path, fps: int, count: int) -> None:
    report = upscale(job(clip, fps=fps))
    output = Path(report.output)
    assert (report.frames_in, report.frames_out) == (30, count)
    times = timestamps(output)
    assert [float(time) for time in times] == pytest.approx([number / fps for number in range(count)], abs=0.001)
    stamps = [round(int(frame[4, 4, 0]) / 8) for frame in decoded(output)]
    assert stamps == [number * 25 // fps for number in range(count)]
    assert audio_packets(output) == audio_packets(clip)


def test_a_scene_of_which_no_frame_is_shown_is_no_harm(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "in.mkv", frames=24, cut_at=22)
    report = upscale(job(source, fps=5))
    assert report.frames_out == len(decoded(Path(report.output))) == 5


def test_a_run_at_another_rate_can_be_interrupted(clip: Path, tmp_path: Path) -> None:
    upscale(job(clip, tmp_path / "whole.mkv", fps=40))
    with pytest.raises(Interrupted):
        upscale(job(clip, tmp_path / "broken.mkv", fps=40), stop_at=17)
    assert upscale(job(clip, tmp_path / "broken.mkv", fps=40)).frames_resumed == 17
    assert same(decoded(tmp_path / "broken.mkv"), decoded(tmp_path / "whole.mkv"))


# Pictures


@pytest.mark.parametrize("named", ["folder", "pattern"])
def test_pictures_become_a_clip(tmp_path: Path, named: str) -> None:
    folder = pictures(tmp_path / "shots", 7)
    source = folder if named == "folder" else folder / "shot_%03d.png"
    report = upscale(job(source, images=named == "folder", fps=10))
    assert Path(report.output).name == "shot_2x.mp4"
    assert Path(report.output).parent == tmp_path
    assert [float(time) for time in timestamps(Path(report.output))] == pytest.approx([n / 10 for n in range(7)])
    assert report.warnings == () or all("finer" in each for each in report.warnings)


def test_a_folder_of_pictures_is_no_clip_without_being_said_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="folder"):
        upscale(job(pictures(tmp_path / "shots", 2)))


def test_a_changed_picture_starts_afresh(tmp_path: Path) -> None:
    source = pictures(tmp_path / "shots", 30) / "shot_%03d.png"
    with pytest.raises(Interrupted):
        upscale(job(source), stop_at=20)
    write_png(tmp_path / "shots" / "shot_004.png", moving_picture(500, width=32, height=24))
    events: list[Event] = []
    assert upscale(job(source), events=events).frames_resumed == 0
    (started,) = [event for event in events if isinstance(event, Started)]
    assert "the pictures" in str(started.note)


def test_a_clip_becomes_pictures_whole_or_not_at_all(clip: Path, tmp_path: Path) -> None:
    target = tmp_path / "out" / "%04d.png"
    with pytest.raises(Interrupted):
        upscale(job(clip, target, codec="auto", crf=None), stop_at=17)
    assert not list((tmp_path / "out").glob("*.png"))
    report = upscale(job(clip, target, codec="auto", crf=None))
    assert (report.frames_resumed, report.frames_out) == (17, 30)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [f"{n:04d}.png" for n in range(1, 31)]
    (picture,) = decoded(tmp_path / "out" / "0010.png")
    assert picture.shape == (96, 128, 3)
    assert picture[4, 4, 0] == 8 * 9
    with pytest.raises(UsageError, match="exists"):
        upscale(job(clip, target, codec="auto", crf=None))
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    report = upscale(job(clip, target, codec="auto", crf=None, end="0.2", seed=1, overwrite=True))
    after = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    changed = [name for name in sorted(before) if before[name] != after[name]]
    assert (after.keys(), changed) == (before.keys(), [f"{n:04d}.png" for n in range(1, 6)])
    assert "0006.png to 0030.png were not made by this run and are left" in " ".join(report.warnings)


def test_one_name_for_many_pictures_is_refused(clip: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="%05d"):
        upscale(job(clip, tmp_path / "out.png", codec="png", crf=None))


# Pipes


def piped(clip: Path) -> dict[str, Any]:
    return {"pipe": Pipe(io.BytesIO(clip.read_bytes()))}


def test_a_pipe_keeps_its_picture_and_says_what_it_would_need_for_more(clip: Path, tmp_path: Path) -> None:
    events: list[Event] = []
    report = upscale(job(Path("-"), tmp_path / "out.mkv", **piped(clip)), events=events)
    assert report.input == "-"
    assert timestamps(tmp_path / "out.mkv") == timestamps(clip)
    assert stream_kinds(tmp_path / "out.mkv") == ["video"]
    assert any("--temp-dir" in warning for warning in report.warnings)
    (started,) = [event for event in events if isinstance(event, Started)]
    assert "cannot be resumed" in str(started.note)
    assert left_over(tmp_path) == []


def test_with_a_temporary_folder_a_pipe_keeps_its_sound(clip: Path, tmp_path: Path) -> None:
    temp = tmp_path / "temp"
    upscale(job(Path("-"), tmp_path / "out.mkv", temp=temp, **piped(clip)))
    assert audio_packets(tmp_path / "out.mkv") == audio_packets(clip)
    assert list(temp.iterdir()) == []


def test_an_interrupted_pipe_leaves_nothing(clip: Path, tmp_path: Path) -> None:
    with pytest.raises(Interrupted, match="starts over"):
        upscale(job(Path("-"), tmp_path / "out.mkv", temp=tmp_path / "temp", **piped(clip)), stop_at=17)
    assert left_over(tmp_path) == []
    assert list((tmp_path / "temp").iterdir()) == []


def test_what_comes_through_a_pipe_needs_a_name() -> None:
    with pytest.raises(ConfigError, match="-o"):
        job(Path("-"), pipe=Pipe(io.BytesIO(b"")))


# Transparency


def test_transparency_is_enlarged_and_kept(tmp_path: Path) -> None:
    source = tmp_path / "in.mov"
    with av.open(source, "w") as container:
        video = container.add_stream("prores_ks", rate=25, options={"profile": "4"})
        assert isinstance(video, VideoStream)
        video.width, video.height, video.pix_fmt = 64, 48, "yuva444p10le"
        for number in range(4):
            rgba = np.dstack([moving_picture(number, width=64, height=48), np.zeros((48, 64), np.uint8)])
            rgba[:, 32:, 3] = 255
            container.mux(video.encode(av.VideoFrame.from_ndarray(rgba, format="rgba")))
        container.mux(video.encode(None))
    report = upscale(job(source, tmp_path / "out.mov", codec="prores", crf=None))
    with av.open(report.output) as container:
        alphas = [frame.reformat(format="rgba").to_ndarray()[:, :, 3] for frame in container.decode(video=0)]
    assert len(alphas) == 4
    for alpha in alphas:
        assert alpha.shape == (96, 128)
        assert alpha[:, :56].max() <= 8 and alpha[:, 72:].min() >= 247
    assert not any("transparen" in warning for warning in report.warnings)
    flat = upscale(job(source, tmp_path / "flat.mp4"))
    assert any("transparen" in warning for warning in flat.warnings)


# Damage


def test_what_is_lost_of_a_damaged_clip_is_said_or_refused(clip: Path, tmp_path: Path) -> None:
    whole = clip.read_bytes()
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(whole[: len(whole) * 2 // 3])
    report = upscale(job(cut))
    assert 0 < report.frames_out < 30
    assert any("damaged or truncated" in warning or "truncated:" in warning for warning in report.warnings)
    Path(report.output).unlink()

    def never(prepared: Prepared) -> Built[FrameUpscaler]:
        raise AssertionError("the model was loaded")

    with pytest.raises(InputError, match="--strict"):
        upscale(job(cut, strict=True), build=never)
    assert upscale(job(clip, strict=True)).frames_out == 30
    assert left_over(tmp_path) == []


def test_a_damaged_pipe_is_refused_when_its_end_is_known(clip: Path, tmp_path: Path) -> None:
    whole = clip.read_bytes()
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(whole[: len(whole) // 2] + bytes(3000) + whole[len(whole) // 2 + 3000 :])
    with pytest.raises(InputError, match="--strict"):
        upscale(job(Path("-"), tmp_path / "out.mkv", strict=True, **piped(cut)))
    assert not (tmp_path / "out.mkv").exists()
    assert left_over(tmp_path) == []


# Where the work lies


def test_unfinished_work_lies_in_the_temporary_folder_and_is_found_there(clip: Path, tmp_path: Path) -> None:
    temp = tmp_path / "temp"
    with pytest.raises(Interrupted):
        upscale(job(clip, temp=temp), stop_at=17)
    assert left_over(tmp_path) == []
    (folder,) = temp.iterdir()
    assert (folder / "journal.jsonl").is_file()
    assert upscale(job(clip, temp=temp)).frames_resumed == 17
    assert list(temp.iterdir()) == []


def test_outputs_of_one_name_have_their_own_place_in_a_temporary_folder(clip: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        with pytest.raises(Interrupted):
            upscale(job(clip, tmp_path / name / "out.mkv", temp=tmp_path / "temp"), stop_at=17)
    assert len(list((tmp_path / "temp").iterdir())) == 2


def test_a_temporary_folder_that_is_a_file_is_refused(clip: Path, tmp_path: Path) -> None:
    (tmp_path / "temp").write_text("mine")
    with pytest.raises(OutputError, match="is a file"):
        upscale(job(clip, temp=tmp_path / "temp"))


# Stops and full disks at the end


def test_a_stop_during_the_join_is_obeyed_and_only_the_join_is_done_again(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = Stop()

    def stopped(*arguments: Any, **named: Any) -> Any:
        stop.request(15)
        return join(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr("ultraflash_cli.jobs.running.upscale.join", stopped)
        with pytest.raises(Interrupted, match="30 frames are finished") as caught:
            run(job(clip), lambda event: None, stop=stop, build=builder(), segment_frames=12)
    assert caught.value.exit_code == 143
    assert not (tmp_path / "in_2x.mkv").exists()
    assert upscale(job(clip), build=builder(lambda prepared: Doubler(prepared, fails_at=0))).frames_resumed == 30


def test_a_disk_that_fills_up_during_the_join_keeps_everything(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("ultraflash_cli.video.join._interleave", full)
        with pytest.raises(OutputError, match="disk is full") as caught:
            upscale(job(clip))
    assert caught.value.exit_code == 7
    assert not (tmp_path / "in_2x.mkv").exists()
    assert not list(work_folder(tmp_path / "in_2x.mkv").glob("*.part*"))
    assert upscale(job(clip), build=builder(lambda prepared: Doubler(prepared, fails_at=0))).frames_resumed == 30


@pytest.mark.parametrize("moment", range(1, 12))
def test_a_disk_that_fills_up_at_any_moment_is_exit_7_and_the_same_command_goes_on(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    synced = 0

    def full(descriptor: int) -> None:
        nonlocal synced
        synced += 1
        if synced >= moment:
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(OutputError) as caught:
            upscale(job(clip))
    assert caught.value.exit_code == 7
    assert not (tmp_path / "in_2x.mkv").exists()
    report = upscale(job(clip))
    assert report.frames_out == len(decoded(tmp_path / "in_2x.mkv")) == 30
    assert left_over(tmp_path) == []


def test_room_for_the_states_is_asked_for_before_the_work(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def large(prepared: Prepared) -> Built[FrameUpscaler]:
        return replace(builder()(prepared), state_bytes=10**9)

    monkeypatch.setattr("ultraflash_cli.jobs.planning.target.free_bytes", lambda folder: 10**9)
    with pytest.raises(OutputError, match="2000 MB are needed"):
        upscale(job(clip), build=large)


def test_what_an_interrupted_run_has_written_counts_as_room(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Interrupted):
        upscale(job(clip, codec="ffv1", crf=None), stop_at=29)
    needed: list[int] = []
    monkeypatch.setattr(
        "ultraflash_cli.jobs.planning.upscale.check_space", lambda folder, needed_bytes: needed.append(needed_bytes)
    )
    upscale(job(clip, codec="ffv1", crf=None))
    fresh = 2 * 4 * 128 * 96 * 30 // 8 + clip.stat().st_size
    assert needed[0] < fresh - 100_000


# Memory


def hungry(sizes: dict[int, int], asked: list[str | None]) -> Callable[[Prepared], Built[FrameUpscaler]]:
    """Build models that need what is planned; `sizes` are the plans by their budget, the model fits into 100 only."""

    def build(prepared: Prepared) -> Built[FrameUpscaler]:
        asked.append(prepared.job.max_memory)
        budget = int(prepared.job.max_memory or 1000)
        fitting = [size for size in sizes if size <= budget]
        if not fitting:
            raise OutOfMemory("the smallest plan needs more")
        planned = max(fitting)
        model = Doubler(prepared, fails_at=None if planned <= 100 else 14)
        warnings = () if planned == 1000 else (f"for lack of memory: plan {sizes[planned]}",)
        made = builder(lambda _: model)(prepared)
        return replace(made, planned_bytes=planned, memory_plan=str(sizes[planned]), warnings=warnings)

    return build


def test_when_memory_runs_out_smaller_plans_are_tried_down_to_one_that_fits(clip: Path, tmp_path: Path) -> None:
    asked: list[str | None] = []
    events: list[Event] = []
    report = upscale(job(clip), build=hungry({1000: 0, 500: 0, 100: 1}, asked), events=events)
    assert asked == [None, "999", "499"]
    assert len([event for event in events if isinstance(event, Retrying)]) == 2
    resumed = [event.frames_resumed for event in events if isinstance(event, Started)]
    assert resumed == [0, 11, 0], "a plan with the same pixels goes on, another one begins again"
    assert report.warnings == (f"{clip}: for lack of memory: plan 0", f"{clip}: for lack of memory: plan 1")
    assert len([event for event in events if isinstance(event, Planned)]) == 1
    upscale(job(clip, tmp_path / "plain.mkv"))
    assert same(decoded(Path(report.output)), decoded(tmp_path / "plain.mkv"))


def test_without_a_smaller_plan_it_is_out_of_memory(clip: Path) -> None:
    with pytest.raises(OutOfMemory, match="smallest") as caught:
        upscale(job(clip), build=hungry({1000: 0, 500: 0}, []))
    assert caught.value.exit_code == 5


def test_a_used_up_pipe_is_not_tried_again(clip: Path, tmp_path: Path) -> None:
    with pytest.raises(OutOfMemory):
        upscale(job(Path("-"), tmp_path / "out.mkv", **piped(clip)), build=hungry({1000: 0, 100: 0}, []))


# Odd inputs


def test_a_warning_is_given_once(clip: Path) -> None:
    def build(prepared: Prepared) -> Built[FrameUpscaler]:
        return replace(builder()(prepared), warnings=("careful", "careful"))

    events: list[Event] = []
    report = upscale(job(clip), build=build, events=events)
    assert report.warnings.count(f"{clip}: careful") == 1
    assert len([event for event in events if isinstance(event, Warned)]) == len(report.warnings)


@pytest.mark.parametrize("fps", [0, -1, 241])
def test_an_impossible_rate_is_refused_at_birth(fps: int) -> None:
    with pytest.raises(ConfigError, match="--fps"):
        UpscaleJob(source=Path("in.mp4"), fps=Fraction(fps))
