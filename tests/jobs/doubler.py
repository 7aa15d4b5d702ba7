"""An upscaler that doubles pixels, and jobs that use it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ultraflash_cli.engine.guard import Counting
from ultraflash_cli.jobs.events import Chunk, Event
from ultraflash_cli.jobs.planning.upscale import Prepared, UpscaleJob
from ultraflash_cli.jobs.running.report import Report
from ultraflash_cli.jobs.running.stop import Stop
from ultraflash_cli.jobs.running.upscale import run
from ultraflash_cli.models.built import Built
from ultraflash_cli.models.frames import FrameUpscaler

__all__ = ["Doubler", "Trail", "builder", "job", "left_over", "upscale"]


@dataclass(frozen=True)
class Trail:
    """The fake's memory: the number of frames of the scene so far, and the seed."""

    seen: int
    seed: int


class Doubler:
    """Enlarges by repeating pixels and stamps each frame with its position in the
    scene, so that a lost state is noticed."""

    def __init__(self, prepared: Prepared, *, fails_at: int | None = None) -> None:
        self.stage_seconds: dict[str, float] = {"stamp": 0.0}
        self._scale = prepared.plan.scale
        self._target = prepared.plan.target
        self._fails_at = fails_at

    def guarded(self) -> Counting | None:
        return None

    def group_frames(self, first: bool) -> int:
        return 2 if first else 3

    def init_state(self, *, seed: int, first_frame: int) -> Trail:
        return Trail(0, seed)

    def step(self, state: Trail, frames: list[np.ndarray]) -> tuple[Trail, list[np.ndarray]]:
        if self._fails_at is not None and state.seen >= self._fails_at:
            raise MemoryError
        out: list[np.ndarray] = []
        for number, frame in enumerate(frames, state.seen):
            height, width = self._target
            big = frame.repeat(self._scale, axis=0).repeat(self._scale, axis=1)[:height, :width].copy()
            big[:8, :8] = 8 * ((number + state.seed) % 32)
            out.append(big)
        return Trail(state.seen + len(frames), state.seed), out

    def held(self, state: Trail) -> int:
        return 0

    def end(self, state: Trail, frames: list[np.ndarray]) -> list[np.ndarray]:
        return self.step(state, frames)[1]

    def state_bytes(self, state: Trail) -> int:
        return 100

    def save_state(self, state: Trail) -> bytes:
        return f"{state.seen} {state.seed}".encode()

    def load_state(self, content: bytes, *, seed: int, first_frame: int) -> Trail:
        return Trail(*map(int, content.split()))


def builder(
    make: Callable[[Prepared], FrameUpscaler] = Doubler, weights: str = "0"
) -> Callable[[Prepared], Built[FrameUpscaler]]:
    return lambda prepared: Built(model=make(prepared), device="cpu", precision="fp32", weights={"tiny": weights})


def job(source: Path, output: Path | None = None, **options: Any) -> UpscaleJob:
    settings: dict[str, Any] = {"res": "2x", "codec": "h264", "crf": 1, "threads": 1} | options
    return UpscaleJob(source=source, output=output, **settings)


def upscale(
    made: UpscaleJob,
    *,
    stop_at: int | None = None,
    build: Callable[[Prepared], Built[FrameUpscaler]] | None = None,
    events: list[Event] | None = None,
) -> Report:
    stop = Stop()

    def listen(event: Event) -> None:
        if events is not None:
            events.append(event)
        if stop_at is not None and isinstance(event, Chunk) and event.frames_done >= stop_at:
            stop.request(15)

    return run(made, listen, stop=stop, build=build or builder(), segment_frames=12)


def left_over(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith(".") or ".part" in path.name)
