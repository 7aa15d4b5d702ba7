"""Other frame rates: frames repeated or dropped."""

from fractions import Fraction
from pathlib import Path

import pytest

from tests.jobs.clips import audio_packets, decoded, make_clip, timestamps
from tests.jobs.doubler import job, upscale
from tests.jobs.running.ways import same
from ultraflash_cli.errors import Interrupted
from ultraflash_cli.jobs.running.pace import Pace


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
