"""Another frame rate for a clip: frames repeated or dropped, never blended."""

from collections.abc import Iterator
from fractions import Fraction
from math import ceil

__all__ = ["Pace"]

_SLACK = Fraction(1, 4)
"""How far a time may be off, in frames of the clip or of the file, whichever are shorter."""


class Pace:
    """Maps each frame of a clip, in order, to its times in a file of `fps` frames per second. A
    frame of the file shows the clip at its start; rounded times, as in Matroska, count as exact.
    The
    file lasts less than one of its frames longer than the clip. `time_base` is the unit of the clip's own times and
    `rate` its usual one; the times of the file count in `ticks` a frame.
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
        # The first frame is always shown, however short it is.
        for place in range(self._next, max(1, end)):
            yield start + place * self._ticks, self._ticks
        self._next = max(1, end)
