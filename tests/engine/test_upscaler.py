"""Frames through the upscaler: counts, sizes, colours, strength, scenes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engine.upscalers import go_on, pictures, run, upscaler
from ultraflash_cli.engine import foretell
from ultraflash_cli.engine.foretell import foretold_frame_seconds
from ultraflash_cli.engine.layers.resample import lanczos_resize, lanczos_upscale
from ultraflash_cli.engine.pictures import YuvFormat
from ultraflash_cli.engine.stage import state_from_tensors, state_to_tensors


@settings(max_examples=6)
@given(count=st.integers(1, 22))
def test_frames_out_are_frames_in(count: int) -> None:
    assert len(run(upscaler(), pictures(count))) == count


@pytest.mark.parametrize(
    ("width", "height", "res"),
    [
        (40, 24, "2x"),
        (41, 23, "2x"),
        (33, 17, "3x"),
        (40, 24, "70x44"),
        (40, 24, "100x70"),
        (12, 10, "90x70"),
        (3, 5, "2x"),
    ],
)
def test_any_size_comes_out_exactly(width: int, height: int, res: str) -> None:
    up = upscaler(width, height, res)
    for out in run(up, pictures(2, width, height)):
        assert out.shape == (*up.plan.target, 3) and out.dtype == np.uint8


def test_the_first_group_is_shorter_and_a_group_comes_out_whole() -> None:
    up, frames = upscaler(), pictures(14)
    assert (up.group_frames(first=True), up.group_frames(first=False)) == (5, 8)
    state = up.init_state()
    for count in (5, 8, 1):
        state, out = up.step(state, frames[:count])
        assert len(out) == count and up.held(state) == 0


def test_sixteen_bits_in_give_sixteen_bits_out() -> None:
    out = run(upscaler(), pictures(6, dtype=np.uint16))
    assert all(frame.dtype == np.uint16 for frame in out)
    assert len(np.unique(np.stack(out) % 257)) > 1, "more than 8 bits are used"


@pytest.mark.parametrize("res", ["2x", "70x44", "3x"])
def test_strength_0_is_the_plain_resize_bit_for_bit(res: str) -> None:
    up = upscaler(res=res, strength=0.0)
    frames = pictures(6)
    for source, out in zip(frames, run(up, frames), strict=True):
        x = torch.from_numpy(source.transpose(2, 0, 1).astype(np.float32) / 255).unsqueeze(0)
        whole = {"2x": 2, "3x": 3}.get(res)
        plain = lanczos_upscale(x, whole) if whole else lanczos_resize(x, *up.plan.target)
        expected = (plain[0] * 255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
        assert np.array_equal(out, expected)


def test_strength_between_is_a_blend_of_pixels() -> None:
    frames = pictures(5)
    plain, half, full = (np.stack(run(upscaler(strength=s), frames)).astype(int) for s in (0.0, 0.5, 1.0))
    inside = (full > 0) & (full < 255) & (plain > 0) & (plain < 255)
    assert inside.any() and np.abs(half - (plain + full) / 2)[inside].max() <= 1


def test_the_mean_colour_follows_the_input() -> None:
    frames = [np.full((24, 40, 3), (140, 110, 90), np.uint8)] * 5
    matched = np.stack(run(upscaler(color="match", enlarges_frames=True), frames)).astype(float)
    free = np.stack(run(upscaler(color="off", enlarges_frames=True), frames)).astype(float)
    assert np.abs(matched.mean((0, 1, 2)) - (140, 110, 90)).max() < 3
    assert np.abs(free.mean((0, 1, 2)) - (140, 110, 90)).max() > 3, "the random network must drift for this to tell"


def test_red_stays_red() -> None:
    """Swapped colours would pass every test on grey."""
    frames = [np.full((24, 40, 3), (255, 0, 0), np.uint8)] * 5
    red, green, blue = np.stack(run(upscaler(strength=0.1), frames)).mean((0, 1, 2))
    assert red > 200 and green < 60 and blue < 60


def test_a_saved_state_continues_bit_for_bit() -> None:
    up, frames = upscaler(41, 23), pictures(19, 41, 23)
    whole = run(up, frames, seed=4)
    state, first = up.step(up.init_state(seed=4), frames[:5])
    state = state_from_tensors(up.init_state(), state_to_tensors(state))
    state, second = up.step(state, frames[5:13])
    state = state_from_tensors(up.init_state(), state_to_tensors(state))
    assert all(map(np.array_equal, first + second + go_on(up, state, frames[13:]), whole))


def test_noise_depends_on_the_seed_and_on_the_scene_s_position() -> None:
    frames = pictures(5)
    one = np.stack(run(upscaler(), frames))
    assert np.array_equal(np.stack(run(upscaler(), frames)), one)
    assert not np.array_equal(np.stack(run(upscaler(), frames, seed=1)), one)
    assert not np.array_equal(np.stack(run(upscaler(), frames, first_frame=9)), one)


def test_there_is_no_seam_at_a_group_border() -> None:
    """With a network whose memory is lost at group borders, a still clip would jump
    there."""
    still = pictures(1) * 21
    out = np.stack(run(upscaler(enlarges_frames=True), still)).astype(float)
    steps = np.abs(np.diff(out, axis=0)).mean((1, 2, 3))
    within = np.median(np.delete(steps[8:], [4, 12 - 8]))
    assert steps[12] <= within + 1.0, "frame 13 starts the third group"


@pytest.mark.parametrize("bits", [8, 10])
def test_planes_hold_the_pictures(bits: int) -> None:
    frames = pictures(2)
    form = YuvFormat(matrix="bt709", full_range=True, bits=bits)
    shown, planes = run(upscaler(), frames), run(upscaler(yuv=form), frames)
    for rgb, yuv in zip(shown, planes, strict=True):
        height, width = rgb.shape[:2]
        assert yuv.shape == (height * 3 // 2, width) and yuv.dtype == (np.uint8 if bits == 8 else np.uint16)
        luma = rgb.astype(float) @ [0.2126, 0.7152, 0.0722] * (2**bits - 1) / 255
        assert np.abs(yuv[:height] - luma).max() <= 0.5 + 0.5 * (2**bits - 1) / 255 + 0.01


@pytest.mark.parametrize(("width", "height", "res"), [(32, 16, "2x"), (1600, 1200, "3x"), (33, 800, "1600x900")])
def test_time_is_foretold_from_a_corner_in_proportion(width: int, height: int, res: str) -> None:
    clock = iter((10.0, 12.0))
    made = upscaler(width, height, res, enlarges_frames=True)
    foretold = foretold_frame_seconds(made, clock=lambda: next(clock))
    whole = made.plan.padded[0] * made.plan.padded[1]
    least = 2 / made.group_frames(first=False) * max(1, whole / foretell.LOOK_PX)
    assert foretold is not None and least * 0.7 <= foretold <= least * 1.5


def test_a_gpu_is_idle_when_its_clock_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []

    def read() -> float:
        log.append("clock")
        return float(len(log))

    made = upscaler()
    monkeypatch.setattr(foretell, "wait_for", lambda device: log.append(f"wait for {device}"))
    monkeypatch.setattr(type(made.cascade), "device", torch.device("cuda"))
    monkeypatch.setattr(type(made), "warm_up", lambda _self: log.append("a group"))
    assert foretold_frame_seconds(made, clock=read) == pytest.approx(3 / made.group_frames(first=True))
    assert log == ["wait for cuda", "clock", "a group", "wait for cuda", "clock"]


def test_time_is_not_foretold_where_looking_would_take_long() -> None:
    assert foretold_frame_seconds(upscaler()) is None
