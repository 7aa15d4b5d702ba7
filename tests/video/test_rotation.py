"""Rotated clips and non-square pixels."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.video.clips import ffmpeg, make_clip
from tests.video.sources import read
from ultraflash_cli.video.probe import probe


@pytest.mark.parametrize(
    ("flags", "rotation", "mirrored"),
    [
        (("-display_hflip",), 0, True),
        (("-display_vflip",), 180, True),
        (("-display_rotation", "90"), 270, False),
        (("-display_rotation", "30"), 0, False),
    ],
)
def test_flips_and_turns_are_distinguished(tmp_path: Path, flags: Sequence[str], rotation: int, mirrored: bool) -> None:
    source = make_clip(tmp_path / "a.mp4")
    path = tmp_path / "b.mp4"
    ffmpeg(*flags, "-i", str(source), "-c", "copy", str(path))
    info = probe(path)
    assert (info.rotation_deg % 360, info.mirrored) == (rotation % 360, mirrored)
    for stored, shown in zip(read(source)[1], read(path)[1], strict=True):
        assert np.array_equal(stored.rgb_hwc, shown.rgb_hwc)
