"""Numbered images and plain frames."""

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from tests.video.clips import (
    ffmpeg,
    picture,
    write_segments,
)
from ultraflash_cli.errors import OutputCheckError, OutputError
from ultraflash_cli.video.containers import plan_streams
from ultraflash_cli.video.decode import read_frames
from ultraflash_cli.video.encode import EncodeSpec, choose_spec
from ultraflash_cli.video.frame import Frame
from ultraflash_cli.video.probe import ClipInfo, probe
from ultraflash_cli.video.sequence import numbered
from ultraflash_cli.video.stills import check_pictures, move_pictures, write_pictures
from ultraflash_cli.video.y4m import write_y4m


def png_spec(clip: ClipInfo, **more: int | bool) -> EncodeSpec:
    return choose_spec(replace(clip, **more), width_px=64, height_px=48, codec="png", threads=1)


@pytest.mark.parametrize("bits", [8, 10])
def test_pictures_are_written_whole_numbered_and_exact(tmp_path: Path, clip: ClipInfo, bits: int) -> None:
    spec = png_spec(clip, bit_depth=bits)
    streams = plan_streams(clip, None, codec="png")
    assert streams.suffix == ".png" and any("cannot store timestamps" in note for note in streams.notes)
    level = 257 if bits > 8 else 1
    dtype = np.uint16 if bits > 8 else np.uint8
    frames = [Frame(n, 1, picture(n).astype(dtype) * dtype(level)) for n in range(5)]
    segments = write_segments(tmp_path, spec, frames, per_segment=3)
    hidden, target = tmp_path / ".hidden" / "f%03d.png", tmp_path / "new" / "f%03d.png"
    assert write_pictures(segments, hidden) == 5
    check_pictures(hidden, frames=5, spec=spec)
    with pytest.raises(OutputCheckError, match=r"f006\.png"):
        check_pictures(hidden, frames=6, spec=spec)
    move_pictures(hidden, target, frames=5)
    assert sorted(path.name for path in target.parent.iterdir()) == [f"f{n:03d}.png" for n in range(1, 6)]
    for number in range(5):
        (frame,) = read_frames(probe(numbered(target, number + 1)), warn=print)
        assert (frame.rgb_hwc == frames[number].rgb_hwc).all()


def test_pictures_that_cannot_all_be_moved_are_not_there_at_all(tmp_path: Path, clip: ClipInfo) -> None:
    spec = png_spec(clip)
    segments = write_segments(tmp_path, spec, [Frame(n, 1, picture(n)) for n in range(3)], per_segment=3)
    write_pictures(segments, tmp_path / "made" / "%d.png")
    (tmp_path / "target" / "3.png").mkdir(parents=True)
    with pytest.raises(OutputError, match="folder"):
        move_pictures(tmp_path / "made" / "%d.png", tmp_path / "target" / "%d.png", frames=3)
    assert [path.name for path in (tmp_path / "target").iterdir()] == ["3.png"]


@pytest.mark.parametrize("rotation_deg", [0, 90, 180, 270])
@pytest.mark.parametrize("mirrored", [False, True])
def test_pictures_and_plain_frames_are_upright(
    tmp_path: Path, clip: ClipInfo, rotation_deg: int, mirrored: bool
) -> None:
    spec = png_spec(clip, rotation_deg=rotation_deg, mirrored=mirrored)
    segments = write_segments(tmp_path, spec, [Frame(0, 1, picture(0))], per_segment=1)
    write_pictures(segments, tmp_path / "%d.png")
    check_pictures(tmp_path / "%d.png", frames=1, spec=spec)
    (frame,) = read_frames(probe(tmp_path / "1.png"), warn=print)
    flipped = picture(0)[:, ::-1] if mirrored else picture(0)
    assert (frame.rgb_hwc == np.rot90(flipped, -rotation_deg // 90)).all()


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv422p", "yuv444p", "yuv420p10le", "yuv444p12le"])
def test_plain_frames_are_read_by_another_program(tmp_path: Path, clip: ClipInfo, pix_fmt: str) -> None:
    info = replace(clip, sample_aspect_ratio=Fraction(4, 3), rotation_deg=90)
    spec = choose_spec(info, width_px=64, height_px=48, codec="y4m", pix_fmt=pix_fmt, threads=1)
    assert plan_streams(clip, ".y4m", codec="y4m").suffix == ".y4m"
    frames = [Frame(n, 1, picture(n)) for n in range(5)]
    segments = write_segments(tmp_path, spec, frames, per_segment=3)
    with open(tmp_path / "a.y4m", "wb") as file:
        assert write_y4m(segments, spec, file) == 5
    again = probe(tmp_path / "a.y4m")
    assert (again.width_px, again.height_px, again.average_rate) == (48, 64, 25)
    assert (again.sample_aspect_ratio, again.pix_fmt) == (Fraction(3, 4), pix_fmt)
    hashes = [ffmpeg("-i", str(path), "-f", "framehash", "-hash", "crc32", "-").splitlines()[-1].split(",")[-1]
              for path in (tmp_path / "a.y4m", segments[-1].path)]  # fmt: skip
    assert hashes[0] == hashes[1]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is always full")
def test_a_sink_that_takes_no_more_is_an_output_error(tmp_path: Path, clip: ClipInfo) -> None:
    spec = choose_spec(clip, width_px=64, height_px=48, codec="y4m", threads=1)
    segments = write_segments(tmp_path, spec, [Frame(0, 1, picture(0))], per_segment=1)
    with open("/dev/full", "wb", buffering=0) as file, pytest.raises(OutputError, match="full"):
        write_y4m(segments, spec, file)
