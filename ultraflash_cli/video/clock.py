"""Timestamps of decoded frames, in display order."""

from collections import deque
from collections.abc import Iterator

import av

from ultraflash_cli.video.repairs import Repairs

__all__ = ["Clock", "settled"]


def settled(frames: Iterator[av.VideoFrame], repairs: Repairs) -> Iterator[tuple[av.VideoFrame, int | None]]:
    """Pair frames with their timestamps; outliers are interpolated and counted.

    A frame is an outlier if it is later than the next two or earlier than the previous
    two, all of which are in order, or if its wrong timestamp has been removed.
    """
    before: tuple[int | None, int | None] = (None, None)
    waiting: deque[av.VideoFrame] = deque()
    for frame in frames:
        waiting.append(frame)
        if len(waiting) == 3:
            pts = _between(before, waiting[0].pts, waiting[1].pts, waiting[2].pts, repairs)
            before = (before[1], pts)
            yield waiting.popleft(), pts
    for frame in waiting:
        yield frame, frame.pts


def _between(
    before: tuple[int | None, int | None], pts: int | None, following: int | None, last: int | None, repairs: Repairs
) -> int | None:
    first, previous = before
    if following is None or last is None or following >= last:
        return pts
    if previous is None and (repairs.untimed if pts is None else pts >= last):
        previous = following - 2 * (last - following)
    if previous is None or previous >= following:
        return pts
    between = previous + (following - previous) // 2
    if pts is None:
        if repairs.untimed:
            repairs.untimed -= 1
            return between
        return None
    early = pts < previous and (first is None or pts <= first < previous)
    if pts >= last or early:
        repairs.outliers += 1
        return between
    return pts


class Clock:
    """Repairs missing, repeated and decreasing timestamps of frames in display order.
    ``step`` is the usual frame distance and ``jump`` the smallest backward step
    regarded as a new clock, in ticks; a clip whose first frame has no timestamp starts
    at ``start``. ``repaired`` counts the timestamps that were filled in or changed.
    """

    def __init__(self, *, step: int, jump: int, start: int = 0) -> None:
        self._step = self._lasts = max(1, step)
        self._jump = jump
        self._start = start
        self._offset = 0
        self._last: int | None = None
        self.repaired = 0
        self.squeezed = 0
        """Number of timestamps one tick after the previous one."""
        self.made_up = False
        """Whether the last frame had no timestamp."""
        self._stamps = _Stamps()
        self._hints = _Stamps()

    def next(self, pts: int | None, *, hint: int | None = None, lasts: int = 0) -> int:
        """Return the timestamp to use for a frame with the given ``pts``, decoding time
        ``hint`` and duration ``lasts``. A frame without a timestamp starts at the end
        of the previous one, which has the usual duration if its own is 0. Containers
        without presentation times (AVI) report none or wrong ones: of ``pts`` and
        ``hint``, the one that has decreased less often so far is used.
        """
        self._stamps.see(pts)
        self._hints.see(hint)
        step, self._lasts = self._lasts, lasts if lasts > 0 else self._step
        believed = pts is not None and (hint is None or self._stamps.faults <= self._hints.faults)
        given = pts if believed else hint
        if self._last is None:
            self._last = given if given is not None else self._start
            self.made_up = given is None
            return self._last

        self.made_up = given is None
        if given is None:
            self.repaired += 1
            self._last += step
            return self._last

        given += self._offset
        if self._last - given >= self._jump:
            self.repaired += 1
            self._offset += self._last + step - given
            given = self._last + step

        self.repaired += given <= self._last
        self.squeezed += given <= self._last
        self._last = max(given, self._last + 1)
        return self._last


class _Stamps:
    def __init__(self) -> None:
        self._last: int | None = None
        self.faults = 0

    def see(self, stamp: int | None) -> None:
        if stamp is not None:
            self.faults += self._last is not None and stamp <= self._last
            self._last = stamp
