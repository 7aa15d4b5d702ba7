"""Facts that the probe reports for generated files, and refusal of files that are not
videos."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.stream import Disposition

from tests.video.clips import ClipPlan, make_clip
from ultraflash_cli.errors import InputError
from ultraflash_cli.video.color import ColorInfo
from ultraflash_cli.video.probe import probe


def test_a_clip_is_described_with_all_that_lies_in_it(tmp_path: Path) -> None:
    color = ColorInfo(matrix=9, primaries=9, transfer=16, range=1)
    plan = ClipPlan(
        codec="libx265",
        pix_fmt="yuv420p10le",
        options={"x265-params": "log-level=none", "preset": "ultrafast"},
        color=color,
        aspect=Fraction(4, 3),
        audio=("aac", "libopus"),
        subtitles="1\n00:00:00,000 --> 00:00:00,200\nhello\n",
        attachment=True,
        chapters=2,
    )
    info = probe(make_clip(tmp_path / "a.mkv", plan))
    assert (info.width_px, info.height_px, info.codec, info.bit_depth) == (64, 48, "hevc", 10)
    assert info.color == color
    assert info.sample_aspect_ratio == Fraction(4, 3)
    assert info.chapters == 2
    assert [(s.kind, s.codec, s.language) for s in info.streams] == [
        ("video", "hevc", None),
        ("audio", "aac", "eng"),
        ("audio", "opus", "jpn"),
        ("subtitle", "subrip", "ger"),
        ("attachment", "font.ttf", None),
    ]
    assert info.time_base == Fraction(1, 1000)
    assert info.frame_count_estimate == 12


@pytest.mark.parametrize(("counterclockwise", "clockwise"), [(90, 270), (180, 180), (-90, 90), (0, 0)])
def test_rotation_is_how_far_the_picture_is_turned_clockwise(
    tmp_path: Path, counterclockwise: int, clockwise: int
) -> None:
    info = probe(make_clip(tmp_path / "a.mp4", ClipPlan(rotation=counterclockwise)))
    assert info.rotation_deg == clockwise
    shown = (info.display_width_px, info.display_height_px)
    assert shown == ((48, 64) if clockwise in (90, 270) else (64, 48))


def test_start_and_end_are_the_stream_s_own(tmp_path: Path) -> None:
    plan = ClipPlan(pts=(1200, 1201, 1300), last_duration=50, time_base=Fraction(1, 600))
    info = probe(make_clip(tmp_path / "a.mp4", plan))
    assert (info.start_pts, info.end_pts) == (1200, 1350)
    assert info.start_s == 2.0


def test_a_cover_picture_is_not_the_video(tmp_path: Path) -> None:
    path = tmp_path / "song.mp4"
    with av.open(str(path), "w") as container:
        cover = container.add_stream("png", rate=1, width=32, height=32)
        assert isinstance(cover, av.VideoStream)
        cover.codec_context.pix_fmt = "rgb24"
        cover.disposition = Disposition.attached_pic
        sound = container.add_stream("aac", rate=48000)
        assert isinstance(sound, av.AudioStream)
        container.mux(cover.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8))))
        silence = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), format="fltp", layout="stereo")
        silence.sample_rate = 48000
        container.mux(sound.encode(silence) + sound.encode(None))
    with pytest.raises(InputError, match="no video stream"):
        probe(path)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        pytest.param("empty.mp4", b"", "empty", id="empty"),
        pytest.param("text.mp4", b"Dear diary,\nthis is not a film.\n" * 50, "not a video", id="text"),
        pytest.param("list.mp4", b"ffconcat version 1.0\nfile other.mp4\n", "a playlist", id="playlist"),
        pytest.param("hls.mp4", b"#EXTM3U\n#EXTINF:1,\nother.ts\n", "a playlist", id="hls"),
        pytest.param("cut.mp4", b"\0\0\0\x10ftypisom\0\0\0\0\0\0\x10\0mdat" + bytes(5000), "moov", id="no index"),
        pytest.param("far.mp4", b"\0\0\0\1junk" + b"\xff" * 500, "not a readable", id="a length beyond all files"),
        pytest.param("noise.mkv", bytes(range(256)) * 40, "not a readable video", id="noise"),
    ],
)
def test_what_is_not_a_video_is_refused_in_one_line(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=says) as refusal:
        probe(path)
    assert "\n" not in str(refusal.value) and name in str(refusal.value)


def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        probe(tmp_path / "missing.mp4")
    with pytest.raises(InputError, match="is a folder"):
        probe(tmp_path)
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(InputError, match="no such file"):
        probe(tmp_path / "file" / "below.mp4")


def test_names_with_a_colon_and_signs_are_plain_names(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "plain.mp4").rename(tmp_path / "http: 50%d ünï 🎬.mp4")
    assert probe(path).width_px == 64
