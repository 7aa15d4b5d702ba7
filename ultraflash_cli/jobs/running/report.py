"""Progress of a running job, and the numbers of its report."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from ultraflash_cli.host import peak_rss_bytes
from ultraflash_cli.jobs.events import Chunk, Done
from ultraflash_cli.jobs.running.segments import Busy
from ultraflash_cli.jobs.running.work import Work

__all__ = ["Progress", "Report"]


@dataclass(frozen=True, kw_only=True)
class Report:
    """The report of one output."""

    input: str
    output: str
    skipped: bool
    """Whether the output existed and was left alone."""
    model: str
    device: str | None = None
    precision: str | None = None
    settings: dict[str, object] | None = None
    """Settings of the model besides its weights; empty for models without an SR
    transformer."""
    encoder: dict[str, object] | None = None
    frames_in: int = 0
    frames_out: int = 0
    frames_resumed: int = 0
    """Number of frames that an interrupted run had already finished."""
    width: int = 0
    height: int = 0
    first_frame_s: float | None = None
    """Seconds from the start, including loading, until the model returned the first
    frames."""
    fps_wall: float | None = None
    """Frames of this run per second of its total time, including loading and joining."""
    fps_model: float | None = None
    """Frames of this run per second of model time."""
    seconds: float = 0.0
    peak_rss_bytes: int = 0
    peak_vram_bytes: int | None = None
    """Of both devices together where there are two."""
    limit: str | None = None
    """The bottleneck: reading, model or writing."""
    seconds_by_stage: dict[str, float] | None = None
    warnings: tuple[str, ...] = ()

    def done(self) -> Done:
        """Return the event that ends the job."""
        return Done(
            input=self.input,
            output=self.output,
            frames=self.frames_out,
            seconds=self.seconds,
            fps=self.fps_wall or 0.0,
        )


class Progress:
    """Reports the finished frames after every group, and the measurements at the end.
    `clock` returns seconds and `started_s` is the start of the job; `total` is None if
    the number of frames is unknown; a total that was exceeded counts as unknown.
    """

    def __init__(self, work: Work, *, total: int | None, clock: Callable[[], float], started_s: float) -> None:
        self.busy = Busy()
        self._work = work
        self._total = total
        self._clock = clock
        self._started_s = started_s
        self._moving_s = clock()
        self._resumed = work.journal.safe_frames
        self._first_frame_s: float | None = None

    def on_group(self, done: int) -> None:
        """Report that `done` frames are done, including those of an interrupted run."""
        now_s = self._clock()
        if self._first_frame_s is None:
            self._first_frame_s = round(now_s - self._started_s, 3)
        fps = _rate(done - self._resumed, now_s - self._moving_s) or 0.0
        # A pipe may declare the length of its beginning alone.
        total = self._total if self._total and self._total >= done else None
        left = total - done if total else None
        self._work.listener(
            Chunk(
                input=self._work.name,
                frames_done=done,
                frames_safe=self._work.journal.safe_frames,
                frames_total=total,
                fps=round(fps, 3),
                eta_s=round(left / fps, 1) if left is not None and fps else None,
                limit=self.busy.limit,
                first_frame_s=self._first_frame_s,
            )
        )

    def measured(self, *, device: str, stages: dict[str, float]) -> dict[str, Any]:
        """Return the measured part of the report; `stages` are the seconds of the model's stages."""
        frames = self._work.journal.frames - self._resumed
        seconds = self._clock() - self._started_s
        times = stages | asdict(self.busy)
        return dict(
            device=device,
            frames_resumed=self._resumed - self._work.journal.first_frame,
            first_frame_s=self._first_frame_s,
            fps_wall=_rate(frames, seconds),
            fps_model=_rate(frames, self.busy.model),
            seconds=round(seconds, 3),
            peak_rss_bytes=peak_rss_bytes(),
            peak_vram_bytes=_peak_vram_bytes(device),
            limit=self.busy.limit if frames else None,
            seconds_by_stage={name: round(value, 3) for name, value in times.items()},
        )


def _peak_vram_bytes(device: str) -> int | None:
    if not device.startswith("cuda"):
        return None
    return sum(torch.cuda.max_memory_allocated(each) for each in device.split(","))


def _rate(frames: int, seconds: float) -> float | None:
    return round(frames / seconds, 3) if frames and seconds > 0 else None
