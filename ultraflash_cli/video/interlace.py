"""Interlacing, measured on the frames: whether the two fields were taken at the same time."""

from typing import Literal

import av
import numpy as np
from numpy.typing import NDArray

__all__ = ["Answer", "FieldMeter", "Scan"]

Scan = Literal["progressive", "flagged", "tff", "bff", "all", "telecined", "telecined25", "mixed", "shifted"]
"""How frames are to be treated.

progressive: as they are. flagged: those that say so are interlaced. tff, bff: all are, top or bottom field first,
though they do not say so. all: as tff or bff, in the order that each frame says. telecined: film with repeated fields,
four pictures in five frames. telecined25: 24 pictures in 25 frames, as film is on some PAL discs. mixed: such film in
some parts of the clip. shifted: film of which each frame holds one field of the next picture.
"""

Answer = Literal["unknown", "progressive", "tff", "bff", "telecined", "telecined25", "shifted"]

_COLUMNS = 256
_MOVING = 10.0
"""Change in levels between two frames from which a pixel counts as moving."""
_LEAST_MOVING = 0.004
"""Fraction of the picture that must move for a frame to vote."""
_LEAST_VOTES = 4
_TELLING_VOTES = 12
_SURE_VOTES = 14
"""More than follow each other between two repeated fields of film in 25 frames."""
_MOST_VOTES = 40
_MAJORITY = 0.75
_NEARLY_ALL = 0.9
_EVEN = 0.1
"""Largest difference of combing between both ways of weaving progressive pictures, in powers of 2."""
_FLOOR = 0.25
"""Added to every combing measure, in levels, to avoid zero."""
_LEAST_WHOLE = -1.5
_CLOSE = -1.0
"""Minimum combing of an interlaced frame relative to the less combed of its woven ones, in powers of 2."""
_TORN = 1.0
"""Minimum combing of a frame relative to a woven one that is a whole picture, in powers of 2."""
_COMBED = 0.24
"""Moving parts of an interlaced frame are combed by at least so much of what changes there from frame to frame. It
moves half as far between two fields as between two frames."""
_DOUBLED = 0.03
"""Where a moving frame is combed by less, it is clean however uneven its woven pictures are: they are where pictures
scroll whose lines are doubled. Between the two bounds it may be one of slow fields."""
_CYCLE = 5
"""Frames after which the pattern of telecined film repeats."""
_LONG_CYCLE = 25
"""The same on PAL discs, where a field is repeated after every twelfth picture: twelve frames are whole, then thirteen
hold fields of two pictures."""


class FieldMeter:
    """Collects votes of all frames with motion.

    Three pictures are compared if there is motion: the frame, its top lines woven with the bottom lines of the frame
    before, and the other way round. Where all lines of a frame are of one moment, the two woven ones are equally
    combed, whatever moves; but for scrolls of pictures enlarged by repeating lines, which are hardly combed themselves
    against what changes. Where the fields are half a frame apart, one of them joins neighbouring moments and is about
    as combed as the frame, the other joins distant ones; which is which tells the order of the fields. In telecined
    film two of every five frames are combed.
    """

    def __init__(self) -> None:
        self._before: NDArray[np.float32] | None = None
        self._number = 0
        self._lean: dict[int, float] = {}  # by frame: how much more combed with the top lines of the frame before
        self._whole: dict[int, float] = {}  # by frame: how combed it is itself, against the less combed woven one
        self._clean = 0  # frames that are hardly combed where they move

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
        """Whether more frames would hardly change the answer."""
        votes = len(self._lean)
        if votes >= _MOST_VOTES and (votes >= 2 * _MOST_VOTES or self.answer() != "unknown"):
            return True
        return votes >= _SURE_VOTES and all(abs(lean) < _EVEN and self._whole[n] < 0 for n, lean in self._lean.items())

    @property
    def is_clean(self) -> bool:
        """Whether there were enough frames with motion, almost none of them combed."""
        votes = len(self._lean)
        return votes >= _TELLING_VOTES and self._clean >= _NEARLY_ALL * votes

    @property
    def is_combed(self) -> bool:
        """Whether there were some frames with motion, and part of them was combed."""
        votes = len(self._lean)
        return votes >= _LEAST_VOTES and self._clean < _NEARLY_ALL * votes

    @property
    def first_field(self) -> Literal["tff", "bff"]:
        """Which field comes first by the frames that are combed themselves, of fields of two moments."""
        combed = [lean for number, lean in self._lean.items() if self._whole[number] > _CLOSE]
        return "bff" if float(np.sum(combed)) < 0 else "tff"

    def answer(self) -> Answer:
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
        """Return whether combed and clean frames follow each other in a pattern of five."""
        if np.std(list(self._whole.values())) < 0.3:
            return False
        likeness = [self._likeness(lag) for lag in range(1, _CYCLE + 1)]
        return likeness[-1] > 0.45 and likeness[-1] - max(likeness[:-1]) > 0.3

    def _repeats_late(self) -> bool:
        """Return whether about twelve clean and about twelve combed frames follow each other."""
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
    """Return how much lines stand out from the lines above and below them, where both stand out the same way."""
    above, below = picture[1:-1] - picture[:-2], picture[1:-1] - picture[2:]
    out = np.where(above * below > 0, np.minimum(np.abs(above), np.abs(below)), 0)
    return float(out[moving].mean()) + _FLOOR
