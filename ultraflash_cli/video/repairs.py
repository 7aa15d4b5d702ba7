"""Repairs of a file's timestamps: counts and messages."""

from collections import Counter
from dataclasses import dataclass, field

__all__ = ["Repairs"]


@dataclass
class Repairs:
    """Repairs made so far."""

    restarts: int = 0
    """Number of restarts of the file's clock."""
    restart_s: float = 0.0
    """Time of the first restart, on the repaired clock."""
    jumps: Counter[str] = field(default_factory=Counter[str])
    """Number of forward jumps of single streams, by kind."""
    steps_back: Counter[str] = field(default_factory=Counter[str])
    """Number of backward jumps, by kind."""
    outliers: int = 0
    """Wrong timestamps among good ones."""
    untimed: int = 0
    """Those of them left without a timestamp, to be shown when the previous frame
    ends."""

    @property
    def count(self) -> int:
        """Total number of repairs."""
        return self.restarts + self.jumps.total() + self.steps_back.total() + self.outliers

    def __bool__(self) -> bool:
        return self.count > 0

    def describe(self, start_s: float) -> list[tuple[str, str]]:
        """Return the repairs as pairs of a kind and a sentence; times are relative to
        ``start_s``."""
        said: list[tuple[str, str]] = []
        if self.restarts:
            times = "once" if self.restarts == 1 else f"{self.restarts} times, first"
            place = f"its timestamps restart {times} at {self.restart_s - start_s:.2f} s"
            said.append(("restarts", f"{place}; audio, video and subtitles continue in sync from there"))
        ways = (
            (self.jumps, "ahead", "gaps removed"),
            (self.steps_back, "back", "later packets were shifted to follow the earlier ones"),
        )
        for counts, way, done in ways:
            for kind, count in sorted(counts.items()):
                times = "once" if count == 1 else f"{count} times"
                said.append((f"{kind} {way}", f"its {kind} timestamps jump {way} {times}; {done}"))
        if self.outliers:
            count = "one timestamp is" if self.outliers == 1 else f"{self.outliers} timestamps are"
            said.append(("outliers", f"{count} far from the neighbouring ones; interpolated"))
        return said
