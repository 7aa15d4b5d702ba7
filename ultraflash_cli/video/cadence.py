"""Soft telecine: film on a disc whose frames are flagged with the number of fields to
show them for."""

from collections import Counter, deque
from fractions import Fraction
from statistics import median

import av
from av.video.stream import VideoStream

__all__ = ["CadenceClock", "RepeatMeter"]

_FLAGGING = {"mpeg1video", "mpeg2video"}
"""Codecs whose flags determine how long packets last; others are timed by their containers."""
_LEAST_FRAMES = 8
_LEAST_REPEATED = 0.2
"""Minimum share of frames with a repeated field for soft telecine."""
_CLOSE = Fraction(1, 50)
_FILM = Fraction(4, 5)
_STRAYING = 12
"""Number of consecutive frames early or late by which a gap is recognised."""
_GAP_FIELDS = 5
_SAME = Fraction(1, 10)
"""Distance in fields from the expected time up to which a timestamp counts as exact."""


class RepeatMeter:
    """Counts the fields for which the first frames of a stream are shown."""

    def __init__(self, stream: VideoStream) -> None:
        self._rate: Fraction | None = stream.codec_context.framerate
        self._field: Fraction | None = None
        if stream.codec_context.codec.canonical_name in _FLAGGING and self._rate and stream.time_base:
            self._field = 1 / (2 * self._rate * stream.time_base)
        self._counts: Counter[int] = Counter()

    def push(self, frame: av.VideoFrame) -> None:
        """Add the next frame."""
        if self._field is not None and frame.duration:
            self._counts[round(frame.duration / self._field)] += 1

    @property
    def rate(self) -> Fraction | None:
        """Average frames per second; None if fields are rarely repeated."""
        frames = self._counts.total()
        if frames < _LEAST_FRAMES or self._counts[3] < _LEAST_REPEATED * frames or self._rate is None:
            return None
        share = Fraction(2 * frames, sum(fields * count for fields, count in self._counts.items()))
        return self._rate * (_FILM if abs(share - _FILM) < _CLOSE * _FILM else share.limit_denominator(100))


class CadenceClock:
    """Derives frame times from the number of fields of each frame, counted from the
    first. Few packets of a disc have timestamps, and FFmpeg's interpolation is wrong
    for reordered frames of different durations. If timestamps deviate for long, there
    is a gap, and the count is adjusted. ``field`` is the duration of a field in ticks,
    ``start`` the first time of a clip without timestamps.
    """

    repaired = 0
    squeezed = 0
    made_up = False

    def __init__(self, *, field: Fraction, start: int = 0) -> None:
        self._field = field
        self._start = start
        self._anchor: int | None = None
        self._fields = 0
        self._last: int | None = None
        self._strays: deque[int] = deque(maxlen=_STRAYING)

    def next(self, pts: int | None, *, hint: int | None = None, lasts: int = 0) -> int:
        """Return the timestamp of a frame with the given ``pts``, decoding time
        ``hint`` and duration ``lasts``."""
        if self._anchor is None:
            self._anchor = next((stamp for stamp in (pts, hint) if stamp is not None), self._start)
        due = self._due()
        if pts is not None and abs(pts - due) <= _SAME * self._field:
            due = pts
        if pts is not None:
            self._strays.append(pts - due)
            far = [abs(stray) > _GAP_FIELDS * self._field for stray in self._strays]
            if len(far) == _STRAYING and all(far) and min(self._strays) > 0:
                self._anchor += round(median(self._strays))
                self._strays.clear()
                due = self._due()
        self._fields += max(1, round(lasts / self._field)) if lasts > 0 else 2
        self._last = due if self._last is None else max(due, self._last + 1)
        return self._last

    def _due(self) -> int:
        assert self._anchor is not None, "the first frame is the anchor"
        return self._anchor + round(self._fields * self._field)
