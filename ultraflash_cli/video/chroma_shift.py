"""Measure the chroma shift of a picture, as on tapes."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ultraflash_cli.video.color import Picture
from ultraflash_cli.video.samples import middle_of, ycc_of

__all__ = ["ChromaMeter", "ChromaShift"]

ChromaShift = tuple[float, float]
"""Chroma shift in pixels to the right and down."""

_REACH = 12
"""Maximum shift searched for, in pixels."""
_LEAST = 0.75
"""Smaller shifts are not corrected unless requested: cameras and scalers differ by half a pixel."""
_LEAST_PICTURES = 3
_SPREAD = 0.8
"""Maximum median deviation of single measurements from their median, in pixels."""
_SOFT_PX = 2.0
_CLEAR = 0.12
"""Minimum similarity of the edges in luma and chroma for a conclusive measurement."""
_EDGES = 2.0
"""Minimum change of chroma between pixels that counts as an edge."""
_STEP = 0.25
"""Resolution of the measured shift: a quarter of a pixel."""


class ChromaMeter:
    """Compares the positions of edges in luma and chroma over pictures from the whole
    clip."""

    def __init__(self) -> None:
        self._found: list[tuple[float, float]] = []

    def push(self, pictures: Sequence[Picture]) -> None:
        """Add a run of consecutive pictures of the same size."""
        for picture in (pictures[0], pictures[-1]):
            if min(picture.shape[:2]) < 4 * _REACH:
                return
            luma, blue, red = (_soft(plane) for plane in ycc_of(middle_of(picture)))
            across = _peak(_edges(luma, 1), _edges(blue, 1) + _edges(red, 1), 1)
            down = _peak(_edges(luma, 0), _edges(blue, 0) + _edges(red, 0), 0)
            if across is not None and down is not None:
                self._found.append((across, down))

    def result(self) -> ChromaShift | None:
        """Return the shift; None if it is small or cannot be determined."""
        if len(self._found) < _LEAST_PICTURES:
            return None
        found = np.array(self._found)
        middle = np.median(found, axis=0)
        if (np.median(np.abs(found - middle), axis=0) > _SPREAD).any():
            return None
        shift = [round(float(each) / _STEP) * _STEP if abs(each) >= _LEAST else 0.0 for each in middle]
        return (shift[0], shift[1]) if any(shift) else None


def _soft(plane: NDArray[np.float32]) -> NDArray[np.float32]:
    taps = np.exp(-0.5 * (np.arange(-6, 7) / _SOFT_PX) ** 2).astype(np.float32)
    taps /= taps.sum()
    for axis in (0, 1):
        padded = np.pad(plane, [(6, 6) if axis == each else (0, 0) for each in (0, 1)], mode="edge")
        size = plane.shape[axis]
        moved = np.zeros_like(plane)
        for number, tap in enumerate(taps):
            moved += tap * padded.take(range(number, number + size), axis=axis)
        plane = moved
    return plane


def _edges(plane: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
    return np.abs(np.diff(plane, axis=axis))


def _peak(luma: NDArray[np.float32], colour: NDArray[np.float32], axis: int) -> float | None:
    """Return the shift at which the edges of luma and chroma match best; None if they
    hardly match."""
    if float(np.percentile(colour, 99)) < _EDGES:
        return None
    size = luma.shape[axis]
    inside = luma.take(range(_REACH, size - _REACH), axis=axis)
    inside = inside - inside.mean()
    likeness: list[float] = []
    for shift in range(-_REACH, _REACH + 1):
        other = colour.take(range(_REACH + shift, size - _REACH + shift), axis=axis)
        other = other - other.mean()
        power = float(np.sqrt((inside * inside).sum() * (other * other).sum()))
        likeness.append(float((inside * other).sum()) / (power + 1e-6))
    best = int(np.argmax(likeness))
    if not 0 < best < 2 * _REACH or likeness[best] < _CLEAR:
        return None
    before, at, after = likeness[best - 1 : best + 2]
    bend = before - 2 * at + after
    return best - _REACH + (0.5 * (before - after) / bend if bend < 0 else 0.0)
