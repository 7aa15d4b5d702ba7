"""Results of a pass over two clips match their definitions: drift, temporal and warping
error, the worst position."""

from collections.abc import Iterator

import numpy as np
import pytest

from ultraflash_cli.errors import InputError
from ultraflash_cli.metrics.ffmpeg import Planes
from ultraflash_cli.metrics.pairs import Crop, compare_planes, distinct_crops
from ultraflash_cli.metrics.warping import optical_flow, warping_error

HEIGHT, WIDTH = 96, 128
NAMES = ("out.mp4", "ref.mp4")


def texture(moved_px: float) -> np.ndarray:
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    x = columns - moved_px
    return (120 + 30 * np.sin(x / 6 + rows / 17) + 30 * np.cos(rows / 7 - x / 23)).astype(np.float32)


def clip(frames: int = 4, *, luma: float = 0, chroma: float = 0, flicker: float = 0) -> Iterator[Planes]:
    for t in range(frames):
        y = np.clip(texture(2 * t) + luma + flicker * (-1) ** t, 0, 255).round().astype(np.uint8)
        grey = np.full((HEIGHT // 2, WIDTH // 2), 128, np.uint8)
        yield Planes(y, (grey + np.uint8(chroma)).astype(np.uint8), grey)


def test_equal_clips_differ_in_nothing() -> None:
    scores = compare_planes(clip(), clip(), crop_px=32, names=NAMES)
    assert scores.tdiff == scores.drift_y == scores.drift_cb == [0.0] * 4
    assert scores.warping == pytest.approx(scores.warping_reference)


def test_a_constant_offset_is_drift_and_no_temporal_error() -> None:
    scores = compare_planes(clip(luma=4, chroma=3), clip(), crop_px=32, names=NAMES)
    assert scores.drift_y == pytest.approx([4.0] * 4, abs=0.01)
    assert (scores.drift_cb, scores.drift_cr) == (pytest.approx([3.0] * 4), pytest.approx([0.0] * 4))
    assert scores.tdiff == pytest.approx([0.0] * 4, abs=0.05)


def test_flicker_is_temporal_and_warping_error_at_twice_its_size() -> None:
    scores = compare_planes(clip(flicker=5), clip(), crop_px=32, names=NAMES)
    assert scores.tdiff[1:] == pytest.approx([10.0] * 3, abs=0.5)
    assert scores.warping[2] == pytest.approx(10, abs=1) and (scores.warping_reference[2] or 0) < 1.5


def test_warping_is_measured_on_some_frames_of_a_long_clip() -> None:
    scores = compare_planes(clip(flicker=5), clip(), crop_px=32, names=NAMES, warped_every=3)
    whole = compare_planes(clip(flicker=5), clip(), crop_px=32, names=NAMES)
    assert scores.warping == [None if n in (2, 3) else value for n, value in enumerate(whole.warping)]
    assert scores.tdiff == whole.tdiff


def test_the_motion_of_a_texture_is_found() -> None:
    flow = optical_flow(texture(3.0), texture(0.0))
    inner = flow[:, 16:-16, 16:-16]
    assert np.median(inner[1]) == pytest.approx(-3.0, abs=0.3)
    assert np.median(inner[0]) == pytest.approx(0.0, abs=0.3)
    moved, still = texture(3.0), texture(0.0)
    along, own = warping_error(moved, still, moved, still)
    assert along == own < 2.0
    assert float(np.sqrt(np.mean((moved - still) ** 2))) > 8


def test_the_worst_position_is_where_something_was_put() -> None:
    def spoiled() -> Iterator[Planes]:
        for t, planes in enumerate(clip()):
            y = planes.y_hw.copy()
            if t == 2:
                y[48:72, 80:104] = 255 - y[48:72, 80:104]
            yield planes._replace(y_hw=y)

    worst = compare_planes(spoiled(), clip(), crop_px=32, names=NAMES).crops[0]
    assert worst.frame == 2
    assert 32 <= worst.top_px <= 64 and 64 <= worst.left_px <= 96


def test_chosen_positions_show_different_things() -> None:
    near = [Crop(frame, 0, 16, 20 - 0.1 * frame) for frame in range(20)]
    others = [Crop(3, 64, 64, 5.0), Crop(5, 0, 96, 4.0), Crop(9, 64, 0, 3.0)]
    chosen = distinct_crops([*near, *others], count=3, frames=20, crop_px=32)
    assert chosen == [near[0], *others[:2]]
    assert distinct_crops(near, count=6, frames=20, crop_px=32) == [near[0]]
    long = [Crop(frame, 0, 16, 20 - 0.1 * frame) for frame in range(0, 200, 10)]
    alone = distinct_crops(long, count=6, frames=200, crop_px=32)
    assert [crop.frame for crop in alone] == [0, 50, 100], "the same place, at times far apart"


def test_clips_of_other_lengths_or_sizes_are_refused_in_a_line() -> None:
    with pytest.raises(InputError, match=r"out.mp4 ends after 3 frames, ref.mp4 is longer"):
        compare_planes(clip(3), clip(4), crop_px=32, names=NAMES)
    with pytest.raises(InputError, match=r"ref.mp4 ends after 3 frames, out.mp4 is longer"):
        compare_planes(clip(4), clip(3), crop_px=32, names=NAMES)
    small = (each._replace(y_hw=each.y_hw[:48]) for each in clip())
    with pytest.raises(InputError, match="are 128x48 and 128x96"):
        compare_planes(small, clip(), crop_px=32, names=NAMES)
    with pytest.raises(InputError, match="no frame"):
        compare_planes(iter(()), iter(()), crop_px=32, names=NAMES)
