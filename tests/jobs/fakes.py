"""A tiny upscaler with memory, and segments that are plain files."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from ultraflash_cli.jobs.flow import SourceFrame

__all__ = ["FakeState", "FakeUpscaler", "TextSegment", "frames_of"]


@dataclass
class FakeState:
    """What the fake remembers: the sum of the frames of its scene, and frames that wait for their group."""

    total: int = 0
    seed: int = 0
    count: int = 0
    queue: list[np.ndarray] = field(default_factory=lambda: list[np.ndarray]())


class FakeUpscaler:
    """Adds up the frames of a scene, so that a lost, repeated or misplaced frame or a lost state shows."""

    def __init__(self) -> None:
        self.stage_seconds: dict[str, float] = {"fake": 0.0}
        self.pushes: list[int] = []

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

    def flush(self, state: FakeState) -> list[np.ndarray]:
        size, waiting = self.group_frames(state.count == 0), len(state.queue)
        if not waiting:
            return []
        return self.step(state, [state.queue[-1]] * (size - waiting))[1][:waiting]

    def save_state(self, state: FakeState) -> bytes:
        assert not state.queue, "states are saved between groups"
        return json.dumps([state.total, state.seed, state.count]).encode()

    def load_state(self, content: bytes, *, seed: int, first_frame: int) -> FakeState:
        state = FakeState(*json.loads(content))
        assert state.seed == self.init_state(seed=seed, first_frame=first_frame).seed
        return state


class TextSegment:
    """A segment as lines of text; dropped when left before `close`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lines: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def write(self, rgb_hwc: np.ndarray, pts: int, duration: int) -> None:
        self._lines.append(f"{pts} {duration} {int(rgb_hwc[0, 0, 0])}")

    def close(self) -> None:
        self._path.write_text("\n".join(self._lines) + "\n")


def frames_of(count: int, cuts: set[int]) -> Iterator[SourceFrame]:
    """Make a clip of `count` numbered frames with scenes that begin at `cuts`."""
    for number in range(count):
        rgb_hwc = np.full((1, 1, 3), number % 256, np.uint8)
        yield SourceFrame(number, number in cuts, rgb_hwc, 10 * number + number % 3, 10)
