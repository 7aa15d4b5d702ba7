"""Interlaced clips."""

from pathlib import Path

import numpy as np
import pytest

from tests.video.clips import ffmpeg
from tests.video.sources import read
from ultraflash_cli.video.decode import read_frames


@pytest.mark.parametrize(("order", "scan"), [("interleave_top", "tff"), ("interleave_bottom", "bff")])
def test_interlaced_pictures_without_a_flag_are_found_by_measuring(tmp_path: Path, order: str, scan: str) -> None:
    path = tmp_path / "a.mkv"
    moving = ["-f", "lavfi", "-i", "color=gray:size=160x96:rate=50:duration=1"]
    shape = "geq=lum='128+100*sin((X+N*3)/7)*cos((Y+N)/9)':cb=128:cr=128"
    ffmpeg(*moving, "-vf", f"{shape},tinterlace={order},setfield=prog", "-c:v", "ffv1", str(path))
    info, frames, warnings, _ = read(path)
    assert info.scan == scan and info.interlaced
    assert len(frames) == 25
    assert len(warnings) == 1 and "bwdif" in warnings[0]
    combed = [np.abs(np.diff(f.rgb_hwc[:, :, 1].astype(int), 2, axis=0)).mean() for f in frames]
    plain = list(read_frames(info, deinterlace=False, warn=print))
    before = [np.abs(np.diff(f.rgb_hwc[:, :, 1].astype(int), 2, axis=0)).mean() for f in plain]
    assert np.median(combed) < 0.5 * np.median(before)


def test_progressive_pictures_are_left_alone_and_so_is_telecined_film(tmp_path: Path) -> None:
    moving = ["-f", "lavfi", "-i", "color=gray:size=160x96:rate=24:duration=2"]
    shape = "geq=lum='128+100*sin((X+N*6)/7)*cos((Y+N*2)/9)':cb=128:cr=128"
    ffmpeg(*moving, "-vf", shape, "-c:v", "ffv1", str(tmp_path / "a.mkv"))
    info, _, warnings, _ = read(tmp_path / "a.mkv")
    assert info.scan == "progressive" and not warnings
    ffmpeg(*moving, "-vf", f"{shape},telecine,setfield=tff", "-c:v", "ffv1", str(tmp_path / "b.mkv"))
    info, _, warnings, _ = read(tmp_path / "b.mkv")
    assert info.scan == "telecined" and not info.interlaced
    assert len(warnings) == 1 and "telecine" in warnings[0]
