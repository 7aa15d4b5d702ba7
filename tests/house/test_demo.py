"""The demo checks its requirements before it starts the work."""

from pathlib import Path

import numpy as np
from PIL import Image

from demo import run
from ultraflash_cli.metrics.ffmpeg import View, read_planes

MAX_CLIP_BYTES, MAX_PICTURE_BYTES = 600_000, 700_000


def test_the_clip_is_small_lasts_two_seconds_and_names_its_origin(repository: Path) -> None:
    assert run.CLIP.stat().st_size < MAX_CLIP_BYTES
    frames = list(read_planes(View(run.CLIP)))
    assert len(frames) == 48
    assert frames[0].y_hw.shape == (480, 832)
    attribution = (repository / "demo" / "ATTRIBUTION.md").read_text()
    assert "clip.mp4" in attribution and "licensed" in attribution


def test_the_picture_shows_the_same_positions_of_both_frames_side_by_side() -> None:
    before = run.read_frame(run.CLIP, run.FRAME, run.SIZE_PX)
    after = Image.new("RGB", run.SIZE_PX, (9, 99, 199))
    sheet = np.asarray(run.before_and_after(before, after))
    half = sheet.shape[1] // 2
    below = sheet[run.HEADER_PX :]
    assert not (below[:, :half] == (9, 99, 199)).all(axis=-1).any()
    wide, high = (run.ZOOM * side for side in run.CROP_PX)
    assert (below[:, half:] == (9, 99, 199)).all(axis=-1).sum() == len(run.CROPS_XY) * wide * high


def test_every_crop_lies_inside_the_frame() -> None:
    for x, y in run.CROPS_XY:
        assert x >= 0 and y >= 0
        assert x + run.CROP_PX[0] <= run.SIZE_PX[0]
        assert y + run.CROP_PX[1] <= run.SIZE_PX[1]


def test_the_picture_of_the_readme_is_small_enough_for_a_page(repository: Path) -> None:
    assert (repository / "docs" / "before_after.png").stat().st_size < MAX_PICTURE_BYTES
