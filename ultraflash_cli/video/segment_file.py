"""Segment files: one being written, and the record of a finished one."""

from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from ultraflash_cli.video.frame import Frame

__all__ = ["SegmentFile", "SegmentSink"]


@dataclass(frozen=True, kw_only=True)
class SegmentFile:
    """A finished, synced segment; times in ticks of the spec's ``time_base``."""

    path: Path
    size_bytes: int
    """Size of the finished file, used to detect changes."""
    frames: int
    first_pts: int
    last_pts: int
    last_duration: int


class SegmentSink(Protocol):
    """A segment being written; an exception in its context deletes it."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None: ...

    def write(self, frame: Frame) -> None: ...

    def close(self) -> SegmentFile | None:
        """Finish the file and wait until it is on disk; returns None if no frame was
        written."""
        ...
