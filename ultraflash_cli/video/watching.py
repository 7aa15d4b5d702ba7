"""Watch for interlaced parts that were not found beforehand, while a clip is read."""

import av

from ultraflash_cli.video.interlace import FieldMeter

__all__ = ["FieldWatch"]

_PERIOD = 180
_LOOKED = 30
"""Number of frames examined at the end of every period."""
_AGREEING = 2
"""Number of consecutive periods that must show fields of two moments."""
_COMBED = ("tff", "bff", "telecined", "telecined25", "shifted")


class FieldWatch:
    """Examines a sixth of the frames of a clip that is read as progressive."""

    def __init__(self) -> None:
        self._number = 0
        self._begun_pts = 0
        self._meter = FieldMeter()
        self._combed: list[int] = []

    def push(self, frame: av.VideoFrame, pts: int) -> int | None:
        """Add the next frame and its timestamp. Returns, once, the timestamp from which
        the clip seems interlaced or telecined.
        """
        place, self._number = self._number % _PERIOD, self._number + 1
        if place < _PERIOD - _LOOKED or len(self._combed) >= _AGREEING:
            return None
        if place == _PERIOD - _LOOKED:
            self._begun_pts = pts
        self._meter.push(frame)
        if place < _PERIOD - 1:
            return None

        if self._meter.result() in _COMBED:
            self._combed.append(self._begun_pts)
        else:
            self._combed.clear()
        self._meter = FieldMeter()
        return self._combed[0] if len(self._combed) == _AGREEING else None
