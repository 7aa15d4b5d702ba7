"""A tiny upscaler and a tiny generator, both with memory, and segments that are plain files."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from ultraflash_cli.engine.guard import Counting
from ultraflash_cli.jobs.running.upscaling import SourceFrame
from ultraflash_cli.video.frame import Frame
from ultraflash_cli.video.segment_file import SegmentFile

__all__ = [
    "AheadUpscaler",
    "FakeGenerator",
    "FakeState",
    "FakeUpscaler",
    "MadeState",
    "TextSegment",
    "frames_of",
    "plain_file",
]


@dataclass
class FakeState:
    """State of the fake: the sum of the frames of its scene, and frames that wait for
    their group."""

    total: int = 0
    seed: int = 0
    count: int = 0
    queue: list[np.ndarray] = field(default_factory=lambda: list[np.ndarray]())


class FakeUpscaler:
    """Adds up the frames of a scene, so that a lost, repeated or misplaced frame or a
    lost state is noticed."""

    def __init__(self) -> None:
        self.stage_seconds: dict[str, float] = {"fake": 0.0}
        self.pushes: list[int] = []

    def guarded(self) -> Counting | None:
        return None

    def group_frames(self, first: bool) -> int:
        return 2 if first else 3

    def init_state(self, *, seed: int, first_frame: int) -> FakeState:
        return FakeState(seed=seed + 1000 * first_frame)

    def step(self, state: FakeState, frames: list[np.ndarray]) -> tuple[FakeState, list[np.ndarray]]:
        self.pushes.append(len(frames))
        total, count, queue, out = state.total, state.count, state.queue + frames, list[np.ndarray]()
        while len(queue) >= self.group_frames(count == 0):
            size = self.group_frames(count == 0)
            for frame in queue[:size]:
                total += int(frame.sum())
                out.append(np.full((2, 2, 3), (total + state.seed) % 251, np.uint8))
            queue, count = queue[size:], count + size
        return FakeState(total, state.seed, count, queue), out

    def held(self, state: FakeState) -> int:
        return 0

    def end(self, state: FakeState, frames: list[np.ndarray]) -> list[np.ndarray]:
        state, out = self.step(state, frames) if frames else (state, [])
        return out + self._rest(state)

    def _rest(self, state: FakeState) -> list[np.ndarray]:
        size, waiting = self.group_frames(state.count == 0), len(state.queue)
        if not waiting:
            return []
        return self.step(state, [state.queue[-1]] * (size - waiting))[1][:waiting]

    def state_bytes(self, state: FakeState) -> int:
        return 100

    def save_state(self, state: FakeState) -> bytes:
        assert not state.queue, "states are saved between groups"
        return json.dumps([state.total, state.seed, state.count]).encode()

    def load_state(self, content: bytes, *, seed: int, first_frame: int) -> FakeState:
        state = FakeState(*json.loads(content))
        assert state.seed == self.init_state(seed=seed, first_frame=first_frame).seed
        return state


class AheadUpscaler(FakeUpscaler):
    """Holds back the last frame of every group until the next group, like an encoder
    that runs ahead."""

    def step(self, state: FakeState, frames: list[np.ndarray]) -> tuple[FakeState, list[np.ndarray]]:
        self.pushes.append(len(frames))
        state, out = FakeState(state.total, state.seed, state.count, list(state.queue)), list[np.ndarray]()
        for frame in frames:
            out += self._finished(state)
            state.queue.append(frame)
        return state, out

    def _finished(self, state: FakeState) -> list[np.ndarray]:
        if not state.queue:
            return []
        state.total += int(state.queue.pop().sum())
        state.count += 1
        return [np.full((2, 2, 3), (state.total + state.seed) % 251, np.uint8)]

    def held(self, state: FakeState) -> int:
        return len(state.queue)

    def _rest(self, state: FakeState) -> list[np.ndarray]:
        return self._finished(state)

    def save_state(self, state: FakeState) -> bytes:
        return json.dumps([state.total, state.seed, state.count, [int(each[0, 0, 0]) for each in state.queue]]).encode()

    def load_state(self, content: bytes, *, seed: int, first_frame: int) -> FakeState:
        total, seed, count, held = json.loads(content)
        return FakeState(total, seed, count, [np.full((1, 1, 3), value, np.uint8) for value in held])


@dataclass(frozen=True)
class MadeState:
    """State of the fake generator: the value of its last picture, the number of groups,
    the seed."""

    value: int
    groups: int
    seed: int


class FakeGenerator:
    """Makes uniform pictures whose value depends on all earlier ones, so that a lost
    state or group is noticed."""

    def __init__(
        self,
        group_frames: tuple[int, ...],
        *,
        size: tuple[int, int] = (2, 2),
        low_size: tuple[int, int] | None = None,
        state_bytes: int = 100,
        fails_at: int | None = None,
    ) -> None:
        self.group_frames = group_frames
        self.stage_seconds: dict[str, float] = {"fake": 0.0}
        self.steps = 0
        self.begun_from: list[np.ndarray] | None = None
        self.saved = 0
        self._size, self._low_size = size, low_size
        self._state_bytes, self._fails_at = state_bytes, fails_at

    def init_state(self, *, seed: int, clip: list[np.ndarray] | None = None) -> MadeState:
        self.begun_from = clip
        return MadeState(7 + sum(int(picture.mean()) for picture in clip or ()), 0, seed)

    def step(self, state: MadeState) -> tuple[MadeState, list[np.ndarray], list[np.ndarray]]:
        if state.groups == self._fails_at:
            raise MemoryError
        self.steps += 1
        value, sharp, low = state.value, list[np.ndarray](), list[np.ndarray]()
        for _ in range(self.group_frames[state.groups]):
            value = (3 * value + state.seed + 1) % 251
            sharp.append(np.full((*self._size, 3), value, np.uint8))
            if self._low_size is not None:
                low.append(np.full((*self._low_size, 3), value, np.uint8))
        return MadeState(value, state.groups + 1, state.seed), sharp, low

    def counters(self, state: MadeState) -> dict[str, int]:
        return {"generator_passes": 5 * state.groups}

    def state_bytes(self, state: MadeState) -> int:
        return self._state_bytes

    def save_state(self, state: MadeState) -> bytes:
        self.saved += 1
        return json.dumps([state.value, state.groups, state.seed]).encode()

    def load_state(self, content: bytes, *, seed: int) -> MadeState:
        state = MadeState(*json.loads(content))
        assert state.seed == seed
        return state


class TextSegment:
    """A segment as lines of text; discarded unless it is closed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lines: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def write(self, frame: Frame) -> None:
        self._lines.append(f"{frame.pts} {frame.duration} {int(frame.rgb_hwc[0, 0, 0])}")

    def close(self) -> SegmentFile:
        self._path.write_text("\n".join(self._lines) + "\n")
        return plain_file(self._path)


def plain_file(path: Path) -> SegmentFile:
    """Write a file as a segment."""
    return SegmentFile(path=path, size_bytes=path.stat().st_size, frames=1, first_pts=0, last_pts=0, last_duration=1)


def frames_of(count: int, cuts: set[int]) -> Iterator[SourceFrame]:
    """Make a clip of `count` numbered frames with scenes that begin at `cuts`."""
    for number in range(count):
        rgb_hwc = np.full((1, 1, 3), number % 256, np.uint8)
        yield SourceFrame(number, number in cuts, Frame(10 * number + number % 3, 10, rgb_hwc))
