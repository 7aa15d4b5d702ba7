"""Frames as shown: colours by the standards, every timestamp, nothing lost."""

from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.video.clips import ClipPlan, ffmpeg, make_clip, mean_error, picture, shown_times, to_yuv444
from ultraflash_cli.errors import InputError
from ultraflash_cli.video.clock import Clock
from ultraflash_cli.video.color import ColorInfo
from ultraflash_cli.video.decode import read_frames
from ultraflash_cli.video.frame import Frame
from ultraflash_cli.video.probe import probe

MATRIX = {601: 6, 709: 1}


def read(path: Path) -> tuple[list[Frame], list[str]]:
    warnings: list[str] = []
    return list(read_frames(probe(path), warn=warnings.append)), warnings


def write_yuv444(path: Path, *, standard: int, full: bool, tag: int | None = None) -> None:
    """Write one lossless frame whose samples follow the definition of the standard, not
    FFmpeg's."""
    planes = to_yuv444(picture(0), standard=standard, full=full)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25, width=64, height=48)
        assert isinstance(stream, av.VideoStream)
        context = stream.codec_context
        context.pix_fmt = "yuv444p"
        context.colorspace = MATRIX[standard] if tag is None else tag
        context.color_range = 2 if full else 1
        container.mux(stream.encode(av.VideoFrame.from_ndarray(planes, format="yuv444p")) + stream.encode(None))


@pytest.mark.parametrize("standard", [601, 709])
@pytest.mark.parametrize("full", [False, True], ids=["limited", "full"])
def test_colours_follow_the_matrix_and_range_of_the_file(tmp_path: Path, standard: int, full: bool) -> None:
    path = tmp_path / "a.mkv"
    write_yuv444(path, standard=standard, full=full)
    (frame,), _ = read(path)
    worst = np.abs(frame.rgb_hwc.astype(int) - picture(0).astype(int)).max()
    assert worst <= 2


@pytest.mark.parametrize("location", ["left", "center", "topleft"])
def test_halved_chroma_is_put_where_the_file_says_that_it_lies(tmp_path: Path, location: str) -> None:
    y, x = np.mgrid[0:48, 0:64]
    bars = np.stack([90 + 80 * np.sin(x / 2.5), 100 + 60 * np.sin(y / 3), 120 + 70 * np.cos(x / 2.5)], axis=-1)
    rgb = bars.round().astype(np.uint8)
    raw = tmp_path / "a.raw"
    raw.write_bytes(rgb.tobytes())
    path = tmp_path / "a.mkv"
    place = {"left": 0, "center": 1, "topleft": 2}[location]
    scale = f"scale=flags=lanczos+accurate_rnd+full_chroma_inp:out_chroma_loc={location}:out_color_matrix=bt601"
    ffmpeg(
        "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "64x48", "-i", str(raw), "-vf", f"{scale},format=yuv420p",
        "-c:v", "libx265", "-x265-params", f"log-level=none:lossless=1:chromaloc={place}", str(path),
    )  # fmt: skip
    info = probe(path)
    assert info.chroma_location == location
    (right,) = read_frames(info, warn=print)
    others = {"left", "center", "topleft"} - {location}
    wrong = [next(read_frames(replace(info, chroma_location=other), warn=print)) for other in others]
    assert all(mean_error(right.rgb_hwc, rgb) < 0.9 * mean_error(frame.rgb_hwc, rgb) for frame in wrong)


def test_an_unspecified_matrix_is_read_as_bt601_in_small_pictures(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    write_yuv444(path, standard=601, full=False, tag=2)
    (frame,), _ = read(path)
    assert np.abs(frame.rgb_hwc.astype(int) - picture(0).astype(int)).max() <= 2


def test_ten_bits_come_as_sixteen_with_levels_between_those_of_eight(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    ramp = np.tile(np.arange(300, 364, dtype=np.uint16), (48, 1))
    planes = np.stack([ramp, np.full_like(ramp, 512), np.full_like(ramp, 512)])
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25, width=64, height=48)
        assert isinstance(stream, av.VideoStream)
        stream.codec_context.pix_fmt = "yuv444p10le"
        stream.codec_context.colorspace, stream.codec_context.color_range = 1, 1
        frame = av.VideoFrame(64, 48, "yuv444p10le")
        for plane, values in zip(frame.planes, planes, strict=True):
            rows = np.zeros((48, plane.line_size // 2), np.uint16)
            rows[:, :64] = values
            plane.update(rows.tobytes())
        container.mux(stream.encode(frame) + stream.encode(None))
    (shown,), _ = read(path)
    assert shown.rgb_hwc.dtype == np.uint16
    expected = (ramp[0].astype(float) - 64) / 876 * 65535
    assert np.abs(shown.rgb_hwc[10, :, 1] - expected).max() < 65535 / 1023
    assert len(np.unique(shown.rgb_hwc[10, :, 1])) == 64


IRREGULAR = (0, 7, 8, 31, 40, 90, 91, 92, 150, 170, 171, 300)


@pytest.mark.parametrize(
    ("suffix", "time_base"),
    [(".mp4", Fraction(1, 90000)), (".mp4", Fraction(1, 600)), (".mkv", Fraction(1, 1000)), (".mov", Fraction(1, 30))],
)
def test_irregular_timestamps_with_b_frames_are_kept(tmp_path: Path, suffix: str, time_base: Fraction) -> None:
    plan = ClipPlan(pts=IRREGULAR, last_duration=20, time_base=time_base, options={"preset": "medium", "crf": "1"})
    path = make_clip(tmp_path / f"a{suffix}", plan)
    frames, warnings = read(path)
    assert [frame.pts for frame in frames] == list(IRREGULAR)
    assert [frame.duration for frame in frames[:-1]] == [b - a for a, b in pairwise(IRREGULAR)]
    assert [frame.pts * time_base for frame in frames] == shown_times(path)
    assert not warnings
    assert all(mean_error(frame.rgb_hwc, picture(n)) < 6 for n, frame in enumerate(frames))


@pytest.mark.parametrize("suffix", [".avi", ".ts", ".mpg", ".gif", ".webm", ".flv"])
def test_other_containers_give_every_frame_at_its_time(tmp_path: Path, suffix: str) -> None:
    source = make_clip(tmp_path / "source.mp4")
    path = tmp_path / f"a{suffix}"
    extra = ["-c:v", "libx264"] if suffix in (".avi", ".ts", ".flv") else []
    ffmpeg("-i", str(source), *extra, str(path))
    frames, warnings = read(path)
    times = shown_times(path)
    assert [frame.pts * probe(path).time_base for frame in frames] == times
    assert len(frames) == 12 and not warnings


def test_a_stream_without_timestamps_gets_regular_ones(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "source.mp4")
    path = tmp_path / "a.h264"
    ffmpeg("-i", str(source), "-c", "copy", "-bsf:v", "h264_mp4toannexb", str(path))
    frames, _ = read(path)
    steps = {b.pts - a.pts for a, b in pairwise(frames)}
    assert len(frames) == 12 and len(steps) == 1
    assert steps.pop() * probe(path).time_base == Fraction(1, 25)


@given(
    stamps=st.lists(st.one_of(st.none(), st.integers(-50, 10_000)), min_size=1, max_size=40),
    step=st.integers(1, 50),
)
def test_repaired_timestamps_grow_and_good_ones_stay(stamps: list[int | None], step: int) -> None:
    clock = Clock(step=step, jump=2_000)
    repaired = [clock.next(stamp) for stamp in stamps]
    assert all(b > a for a, b in pairwise(repaired))
    good = [stamp for stamp in stamps if stamp is not None]
    if len(good) == len(stamps) and all(b > a for a, b in pairwise(good)):
        assert repaired == good


def test_a_repeated_timestamp_moves_by_one_tick_and_a_jump_back_continues() -> None:
    clock = Clock(step=10, jump=1000)
    assert [clock.next(stamp) for stamp in (0, 10, 10, 30)] == [0, 10, 11, 30]
    assert [clock.next(stamp) for stamp in (5000, 20, 30)] == [5000, 5010, 5020]
    assert clock.next(None, hint=45) == 5035


def test_presentation_times_that_step_back_more_often_than_decoding_times_are_not_believed() -> None:
    clock = Clock(step=1, jump=1000)
    wrong, decoded = (1, 3, 2, 5, 4, 7, 6), (2, 3, 4, 5, 6, 7, 8)
    assert [clock.next(p, hint=d) for p, d in zip(wrong, decoded, strict=True)] == [1, 3, 4, 5, 6, 7, 8]


def interlaced(path: Path, frames: int) -> Path:
    source = make_clip(path.with_name("source.mp4"), ClipPlan(pts=tuple(range(frames)), size=(64, 64)))
    arguments = ["-vf", "setfield=tff", "-c:v", "mpeg2video", "-flags", "+ildct+ilme", "-q:v", "2", "-an"]
    ffmpeg("-i", str(source), *arguments, str(path))
    return path


@pytest.mark.parametrize("count", [1, 2, 7])
def test_interlaced_clips_are_deinterlaced_frame_for_frame_and_it_is_reported_once(tmp_path: Path, count: int) -> None:
    path = interlaced(tmp_path / "a.mkv", count)
    frames, warnings = read(path)
    assert probe(path).interlaced
    assert [frame.pts * probe(path).time_base for frame in frames] == shown_times(path)
    assert len(frames) == count
    assert len(warnings) == 1 and "bwdif" in warnings[0]


def test_deinterlacing_removes_the_comb_and_keeps_the_frame_in_position(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    woven = [np.where(np.arange(48)[:, None, None] % 2, picture(2 * n + 8), picture(2 * n)) for n in range(6)]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25, width=64, height=48)
        assert isinstance(stream, av.VideoStream)
        stream.codec_context.pix_fmt = "yuv444p"
        for array in woven:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(array.astype(np.uint8))))
        container.mux(stream.encode(None))
    info = probe(path)
    assert info.scan == "tff"
    shown = [frame.rgb_hwc.astype(int) for frame in read_frames(info, warn=lambda _: None)]
    plain = [frame.rgb_hwc.astype(int) for frame in read_frames(info, deinterlace=False, warn=lambda _: None)]
    assert len(shown) == len(plain) == 6
    comb = [np.abs(np.diff(frame, axis=0)).mean() for frame in plain]
    smooth = [np.abs(np.diff(frame, axis=0)).mean() for frame in shown]
    assert all(s < 0.6 * c for s, c in zip(smooth, comb, strict=True))
    nearest = [min(range(6), key=lambda m: float(np.abs(shown[n] - plain[m]).mean())) for n in range(6)]
    assert nearest == list(range(6))


def test_a_clip_cut_short_gives_what_decodes_and_one_warning(tmp_path: Path) -> None:
    plan = ClipPlan(pts=tuple(range(60)), options={"g": "10", "crf": "1"}, container_options={"movflags": "faststart"})
    whole = make_clip(tmp_path / "whole.mp4", plan)
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(whole.read_bytes()[: int(whole.stat().st_size * 0.6)])
    frames, warnings = read(cut)
    assert 20 < len(frames) < 55
    assert [frame.pts for frame in frames] == list(range(len(frames)))
    assert len(warnings) == 1 and "lost" in warnings[0] and "\n" not in warnings[0]


def test_a_last_frame_that_stands_long_is_no_lost_tail(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "a.mp4", ClipPlan(pts=(0, 1, 2), last_duration=100))
    frames, warnings = read(path)
    assert [frame.duration for frame in frames] == [1, 1, 100] and not warnings


def test_damage_in_the_middle_costs_only_what_it_hits(tmp_path: Path) -> None:
    plan = ClipPlan(pts=tuple(range(40)), codec="mpeg4", options={"g": "5", "qscale": "2"})
    path = make_clip(tmp_path / "a.avi", plan)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 300] = bytes(300)
    path.write_bytes(data)
    frames, _ = read(path)
    assert len(frames) >= 36
    assert all(b.pts > a.pts for a, b in pairwise(frames))


def test_a_clip_of_which_nothing_decodes_is_refused(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "a.mov", ClipPlan(pts=(0,), codec="png", pix_fmt="rgb24", options={}))
    data = path.read_bytes()
    place = data.find(b"\x89PNG")
    path.write_bytes(data[:place] + bytes(20) + data[place + 20 :])
    with pytest.raises(InputError, match="no video frame can be decoded"):
        probe(path)


def test_transparency_that_is_not_kept_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25, width=64, height=48)
        assert isinstance(stream, av.VideoStream)
        stream.codec_context.pix_fmt = "bgra"
        array = np.full((48, 64, 4), 100, np.uint8)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(array, format="bgra")) + stream.encode(None))
    frames, warnings = read(path)
    assert (frames[0].rgb_hwc == 100).all()
    assert len(warnings) == 1 and "transparency" in warnings[0]


@pytest.mark.parametrize("size", [(63, 47), (1, 1), (17, 3)])
def test_odd_sizes_are_read_whole(tmp_path: Path, size: tuple[int, int]) -> None:
    plan = ClipPlan(size=size, codec="ffv1", pix_fmt="yuv444p", options={})
    frames, _ = read(make_clip(tmp_path / "a.mkv", plan))
    assert frames[0].rgb_hwc.shape == (size[1], size[0], 3)
    assert mean_error(frames[5].rgb_hwc, picture(5, width=size[0], height=size[1])) < 2


def test_a_full_range_tag_is_honoured_for_every_frame(tmp_path: Path) -> None:
    write_yuv444(tmp_path / "a.mkv", standard=709, full=True)
    info = probe(tmp_path / "a.mkv")
    wrong = replace(info, color=ColorInfo(matrix=1, range=1))
    (right,) = read_frames(info, warn=lambda _: None)
    (shifted,) = read_frames(wrong, warn=lambda _: None)
    assert mean_error(right.rgb_hwc, picture(0)) < 1 < mean_error(shifted.rgb_hwc, picture(0))
