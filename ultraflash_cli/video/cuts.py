"""Scene cut detection from histograms and structure of small thumbnails."""

from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ultraflash_cli.video.color import Picture

__all__ = ["LOOKAHEAD", "CutDetector"]

LOOKAHEAD = 8
"""Number of later frames that a decision about a frame needs."""

_ROWS, _COLUMNS, _BINS = 24, 32, 16
_LEAST = 0.28
"""Minimum distance between two frames for a cut (0: equal, 1: nothing in common)."""
_ABOVE_MOTION = 2.0
"""Factor by which a cut exceeds the usual distance between the surrounding frames."""
_RETURN = 0.6
"""A flash is over when the picture has returned to within this fraction of the jump,
and closer than a cut."""
_REACH_ROWS, _REACH_COLUMNS = 4, 14
"""Maximum camera movement between two frames, in cells."""
_STILL = 0.1
"""Maximum dissimilarity at which no camera shift is searched for."""
_FULL = 0.7
"""Below this fraction of its contrast, a scene is still fading in."""
_NOISE = 4.0
"""Standard deviation in grey levels below which structure is not significant."""


@dataclass(frozen=True, slots=True, eq=False)
class _Look:
    cells: NDArray[np.float32]  # [rows, columns, 3], mean colours 0..255
    histogram: NDArray[np.float32]  # [3, bins], each row sums to 1


class CutDetector:
    """Decides for each frame whether a new scene starts with it.

    The decisions depend only on the frames, not on how they are pushed. The first frame
    is not a cut.
    """

    def __init__(self) -> None:
        self._looks: deque[_Look] = deque()
        self._steps: deque[float] = deque()  # distance of each look from the previous one
        self._first = 0  # frame number of the oldest look
        self._decided = 0

    def push(self, rgb_hwc: Picture) -> list[bool]:
        """Add one frame ``[height, width, 3]``, uint8 or uint16; return the decisions
        that are now final, in order."""
        look = _look(rgb_hwc)
        self._steps.append(_distance(self._looks[-1], look) if self._looks else 0.0)
        self._looks.append(look)
        answers: list[bool] = []
        while self._first + len(self._looks) > self._decided + LOOKAHEAD:
            answers.append(self._decide())
        return answers

    def flush(self) -> list[bool]:
        """Return the decisions for the last frames, and reset."""
        answers: list[bool] = []
        while self._first + len(self._looks) > self._decided:
            answers.append(self._decide())
        self._looks.clear()
        self._steps.clear()
        self._first = self._decided = 0
        return answers

    def _decide(self) -> bool:
        place = self._decided - self._first
        answer = place > 0 and self._is_cut(place)
        self._decided += 1
        if place >= LOOKAHEAD:
            self._looks.popleft()
            self._steps.popleft()
            self._first += 1
        return answer

    def _is_cut(self, place: int) -> bool:
        jump = self._steps[place]
        end = min(len(self._looks), place + LOOKAHEAD + 1)
        if jump < _LEAST:
            return self._follows_a_blank(place, end)
        around = [self._steps[i] for i in range(max(1, place - 4), min(end, place + 5)) if i != place]
        if around and jump < _ABOVE_MOTION * float(np.median(around)):
            return False
        before, after = self._looks[place - 1], self._looks[place]
        back = min(_RETURN * jump, _LEAST)
        if any(_distance(before, self._looks[i]) < back for i in range(place + 1, end)):
            return False
        return not any(_distance(self._looks[i], after) < back for i in range(place - 1))

    def _follows_a_blank(self, place: int, end: int) -> bool:
        """Return whether a new scene follows at full contrast after a few white or black frames."""
        after = self._looks[place]
        if _contrast(self._looks[place - 1]) > _NOISE or _contrast(after) <= 3 * _NOISE:
            return False
        if _contrast(after) < _FULL * max(_contrast(self._looks[i]) for i in range(place, end)):
            return False
        shown = [i for i in range(place - 1) if _contrast(self._looks[i]) > _NOISE]
        return bool(shown) and _distance(self._looks[shown[-1]], after) >= _LEAST


def _look(rgb_hwc: Picture) -> _Look:
    height, width = rgb_hwc.shape[:2]
    step = max(1, min(height // (4 * _ROWS), width // (4 * _COLUMNS)))
    few = rgb_hwc[::step, ::step]
    levels = (few >> 8).astype(np.uint8) if few.dtype == np.uint16 else few
    rows = np.arange(_ROWS) * levels.shape[0] // _ROWS
    columns = np.arange(_COLUMNS) * levels.shape[1] // _COLUMNS
    sums = np.add.reduceat(np.add.reduceat(levels, rows, axis=0, dtype=np.float32), columns, axis=1)
    heights = np.maximum(1, np.diff(rows, append=levels.shape[0]))
    widths = np.maximum(1, np.diff(columns, append=levels.shape[1]))
    cells = sums / (heights[:, None, None] * widths[None, :, None])
    counts = [np.bincount(levels[:, :, c].ravel() >> 4, minlength=_BINS) for c in range(3)]
    histogram = np.stack(counts) / levels[:, :, 0].size
    return _Look(cells.astype(np.float32), histogram.astype(np.float32))


def _distance(a: _Look, b: _Look) -> float:
    """Return the distance between two frames, 0 to 1: of structure under the best
    camera shift, and of colours. Colours count no more than structure, as a change of
    light alone is not a new scene.
    """
    colours = float(np.abs(a.histogram - b.histogram).sum()) / 6
    best = _likeness(a.cells, b.cells)
    if 1 - best > _STILL:
        coarse = [
            (_likeness_shifted(a, b, down, right), down, right)
            for down in range(-_REACH_ROWS, _REACH_ROWS + 1, 2)
            for right in range(-_REACH_COLUMNS, _REACH_COLUMNS + 1, 2)
        ]
        top, down, right = max(coarse)
        near = [_likeness_shifted(a, b, down + i, right + j) for i in (-1, 0, 1) for j in (-1, 0, 1) if i or j]
        best = max(best, top, *near)
    return (1 - best + min(colours, 1 - best)) / 2


def _likeness_shifted(a: _Look, b: _Look, down: int, right: int) -> float:
    return _likeness(_part(a.cells, down, right), _part(b.cells, -down, -right))


def _part(cells: NDArray[np.float32], down: int, right: int) -> NDArray[np.float32]:
    rows = slice(down, None) if down >= 0 else slice(None, down)
    columns = slice(right, None) if right >= 0 else slice(None, right)
    return cells[rows, columns]


def _contrast(look: _Look) -> float:
    return float(np.sqrt(((look.cells - look.cells.mean(axis=(0, 1))) ** 2).mean()))


def _likeness(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Return the correlation of two thumbnails without their mean colours, 0 to 1; two
    flat ones count as equal."""
    a, b = a - a.mean(axis=(0, 1)), b - b.mean(axis=(0, 1))
    floor = _NOISE**2
    spread = float(np.sqrt((a * a).mean() * (b * b).mean()))
    return max(0.0, (float((a * b).mean()) + floor) / (spread + floor))
