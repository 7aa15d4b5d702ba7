"""Detect interlacing from the frames themselves: whether both fields were taken at the
same time."""

from typing import Literal

import av
import numpy as np
from numpy.typing import NDArray

__all__ = ["FieldMeter", "Scan", "Verdict"]

Scan = Literal["progressive", "flagged", "tff", "bff", "all", "telecined", "telecined25", "mixed", "shifted"]
"""Scan type of a clip. progressive: whole frames. flagged: frames flagged as interlaced
are interlaced. tff, bff: all frames are interlaced, top or bottom field first, whatever
their flags. all: all frames are interlaced, in the field order of each frame's flag.
telecined: film with repeated fields, four pictures in five frames. telecined25: 24
pictures in 25 frames, as on some PAL discs. mixed: telecined film in parts of the clip.
shifted: film with one field of the next picture in each frame.
"""

Verdict = Literal["unknown", "progressive", "tff", "bff", "telecined", "telecined25", "shifted"]

_COLUMNS = 256
_MOVING = 10.0
"""Minimum change in levels between two frames for a pixel to count as moving."""
_LEAST_MOVING = 0.004
"""Fraction of the picture that must move for a frame to vote."""
_LEAST_VOTES = 4
_TELLING_VOTES = 12
_SURE_VOTES = 14
"""More consecutive votes than occur between two repeated fields in 25-frame
telecine."""
_MOST_VOTES = 40
_MAJORITY = 0.75
_NEARLY_ALL = 0.9
_EVEN = 0.1
"""Largest difference in combing between the two ways of weaving progressive pictures,
in powers of 2."""
_FLOOR = 0.25
"""Offset added to every combing measure, in levels, to avoid zero."""
_LEAST_WHOLE = -1.5
_CLOSE = -1.0
"""Minimum combing of an interlaced frame relative to the less combed of its woven ones, in powers of 2."""
_TORN = 1.0
"""Minimum combing of a frame relative to a woven one that is a whole picture, in powers of 2."""
_COMBED = 0.24
"""Minimum combing in moving parts of an interlaced frame, relative to the change
between frames. Objects move half as far between two fields as between two frames."""
_DOUBLED = 0.03
"""Below this combing, a moving frame is clean even if its woven pictures differ, as
they do for scrolling pictures with doubled lines. Between the two bounds, its fields
may move slowly."""
_CYCLE = 5
"""Frames after which the pattern of telecined film repeats."""
_LONG_CYCLE = 25
"""The same for PAL discs, where a field is repeated after every twelfth picture: twelve
whole frames are followed by thirteen with fields of two pictures."""


class FieldMeter:
    """Collects votes from all frames with motion. Three pictures are compared: the
    frame, its top lines woven with the bottom lines of the previous frame, and the
    reverse. If all lines of a frame were taken at one moment, both woven pictures are
    equally combed, except when pictures enlarged by line doubling scroll; these are
    hardly combed relative to their change. If the fields are half a frame apart, one
    woven picture joins adjacent moments and is about as combed as the frame, and the
    other joins distant ones, which reveals the field order. In telecined film, two of
    every five frames are combed.
    """

    def __init__(self) -> None:
        self._before: NDArray[np.float32] | None = None
        self._number = 0
        self._lean: dict[int, float] = {}  # per frame: excess combing with the previous top lines
        self._whole: dict[int, float] = {}  # per frame: its own combing against the less combed woven one
        self._clean = 0  # frames that are hardly combed in moving parts

    def push(self, frame: av.VideoFrame) -> None:
        """Add the next frame in display order."""
        before, self._before = self._before, _luma(frame)
        self._number += 1
        if before is not None and before.shape == self._before.shape:
            self._compare(before, self._before)

    @property
    def votes(self) -> int:
        """Number of frames with enough motion to count."""
        return len(self._lean)

    @property
    def is_sure(self) -> bool:
        """Whether more frames would hardly change the verdict."""
        votes = len(self._lean)
        if votes >= _MOST_VOTES and (votes >= 2 * _MOST_VOTES or self.result() != "unknown"):
            return True
        return votes >= _SURE_VOTES and all(abs(lean) < _EVEN and self._whole[n] < 0 for n, lean in self._lean.items())

    @property
    def is_clean(self) -> bool:
        """Whether enough frames had motion and almost none of them were combed."""
        votes = len(self._lean)
        return votes >= _TELLING_VOTES and self._clean >= _NEARLY_ALL * votes

    @property
    def is_combed(self) -> bool:
        """Whether some frames had motion and more than a few of them were combed."""
        votes = len(self._lean)
        return votes >= _LEAST_VOTES and self._clean < _NEARLY_ALL * votes

    @property
    def first_field(self) -> Literal["tff", "bff"]:
        """The first field, judged by combed frames, whose fields show two moments."""
        combed = [lean for number, lean in self._lean.items() if self._whole[number] > _CLOSE]
        return "bff" if float(np.sum(combed)) < 0 else "tff"

    def result(self) -> Verdict:
        """Return the verdict of the votes so far."""
        if len(self._lean) < _LEAST_VOTES:
            return "unknown"
        if self._repeats():
            return "telecined"
        if self._repeats_late():
            return "telecined25"
        leans = np.array(list(self._lean.values()))
        typical = float(np.median(list(self._whole.values())))
        if typical > _CLOSE:
            if typical > _TORN and (np.sign(leans) == np.sign(leans[0])).all():
                return "shifted"
            if (leans > _EVEN).mean() >= _MAJORITY:
                return "tff"
            if (leans < -_EVEN).mean() >= _MAJORITY:
                return "bff"
        return "progressive" if (np.abs(leans) < _EVEN).mean() >= _MAJORITY else "unknown"

    def _compare(self, before: NDArray[np.float32], now: NDArray[np.float32]) -> None:
        distance = np.abs(now - before)
        change = distance > _MOVING
        moving = change[1:-1] | change[:-2] | change[2:]
        if moving.size == 0 or moving.mean() < _LEAST_MOVING:
            return
        top_now, bottom_now = now.copy(), now.copy()
        top_now[1::2] = before[1::2]
        bottom_now[::2] = before[::2]
        whole, top, bottom = (_combing(picture, moving) for picture in (now, top_now, bottom_now))
        lean, share = float(np.log2(bottom / top)), (whole - _FLOOR) / float(distance[1:-1][moving].mean())
        self._clean += share < _COMBED and (abs(lean) < _EVEN or share < _DOUBLED)
        if share < _COMBED:
            self._lean[self._number], self._whole[self._number] = 0.0, _LEAST_WHOLE
            return
        self._lean[self._number] = lean
        self._whole[self._number] = float(np.clip(np.log2(whole / min(top, bottom)), _LEAST_WHOLE, -_LEAST_WHOLE))

    def _repeats(self) -> bool:
        """Return whether combed and clean frames alternate in a pattern of five."""
        if np.std(list(self._whole.values())) < 0.3:
            return False
        likeness = [self._likeness(lag) for lag in range(1, _CYCLE + 1)]
        return likeness[-1] > 0.45 and likeness[-1] - max(likeness[:-1]) > 0.3

    def _repeats_late(self) -> bool:
        """Return whether runs of about twelve clean and about twelve combed frames
        alternate."""
        if np.std(list(self._whole.values())) < 0.3:
            return False
        half = _LONG_CYCLE // 2
        apart = max(self._likeness(half), self._likeness(half + 1))
        return self._likeness(_LONG_CYCLE, _LONG_CYCLE) > 0.6 and apart < -0.4

    def _likeness(self, lag: int, least: int = 2 * _CYCLE) -> float:
        pairs = np.array([(v, self._whole[n + lag]) for n, v in self._whole.items() if n + lag in self._whole])
        if len(pairs) < least or pairs.std(axis=0).min() < 1e-3:
            return 0.0
        return float(np.corrcoef(pairs.T)[0, 1])


def _luma(frame: av.VideoFrame) -> NDArray[np.float32]:
    gray = np.asarray(frame.reformat(format="gray").to_ndarray())
    return gray[:, :: max(1, frame.width // _COLUMNS)].astype(np.float32)


def _combing(picture: NDArray[np.float32], moving: NDArray[np.bool_]) -> float:
    """Return the combing: by how much lines differ from both neighbours in the same
    direction."""
    above, below = picture[1:-1] - picture[:-2], picture[1:-1] - picture[2:]
    out = np.where(above * below > 0, np.minimum(np.abs(above), np.abs(below)), 0)
    return float(out[moving].mean()) + _FLOOR
