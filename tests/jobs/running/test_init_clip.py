"""The end of a clip as the generator's input: the right frames, upright, cropped and
scaled."""

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.stream import VideoStream

from tests.jobs.clips import make_clip, moving_picture
from ultraflash_cli.errors import InputError
from ultraflash_cli.jobs.running.init_clip import fit_picture, read_ending
from ultraflash_cli.video.color import resize_rgb
from ultraflash_cli.video.probe import ClipInfo, probe


def grey_clip(path: Path, times: list[Fraction]) -> Path:
    """Write a clip whose frame `n` is a uniform grey of `5 n`, shown at `times[n]`."""
    with av.open(path, "w") as container:
        video = container.add_stream("libx264", rate=30, options={"qp": "0"})
        assert isinstance(video, VideoStream)
        video.width, video.height, video.pix_fmt = 32, 32, "yuv444p"
        video.codec_context.time_base = video.time_base = Fraction(1, 48000)
        for number, time_s in enumerate(times):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 5 * number, np.uint8), format="rgb24")
            frame.time_base, frame.pts = Fraction(1, 48000), round(time_s * 48000)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
    return path


def ending(path: Path, lengths: list[int], info: ClipInfo | None = None) -> list[int]:
    pictures = read_ending(info or probe(path), lengths=lengths, rate=16, height_px=16, width_px=16, warn=print)
    return [round(float(picture.mean()) / 5) for picture in pictures]


def test_a_clip_of_the_same_rate_gives_its_last_frames(tmp_path: Path) -> None:
    clip = grey_clip(tmp_path / "a.mp4", [Fraction(number, 16) for number in range(40)])
    assert ending(clip, [9, 21]) == list(range(19, 40))
    # Matroska rounds times to milliseconds, and 1/16 s is not a multiple of that.
    rounded = grey_clip(tmp_path / "a.mkv", [Fraction(number, 16) for number in range(40)])
    assert ending(rounded, [9, 21]) == list(range(19, 40))


@pytest.mark.parametrize(
    ("rate", "frames", "expected"),
    [
        pytest.param(32, 40, list(range(23, 40, 2)), id="twice"),
        pytest.param(8, 20, [15, 15, 16, 16, 17, 17, 18, 18, 19], id="half"),
    ],
)
def test_another_rate_repeats_or_drops(tmp_path: Path, rate: int, frames: int, expected: list[int]) -> None:
    clip = grey_clip(tmp_path / "a.mp4", [Fraction(number, rate) for number in range(frames)])
    assert ending(clip, [9]) == expected


def test_the_longest_length_that_the_clip_fills_is_taken(tmp_path: Path) -> None:
    clip = grey_clip(tmp_path / "a.mp4", [Fraction(number, 16) for number in range(15)])
    assert ending(clip, [9, 21]) == list(range(6, 15))
    with pytest.raises(InputError, match="15 frames at 16 fps, need at least 21"):
        ending(clip, [21])


@pytest.mark.parametrize("end_pts", [None, 10**7], ids=["unknown", "wrong"])
def test_a_clip_that_does_not_know_its_end_is_read_all_the_same(tmp_path: Path, end_pts: int | None) -> None:
    clip = grey_clip(tmp_path / "a.mp4", [Fraction(number, 16) for number in range(40)])
    assert ending(clip, [9], replace(probe(clip), end_pts=end_pts)) == list(range(31, 40))


def test_pictures_are_turned_upright_cut_to_shape_and_scaled(tmp_path: Path) -> None:
    info = probe(make_clip(tmp_path / "in.mp4", frames=2, width=96, height=64))
    picture = moving_picture(0, width=96, height=64)
    assert np.array_equal(fit_picture(picture, info, 64, 96), picture)
    assert np.array_equal(fit_picture(picture, info, 64, 64), picture[:, 16:80])
    assert np.array_equal(fit_picture(picture, info, 48, 96), picture[8:56])
    turned = replace(info, rotation_deg=90)
    assert np.array_equal(fit_picture(picture, turned, 96, 64), np.rot90(picture, -1))
    wide = replace(info, sample_aspect_ratio=Fraction(4, 3))
    assert np.array_equal(fit_picture(picture, wide, 64, 128), resize_rgb(picture, 128, 64))
    assert np.array_equal(fit_picture(picture, wide, 64, 96), resize_rgb(picture[:, 12:84], 96, 64))
    halved = fit_picture(picture, info, 32, 48).astype(int)
    assert np.abs(halved - picture.reshape(32, 2, 48, 2, 3).mean(axis=(1, 3))).mean() < 6
    deep = (picture.astype(np.uint16) * 257).astype(np.uint16)
    assert np.array_equal(fit_picture(deep, info, 64, 96), picture)
