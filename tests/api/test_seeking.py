"""Random access to a stream: reading in any order returns the same frames as reading
from the start, within bounds."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.api.causal import CausalToy
from ultraflash_cli import open_stream
from ultraflash_cli.seeking import CausalStream, Picture, SeekableStream

SIZE = (24, 32)
FRAMES = 90
CUTS = (20, 41, 70)
MARKED = (10, 44)
SCENES = tuple(sorted({*CUTS, *MARKED}))


def clip() -> np.ndarray:
    """Scenes of large blocks, each with flickering light."""
    draws = np.random.default_rng(0)
    borders = [0, *CUTS, FRAMES]
    scenes = [draws.integers(0, 240, (3, 4, 3)).repeat(8, 0).repeat(8, 1) for _ in borders[1:]]
    return np.stack(
        [
            (scene + number % 7).astype(np.uint8)
            for scene, first, end in zip(scenes, borders[:-1], borders[1:], strict=True)
            for number in range(first, end)
        ]
    )


CLIP = clip()


class Reader:
    """Counts the frames that are read."""

    def __init__(self, frames: np.ndarray = CLIP, marked: tuple[int, ...] = MARKED) -> None:
        self.frames, self.marked = frames, marked
        self.reads = 0

    def __call__(self, number: int) -> Picture:
        self.reads += 1
        return Picture(self.frames[number], number in self.marked)


def sequential(stream: CausalStream, frames: np.ndarray, scenes: tuple[int, ...]) -> np.ndarray:
    """Return all frames of the stream in order, flushed at scene ends."""
    out: list[Any] = []
    for number, frame in enumerate(frames):
        if number in scenes:
            out.append(stream.flush())
        out.append(stream.step(frame[None]))
    return np.concatenate([*out, stream.flush()])


EXPECTED = sequential(CausalToy(), CLIP, SCENES)


def seekable(stream: CausalStream | None = None, read: Callable[[int], Picture] | None = None, **options: Any) -> Any:
    given_options: dict[str, Any] = {"kept_frames": 9, "snapshot_frames": 6} | options
    return SeekableStream(stream or CausalToy(), read or Reader(), FRAMES, **given_options)


@settings(max_examples=40)
@given(
    order=st.lists(st.integers(0, FRAMES - 1), min_size=1, max_size=12),
    kept=st.integers(1, 40),
    every=st.sampled_from([1, 5, 1000]),
    room=st.sampled_from([0, 9_000, 10**9]),
)
def test_any_order_produces_the_frames_of_reading_from_the_start(
    order: list[int], kept: int, every: int, room: int
) -> None:
    reader = Reader(CLIP, SCENES)  # marked, because finding them takes time
    stream = seekable(read=reader, cuts=False, kept_frames=kept, snapshot_frames=every, snapshot_bytes=room)
    for number in order:
        assert np.array_equal(stream.frame(number), EXPECTED[number]), number


ORDERS = {
    "forwards": range(FRAMES),
    "backwards": range(FRAMES)[::-1],
    "leaps": (89, 3, 44, 69, 70, 71, 40, 20, 88),
}


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_cuts_are_found_where_reading_from_the_start_finds_them(order: Sequence[int]) -> None:
    stream = seekable()
    for number in order:
        assert np.array_equal(stream.frame(number), EXPECTED[number]), number


def test_reading_in_order_reads_and_computes_every_frame_once() -> None:
    toy, reader = CausalToy(), Reader()
    stream = seekable(toy, reader, kept_frames=16)
    for number in range(FRAMES):
        stream.frame(number)
        stream.frame(max(0, number - 4))
    assert (toy.steps, reader.reads) == (FRAMES, FRAMES)


def test_a_leap_computes_the_scene_it_lands_in_and_no_other() -> None:
    toy, reader = CausalToy(), Reader()
    stream = seekable(toy, reader)
    stream.frame(83)
    assert toy.steps <= 83 - 70 + 1 + 4, "from the cut at 70, to the end of the group"
    assert reader.reads < FRAMES + 20
    before = toy.steps
    stream.frame(70)
    assert toy.steps <= before + 4, "the scene is known"


def test_a_step_back_in_a_long_scene_begins_at_a_kept_state() -> None:
    toy = CausalToy()
    stream = seekable(toy, Reader(CLIP, ()), cuts=False)
    expected = sequential(CausalToy(), CLIP, ())
    stream.frame(80)
    before = toy.steps
    assert np.array_equal(stream.frame(50), expected[50])
    assert toy.steps <= before + 6 + 2 * 4


def test_without_cuts_the_marks_of_the_source_alone_begin_scenes() -> None:
    expected = sequential(CausalToy(), CLIP, MARKED)
    stream = seekable(cuts=False)
    for number in (89, 43, 44, 12, 9):
        assert np.array_equal(stream.frame(number), expected[number]), number


def test_what_is_kept_is_bounded() -> None:
    stream = seekable(read=Reader(CLIP, ()), cuts=False, kept_frames=12, snapshot_bytes=60_000)
    for number in range(FRAMES):
        stream.frame(number)
        finished = [len(frames) for _, frames in stream._finished]
        assert sum(finished) <= 12 or len(finished) == 1
        assert sum(len(each.state) for each in stream._snapshots.values()) <= 60_000
    assert stream._snapshots


@pytest.mark.parametrize("failing", ["read", "step"])
def test_after_an_error_the_next_frames_are_right_again(failing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    toy, reader = CausalToy(), Reader()
    stream = seekable(toy, reader)
    stream.frame(25)

    def fail(*_: object) -> None:
        raise RuntimeError("no more")

    with monkeypatch.context() as patched:
        patched.setattr(toy if failing == "step" else stream, "step" if failing == "step" else "_read", fail)
        if failing == "read":
            patched.setattr(stream._source, "_read", fail)
        with pytest.raises(RuntimeError, match="no more"):
            stream.frame(60)
    for number in (60, 31, 26):
        assert np.array_equal(stream.frame(number), EXPECTED[number]), number


def test_a_stream_of_the_model_produces_the_same_pixels_in_any_order() -> None:
    options: dict[str, Any] = {"model": "tiny-lite", "device": "cpu", "threads": 1, "seed": 3}
    frames = CLIP[:50]
    expected = sequential(open_stream((SIZE[1], SIZE[0]), **options), frames, (20, 41))
    stream = SeekableStream(
        open_stream((SIZE[1], SIZE[0]), **options), Reader(frames, ()), 50, kept_frames=8, snapshot_frames=8
    )
    for number in (49, 0, 19, 20, 40, 18, 30, 43, 41, 5):
        assert np.array_equal(stream.frame(number), expected[number]), number
