"""Metrics return the values that follow from their definitions."""

import math
from pathlib import Path

import numpy as np
import pytest

from benchmarks.scores import METRICS, measure
from ultraflash_cli.errors import InputError
from ultraflash_cli.metrics.ffmpeg import View, read_planes, run_ffmpeg
from ultraflash_cli.metrics.vmaf import libvmaf_frames

HEIGHT, WIDTH, FRAMES = 120, 176, 5


def write_luma(path: Path, luma_thw: np.ndarray) -> Path:
    """Write 8-bit luma losslessly, with grey chroma."""
    frames, height, width = luma_thw.shape
    grey = np.full((frames, 2 * (height // 2) * (width // 2)), 128, np.uint8)
    raw = path.with_suffix(".yuv")
    raw.write_bytes(np.concatenate([luma_thw.reshape(frames, -1), grey], axis=1).tobytes())
    size = ["-f", "rawvideo", "-pix_fmt", "yuv420p", "-video_size", f"{width}x{height}", "-framerate", "25"]
    run_ffmpeg([*size, "-i", str(raw), "-c:v", "ffv1", str(path)], what=str(path))
    raw.unlink()
    return path


def moving_texture() -> np.ndarray:
    """A smooth texture that drifts to the right, luma 60..180."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    frames = [120 + 30 * np.sin((columns - 2 * t) / 5) + 30 * np.cos(rows / 7) for t in range(FRAMES)]
    return np.stack(frames).round().astype(np.uint8)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_luma(tmp_path_factory.mktemp("clips") / "reference.mkv", moving_texture())


def test_equal_clips_score_perfectly(reference: Path) -> None:
    scores = measure(reference, reference)
    assert scores.keys() == METRICS.keys()
    assert scores["psnr_y"] == pytest.approx(60)
    assert scores["ssim"] == pytest.approx(1)
    assert scores["tdiff"] == 0
    assert scores["vmaf"] > 95
    assert scores["vmaf_neg"] == pytest.approx(scores["vmaf"], abs=0.01)


def test_an_offset_of_four_levels_has_the_psnr_of_its_formula_and_no_temporal_error(
    tmp_path: Path, reference: Path
) -> None:
    brighter = write_luma(tmp_path / "brighter.mkv", moving_texture() + np.uint8(4))
    scores = measure(brighter, reference)
    assert scores["psnr_y"] == pytest.approx(20 * math.log10(255 / 4), abs=1e-3)
    assert scores["tdiff"] == 0


def test_flicker_of_one_level_up_and_down_is_a_temporal_error_of_two_levels(tmp_path: Path, reference: Path) -> None:
    luma = moving_texture()
    luma[0::2] += 1
    luma[1::2] -= 1
    flickering = write_luma(tmp_path / "flickering.mkv", luma)
    scores = measure(flickering, reference)
    assert scores["tdiff"] == pytest.approx(2)
    assert scores["psnr_y"] == pytest.approx(20 * math.log10(255), abs=1e-3)


def test_noise_lowers_every_score(tmp_path: Path, reference: Path) -> None:
    noise = np.random.default_rng(0).normal(0, 12, (FRAMES, HEIGHT, WIDTH))
    noisy = write_luma(tmp_path / "noisy.mkv", (moving_texture() + noise).clip(0, 255).astype(np.uint8))
    worse, best = measure(noisy, reference), measure(reference, reference)
    for name, metric in METRICS.items():
        assert (worse[name] < best[name]) == metric.higher_is_better, name


def test_luma_comes_back_exactly_and_frame_by_frame(reference: Path) -> None:
    luma_thw = np.stack([planes.y_hw for planes in read_planes(View(reference))])
    np.testing.assert_array_equal(luma_thw, moving_texture())


def test_odd_sizes_are_read(tmp_path: Path) -> None:
    run_ffmpeg(
        ["-f", "lavfi", "-i", "testsrc=size=37x23:rate=5:duration=1", "-pix_fmt", "yuv444p", "-c:v", "ffv1", "odd.mkv"],
        what="odd.mkv",
        folder=tmp_path,
    )
    frames = list(read_planes(View(tmp_path / "odd.mkv")))
    assert [planes.y_hw.shape for planes in frames] == [(23, 37)] * 5


def test_a_lost_frame_is_refused_and_named(tmp_path: Path, reference: Path) -> None:
    short = write_luma(tmp_path / "short.mkv", moving_texture()[:-1])
    with pytest.raises(InputError, match=r"short\.mkv ends after 4 frames"):
        measure(short, reference)


def test_another_size_is_refused_with_both_sizes(tmp_path: Path, reference: Path) -> None:
    smaller = write_luma(tmp_path / "smaller.mkv", moving_texture()[:, :96, :128])
    with pytest.raises(InputError, match="128x96 and 176x120"):
        measure(smaller, reference)


@pytest.mark.parametrize(
    "content", [pytest.param(None, id="missing"), pytest.param(b"", id="empty"), pytest.param(b"words", id="text")]
)
def test_what_is_no_clip_is_refused(tmp_path: Path, reference: Path, content: bytes | None) -> None:
    path = tmp_path / "it's no clip.mp4"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match="no clip"):
        measure(path, reference)
    with pytest.raises(InputError, match="no clip"):
        libvmaf_frames(View(path), View(reference), models=["vmaf_v0.6.1"], features=["psnr"])
