"""Tapes and discs: each operator does what its name says, deterministically, and keeps
size and position."""

import numpy as np
import pytest
import torch

from tests.train.logs import from_log
from tests.train.made import moving_shapes
from ultraflash_cli.train.degradation import DegradationConfig, Kind, TapeConfig, degrade, draw, draw_tape
from ultraflash_cli.train.operator import Operator
from ultraflash_cli.train.operators import Deliver, apply, to_log
from ultraflash_cli.train.tape_operators import Dropouts, Fields, HeadSwitch, LineJitter, TapeColour, TapeNoise

OPERATORS: list[Operator] = [
    TapeColour(luma_px=1.2, chroma_px=4.0, shift_px=(3.0, 1.0), ringing=0.5),
    TapeNoise(luma=0.03, chroma=0.02, streak_px=1.0, seed=1),
    LineJitter(sway_px=0.5, unrest_px=0.2, seed=2),
    HeadSwitch(lines=6, shift_px=12.0, noise=0.05, seed=3),
    Dropouts(per_frame=3.0, length_px=12.0, seed=4),
    Fields(top_first=True, method="weave"),
    Fields(top_first=False, method="bob"),
    Fields(top_first=True, method="blend"),
    Deliver(kernel="bicubic", codec="mpeg2video", crf=6),
]


@pytest.mark.parametrize("operator", OPERATORS, ids=lambda each: f"{each.name} {getattr(each, 'method', '')}")
def test_an_operator_changes_the_picture_and_produces_the_same_from_its_log(operator: Operator) -> None:
    clip = moving_shapes(1, frames=4, side=64)
    made = apply(clip, [operator])
    assert made.shape == clip.shape and (made != clip).any()
    assert (made == apply(clip, from_log(to_log([operator])))).all()


def test_a_tape_moves_colours_and_leaves_brightness_in_position() -> None:
    x = torch.zeros(1, 3, 64, 96)
    x[:, :, 24:40, 40:56] = torch.tensor([0.8, 0.3, 0.3]).view(1, 3, 1, 1)
    made = TapeColour(luma_px=1.0, chroma_px=2.0, shift_px=(4.0, 2.0)).run(x, None)
    luma = (made * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1)[0]
    red = made[0, 0] - luma

    def centre(plane: torch.Tensor) -> tuple[float, float]:
        y, x_ = torch.meshgrid(torch.arange(64.0), torch.arange(96.0), indexing="ij")
        return float((plane * x_).sum() / plane.sum()), float((plane * y).sum() / plane.sum())

    (luma_x, luma_y), (red_x, red_y) = centre(luma), centre(red)
    assert luma_x == pytest.approx(47.5, abs=0.1) and luma_y == pytest.approx(31.5, abs=0.1)
    assert red_x - luma_x == pytest.approx(4, abs=0.2) and red_y - luma_y == pytest.approx(2, abs=0.2)


def test_heads_are_switched_at_the_bottom_alone() -> None:
    clip = moving_shapes(1, frames=3, side=64)
    made = apply(clip, [HeadSwitch(lines=6, shift_px=12.0, noise=0.1, seed=3)])
    assert (
        np.abs(made[:, :-6].astype(int) - clip[:, :-6]).max() <= 1
        and (made[:, -6:] != clip[:, -6:]).any(axis=(2, 3)).all()
    )


def test_woven_fields_keep_one_moment_and_bobbed_ones_have_no_comb() -> None:
    x = torch.rand(3, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    woven = Fields(top_first=True, method="weave").run(x, None)
    assert torch.equal(woven[:, :, ::2], x[:, :, ::2])
    assert torch.allclose(woven[0, :, 1::2], ((x[0] + x[1]) / 2)[:, 1::2])
    bobbed = Fields(top_first=True, method="bob").run(x, None)
    assert torch.equal(bobbed[:, :, ::2], x[:, :, ::2])
    assert torch.allclose(bobbed[:, :, 1], (x[:, :, 0] + x[:, :, 2]) / 2)


def test_noise_and_dropouts_are_new_in_every_frame() -> None:
    grey = np.full((3, 64, 64, 3), 128, np.uint8)
    for operator in (OPERATORS[1], OPERATORS[4]):
        made = apply(grey, [operator])
        assert (made[0] != made[1]).any() and (made[1] != made[2]).any()


@pytest.mark.parametrize("kind", ["tape", "disc"])
@pytest.mark.parametrize("scale", [2, 3])
def test_tapes_and_discs_are_drawn_and_end_at_the_small_size(kind: Kind, scale: int) -> None:
    config = DegradationConfig(shares=((kind, 1.0),))
    clip = moving_shapes(1, frames=4, side=96)
    low = degrade(clip, scale, config, np.random.default_rng(4))
    assert low.shape == (4, 96 // scale, 96 // scale, 3)
    assert (low == degrade(clip, scale, config, np.random.default_rng(4))).all()
    codecs = {draw(config, (96, 96), scale, np.random.default_rng(seed))[1][-1] for seed in range(4)}
    assert {each.codec for each in codecs if isinstance(each, Deliver)} == {
        "libx264" if kind == "tape" else "mpeg2video"
    }


def test_all_that_tapes_do_is_drawn_at_times() -> None:
    drawn = {each.name for seed in range(40) for each in draw_tape(TapeConfig(), (48, 64), np.random.default_rng(seed))}
    assert drawn == {"tape_colour", "tape_noise", "line_jitter", "head_switch", "dropouts", "fields"}
