"""The AIGC-oriented degradation: it is pure and logged, and each operator does what its
name says."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.jobs.clips import make_clip
from tests.train.logs import OPERATORS, from_log
from ultraflash_cli.errors import ConfigError
from ultraflash_cli.main import main
from ultraflash_cli.train.degradation import AigcConfig, contact_sheet, draw_aigc
from ultraflash_cli.train.operator import Clip
from ultraflash_cli.train.operators import (
    Blur,
    BrightnessFlicker,
    Colour,
    Deliver,
    Grain,
    Halo,
    LatentNoise,
    Repeat,
    Smooth,
    TextureFlicker,
    Warp,
    apply,
    to_log,
)

SIZE = (48, 64)


def clip(frames: int = 6) -> Clip:
    """Return a textured clip with an edge that moves one pixel per frame."""
    rng = np.random.default_rng(2)
    texture = rng.integers(90, 130, (*SIZE, 3))
    out: list[Clip] = []
    for t in range(frames):
        frame = texture.copy()
        frame[:, 20 + t :] += 90
        out.append(frame.astype(np.uint8))
    return np.stack(out)


def coder(frames_bcthw: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    return frames_bcthw + strength * torch.randn(frames_bcthw.shape, generator=generator)


def texture_of(frames: Clip) -> float:
    """Return the amount of detail away from the edge."""
    flat = frames[:, :, :16].astype(float)
    return float(np.abs(np.diff(flat, axis=2)).mean())


def changes_in_time(frames: Clip) -> float:
    return float(np.abs(np.diff(frames[:, :, :16].astype(float), axis=0)).mean())


def test_a_degradation_is_a_pure_function_of_clip_and_log() -> None:
    for seed in range(12):
        operators = draw_aigc(AigcConfig(), SIZE, 2, np.random.default_rng(seed), with_coder=True)
        again = from_log(json.loads(json.dumps(to_log(operators))))
        assert again == operators
        one, two = apply(clip(), operators, coder=coder), apply(clip(), again, coder=coder)
        assert np.array_equal(one, two)
        assert one.shape == (6, 24, 32, 3) and one.dtype == np.uint8


@pytest.mark.parametrize("scale", [2, 3])
def test_every_operator_is_drawn_and_the_size_is_exact(scale: int) -> None:
    seen: set[str] = set()
    for seed in range(60):
        operators = draw_aigc(AigcConfig(), SIZE, scale, np.random.default_rng(seed), with_coder=True)
        seen |= {operator.name for operator in operators}
        sizes = [o.size for o in operators if isinstance(o, Deliver) and o.size is not None]
        assert sizes[-1] == (48 // scale, 64 // scale)
    of_tapes = {"tape_colour", "tape_noise", "line_jitter", "head_switch", "dropouts", "fields"}
    assert seen == OPERATORS.keys() - {"grain"} - of_tapes


def test_noise_on_latents_is_drawn_only_with_a_coder_and_needs_one() -> None:
    for seed in range(40):
        operators = draw_aigc(AigcConfig(), SIZE, 2, np.random.default_rng(seed))
        assert not any(isinstance(operator, LatentNoise) for operator in operators)
    with pytest.raises(ConfigError, match="needs an encoder"):
        apply(clip(), [LatentNoise(strength=0.1, seed=0)])


def test_blur_and_smoothing_take_texture_and_smoothing_leaves_the_edge() -> None:
    plain = clip()
    blurred = apply(plain, [Blur(sigma_px=1.5, ratio=0.8, angle=0.4)])
    smooth = apply(plain, [Smooth(radius_px=3, epsilon=0.01)])
    assert texture_of(blurred) < 0.5 * texture_of(plain)
    assert texture_of(smooth) < 0.5 * texture_of(plain)
    step = [float(np.abs(np.diff(frames[0].mean(axis=(0, 2)))).max()) for frames in (plain, smooth, blurred)]
    assert step[1] > 0.7 * step[0] > step[2]


def test_a_blur_is_wider_along_its_direction() -> None:
    point = np.zeros((1, 33, 33, 3), np.uint8)
    point[0, 16, 16] = 255
    spread = apply(point, [Blur(sigma_px=3.0, ratio=0.5, angle=0.0)])[0, ..., 0].astype(float)
    rows, columns = spread.sum(axis=1), spread.sum(axis=0)
    assert (columns > 0).sum() > (rows > 0).sum()


def test_a_halo_overshoots_at_the_edge() -> None:
    flat = np.full((1, 24, 32, 3), 80, np.uint8)
    flat[:, :, 16:] = 160
    sharp = apply(flat, [Halo(sigma_px=1.0, amount=0.8)])
    assert sharp.max() > 165 and sharp.min() < 75


def test_colour_drifts_by_channel_contrast_and_saturation() -> None:
    plain = clip(1)
    warm = apply(plain, [Colour(gains=(1.1, 1.0, 0.9), contrast=1.0, saturation=1.0)]).mean(axis=(0, 1, 2))
    assert warm[0] > warm[1] > warm[2]
    grey = apply(plain, [Colour(gains=(1.0, 1.0, 1.0), contrast=1.0, saturation=0.0)]).astype(int)
    assert np.abs(grey[..., 0] - grey[..., 2]).max() <= 1
    soft = apply(plain, [Colour(gains=(1.0, 1.0, 1.0), contrast=0.5, saturation=1.0)])
    assert soft.std() < 0.6 * plain.std()


@pytest.mark.parametrize(
    "operator",
    [TextureFlicker(strength=0.05, grain_px=1.5, seed=1), BrightnessFlicker(strength=0.05, seed=1)],
    ids=lambda operator: operator.name,
)
def test_flicker_changes_still_parts_from_frame_to_frame(operator: TextureFlicker | BrightnessFlicker) -> None:
    assert changes_in_time(clip()) == 0
    assert changes_in_time(apply(clip(), [operator])) > 1


def test_grain_is_new_in_every_frame_and_as_strong_as_asked() -> None:
    flat = np.full((4, 48, 64, 3), 128, np.uint8)
    noisy = apply(flat, [Grain(strength=0.04, seed=2)]).astype(float)
    assert noisy.std() == pytest.approx(0.04 * 255, rel=0.1)
    assert np.corrcoef(noisy[0].ravel(), noisy[1].ravel())[0, 1] < 0.1


def test_brightness_flicker_is_the_same_everywhere_in_a_frame() -> None:
    flat = np.full((4, 8, 8, 3), 100, np.uint8)
    levels = apply(flat, [BrightnessFlicker(strength=0.1, seed=3)])
    assert all(len(np.unique(frame)) == 1 for frame in levels) and len(np.unique(levels)) > 1


def test_a_warp_moves_things_by_about_its_amplitude_and_no_warp_leaves_them() -> None:
    plain = clip()
    still = Warp(amplitude_px=0.0, cells=4, knot_frames=3, seed=5)
    assert np.abs(apply(plain, [still]).astype(int) - plain).max() <= 1
    moved = apply(plain, [Warp(amplitude_px=1.5, cells=4, knot_frames=3, seed=5)])
    edges = [np.abs(np.diff(row.mean(axis=1))).argmax() for row in moved[0].astype(float)]
    assert 1 <= np.ptp(edges) <= 8


def test_a_repeated_frame_shows_the_one_before() -> None:
    shown = apply(clip(), [Repeat(places=(0.5,))])
    assert np.array_equal(shown[3], shown[2]) and not np.array_equal(shown[2], shown[1])
    assert np.array_equal(apply(clip(1), [Repeat(places=(0.9,))]), clip(1))


@pytest.mark.parametrize("codec", ["libx264", "libx265", "libvpx-vp9"])
def test_a_codec_leaves_its_marks(codec: str) -> None:
    def error(crf: int) -> float:
        back = apply(clip(), [Deliver(kernel="bicubic", codec=codec, crf=crf)])
        return float(np.abs(back.astype(int) - clip()).mean())

    assert error(10) < error(45)


def test_the_sheet_shows_the_plain_counterpart_first() -> None:
    sheet, logs = contact_sheet(clip(), 2, AigcConfig(), seed=1, count=3)
    assert sheet.shape == (3 * 24, 4 * 32, 3) and len(logs) == 4
    assert [entry["operator"] for entry in logs[0]] == ["deliver"]
    assert not np.array_equal(sheet[:, :32], sheet[:, 32:64])


def test_the_command_writes_the_sheet_and_says_what_was_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, picture = make_clip(tmp_path / "in.mp4", frames=4), tmp_path / "sheet.png"
    command = ["train", "preview-degradation", str(source), "-o", str(picture), "--count", "2"]
    assert main([*command, "--json"]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 3 and all(from_log(line["operators"]) for line in lines)
    assert main(["train", "preview-degradation", str(tmp_path / "nothing.mp4"), "-o", str(picture)]) == 3
