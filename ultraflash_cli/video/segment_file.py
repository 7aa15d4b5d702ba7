"""A finished segment file: where it is, and what it holds."""

from dataclasses import dataclass
from pathlib import Path

__all__ = ["SegmentFile"]


@dataclass(frozen=True, kw_only=True)
class SegmentFile:
    """A finished, synced segment; times in ticks of the spec's ``time_base``."""

    path: Path
    size_bytes: int
    """Of the file; one of another size is not the one that was finished."""
    frames: int
    first_pts: int
    last_pts: int
    last_duration: int
