"""Change the frame rate of a clip by repeating or dropping frames, never blending."""

from collections.abc import Iterator
from fractions import Fraction
from math import ceil

__all__ = ["Pace"]

_SLACK = Fraction(1, 4)
"""Tolerance of times, in frames of the clip or of the file, whichever are shorter."""


class Pace:
    """Maps each frame of a clip, in order, to its times in a file of `fps` frames per
    second. A frame of the file shows the clip at the frame's start; rounded times, as
    in Matroska, count as exact. The file is at most one frame longer than the clip.
    `time_base` is that of the clip, `rate` its usual frame rate, and `ticks` the length
    of a frame in the file's ticks.
    """

    def __init__(self, fps: Fraction, *, time_base: Fraction, rate: Fraction, ticks: int) -> None:
        self._places = time_base * fps
        self._ticks = ticks
        self._slack = _SLACK * min(Fraction(1), fps / rate)
        self._first_pts: int | None = None
        self._next = 0

    def times(self, pts: int, duration: int) -> Iterator[tuple[int, int]]:
        """Return timestamp and duration of every frame of the file that shows the frame at `pts`."""
        if self._first_pts is None:
            self._first_pts = pts
        end = ceil((pts + duration - self._first_pts) * self._places - self._slack)
        start = round(self._first_pts * self._places * self._ticks)
        # The first frame is always shown, no matter how short it is.
        for place in range(self._next, max(1, end)):
            yield start + place * self._ticks, self._ticks
        self._next = max(1, end)
