"""Hard cuts are found at the right frame; flashes, fades, pans and changes of light are
not cuts."""

import numpy as np
import pytest
from numpy.typing import NDArray

from ultraflash_cli.video.cuts import LOOKAHEAD, CutDetector

Clip = list[NDArray[np.uint8]]


def scene(seed: int, count: int = 20, *, speed: float = 1.0, size: tuple[int, int] = (48, 64)) -> Clip:
    """Return a textured scene under a camera that pans ``speed`` pixels per frame."""
    rng = np.random.default_rng(seed)
    height, width = size
    y, x = np.mgrid[0:height, 0 : width + int(speed * count) + 2].astype(float)
    world = np.stack([np.full_like(x, rng.uniform(60, 180)) for _ in range(3)], axis=-1)
    for _ in range(12):
        place, radius = (rng.uniform(0, height), rng.uniform(0, x.shape[1])), rng.uniform(4, 14)
        blob = np.exp(-((y - place[0]) ** 2 + (x - place[1]) ** 2) / (2 * radius**2))
        world += blob[:, :, None] * rng.uniform(-120, 120, 3)
    for _ in range(int(x.shape[1] / 4)):
        top, left = int(rng.integers(0, height - 4)), int(rng.integers(0, x.shape[1] - 4))
        tall, wide = rng.integers(3, 20, 2)
        world[top : top + tall, left : left + wide] = rng.uniform(0, 255, 3)
    noise = rng.normal(0, 2, (count, height, width, 3))
    return [
        (world[:, int(n * speed) : int(n * speed) + width] + noise[n]).clip(0, 255).astype(np.uint8)
        for n in range(count)
    ]


def cuts_of(clip: Clip) -> list[int]:
    detector = CutDetector()
    answers = [answer for frame in clip for answer in detector.push(frame)]
    answers += detector.flush()
    assert len(answers) == len(clip)
    return [number for number, cut in enumerate(answers) if cut]


@pytest.mark.parametrize("seed", range(8))
def test_a_hard_cut_is_found_on_its_exact_frame(seed: int) -> None:
    first, second, third = scene(3 * seed, 11), scene(3 * seed + 1, 14), scene(3 * seed + 2, 20)
    assert cuts_of(first + second + third) == [11, 25]


@pytest.mark.parametrize("place", [1, 2, 19])
def test_cuts_at_the_very_start_and_end_are_found(place: int) -> None:
    assert cuts_of((scene(1, place) + scene(2, 20))[:20] if place < 19 else scene(1, 19) + scene(2, 1)) == [place]


@pytest.mark.parametrize("length", [1, 2, 5])
@pytest.mark.parametrize("level", [255, 0], ids=["white", "black"])
def test_flashes_are_no_cuts(length: int, level: int) -> None:
    clip = scene(5, 30)
    for number in range(12, 12 + length):
        clip[number] = np.full_like(clip[number], level)
    assert cuts_of(clip) == []


def test_a_bright_flash_of_the_scene_itself_is_no_cut() -> None:
    clip = scene(6, 30)
    for number in (14, 15):
        clip[number] = (clip[number].astype(int) + 110).clip(0, 255).astype(np.uint8)
    assert cuts_of(clip) == []


def test_a_light_switched_on_is_no_cut() -> None:
    clip = [frame if n < 15 else (frame * 0.45).astype(np.uint8) for n, frame in enumerate(scene(7, 30))]
    assert cuts_of(clip) == []


@pytest.mark.parametrize("length", [8, 16])
def test_fades_through_black_and_cross_fades_are_no_hard_cuts(length: int) -> None:
    a, b = scene(8, 10 + length), scene(9, 10 + length)
    share = np.concatenate([np.zeros(10), np.linspace(0, 1, length), np.ones(10)])
    crossed = [((1 - s) * a[min(n, len(a) - 1)] + s * b[max(0, n - 10)]).astype(np.uint8) for n, s in enumerate(share)]
    assert cuts_of(crossed) == []
    out = [(frame * (1 - n / length)).astype(np.uint8) for n, frame in enumerate(a[:length])]
    back = [(frame * (n / length)).astype(np.uint8) for n, frame in enumerate(b[:length])]
    assert cuts_of([*a[:10], *out, *back, *b[:10]]) == []


@pytest.mark.parametrize("speed", [4, 9, 14])
def test_fast_pans_are_no_cuts(speed: float) -> None:
    assert cuts_of(scene(11, 30, speed=speed)) == []


def test_a_cut_within_a_fast_pan_is_found() -> None:
    assert cuts_of(scene(12, 15, speed=6) + scene(13, 15, speed=6)) == [15]


def test_still_pictures_and_flat_ones_have_no_cuts() -> None:
    assert cuts_of([np.full((48, 64, 3), 120, np.uint8)] * 20) == []
    assert cuts_of([scene(3, 1)[0]] * 20) == []


def test_sixteen_bits_give_the_same_results_as_eight() -> None:
    clip = scene(14, 12) + scene(15, 12)
    detector = CutDetector()
    deep = [frame.astype(np.uint16) * np.uint16(256) for frame in clip]
    wide = [answer for frame in deep for answer in detector.push(frame)] + detector.flush()
    assert [n for n, cut in enumerate(wide) if cut] == cuts_of(clip) == [12]


def test_the_lookahead_is_bounded_and_the_future_beyond_it_changes_nothing() -> None:
    clip = scene(16, 12) + scene(17, 30)
    detector = CutDetector()
    answers: list[bool] = []
    for pushed, frame in enumerate(clip, start=1):
        answers += detector.push(frame)
        assert len(answers) == max(0, pushed - LOOKAHEAD)
    other = clip[: 12 + LOOKAHEAD + 1] + scene(18, 21)
    assert cuts_of(other)[0] == cuts_of(clip)[0] == 12


def test_a_detector_forgets_a_clip_when_it_is_flushed() -> None:
    detector = CutDetector()
    for frame in scene(19, 10):
        detector.push(frame)
    detector.flush()
    again = [answer for frame in scene(20, 10) for answer in detector.push(frame)] + detector.flush()
    assert again == [False] * 10


@pytest.mark.parametrize("size", [(2, 2), (5, 300), (13, 17)])
def test_tiny_and_odd_pictures_are_taken(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    clip = [rng.integers(0, 256, (*size, 3), dtype=np.uint8)] * 5
    assert cuts_of(clip) == []


def test_a_cut_to_a_picture_of_the_same_colours_is_found() -> None:
    still = scene(20, 15, speed=0)
    assert cuts_of(still + [frame[:, ::-1] for frame in still]) == [15]
    assert cuts_of(still + [frame[::-1] for frame in still]) == [15]


@pytest.mark.parametrize("level", [255, 0], ids=["white", "black"])
@pytest.mark.parametrize("length", [1, 3, 6])
def test_a_new_scene_after_blank_frames_starts_at_its_first_frame(level: int, length: int) -> None:
    blank = [np.full((48, 64, 3), level, np.uint8)] * length
    assert cuts_of(scene(21, 12) + blank + scene(22, 12)) == [12 + length]


def test_cuts_in_the_dark_in_noise_and_in_quick_succession_are_found() -> None:
    dark = [(frame * 0.12).astype(np.uint8) for frame in scene(22, 12) + scene(122, 12)]
    assert cuts_of(dark) == [12]
    rng = np.random.default_rng(0)
    grain = rng.normal(0, 25, (24, 48, 64, 3))
    noisy = [(f + n).clip(0, 255).astype(np.uint8) for f, n in zip(scene(23, 12) + scene(24, 12), grain, strict=True)]
    assert cuts_of(noisy) == [12]
    assert cuts_of(scene(25, 12) + scene(26, 4) + scene(27, 4) + scene(28, 4) + scene(29, 12)) == [12, 16, 20, 24]


def test_a_strobe_a_zoom_a_shaken_camera_and_a_passing_object_are_no_cuts() -> None:
    strobe = scene(30, 40)
    for number in range(12, 28, 2):
        strobe[number] = (strobe[number].astype(int) + 140).clip(0, 255).astype(np.uint8)
    assert cuts_of(strobe) == []
    large = scene(31, 1, size=(96, 128))[0]
    rows, columns = np.arange(48)[None, :], np.arange(64)[None, :]
    step = np.arange(24)[:, None]
    zoom = [large[r][:, c] for r, c in zip(step + rows * (96 - 2 * step) // 48, step + columns * (128 - 2 * step) // 64,
                                           strict=True)]  # fmt: skip
    assert cuts_of(zoom) == []
    wide = scene(32, 1, size=(60, 80))[0]
    moves = np.random.default_rng(1).integers(-6, 7, (24, 2))
    assert cuts_of([wide[6 + down : 54 + down, 8 + right : 72 + right] for down, right in moves]) == []
    crossed = scene(33, 30, speed=0)
    for number, frame in enumerate(crossed):
        left = 4 * number - 30
        frame[:, max(0, left) : max(0, left + 30)] = (200, 30, 40)
    assert cuts_of(crossed) == []


def test_a_camera_that_whips_around_makes_no_cut() -> None:
    world = scene(34, 1, size=(48, 900), speed=0)[0]
    places = np.cumsum([0] * 8 + [2, 6, 12, 20, 26, 26, 26, 20, 12, 6, 2] + [0] * 8)
    assert cuts_of([world[:, place : place + 64] for place in places]) == []
