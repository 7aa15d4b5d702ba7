"""Find the parts of a picture outside the scene: black bars, and a tape's head-switching lines."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ultraflash_cli.video.color import Picture
from ultraflash_cli.video.crop import Crop
from ultraflash_cli.video.samples import luma_of

__all__ = ["BorderMeter"]

_BLACK = 40.0
"""Maximum level that counts as black, which tapes raise."""
_ABOVE_BLACK = 14.0
_DARK = 50.0
"""If the brightest parts of a picture are darker than this, bars cannot be
distinguished from the scene."""
_LEAST_PICTURES = 3
_MOST_SHARE = 0.36
"""Maximum size of a bar as a fraction of a side; 2.76:1 within 4:3 leaves bars of
0.26."""
_SOFT_PX = 4
_SOFT = 0.55
"""The first inner lines darker than this fraction of the next ones belong to the soft
edge of the bar."""
_HEAD_LINES = 24
"""Lines at the bottom, of 480 or more, that may contain the head switching."""
_HEAD_SHARE = 20
_LIKE = 0.5
"""Minimum similarity of neighbouring lines in a scene that has enough detail to measure
it."""
_TORN = 0.5
"""Neighbouring lines are torn if their similarity is below this fraction of the usual
one."""
_AGREE = 0.7
"""Minimum fraction of the pictures in which they are torn."""
_UNRULY = 0.6
"""Minimum fraction of the lines below a tear, or of the pictures, that must confirm
it."""
_LEAST_MOVED_PX = 3
_SMOOTH_PX = 15
_LOOKED_AT_PX = 512
"""Of larger pictures, only every n-th line or column is examined."""


class BorderMeter:
    """Collects the brightness of lines and columns, and the similarity of neighbouring
    lines, over pictures from the whole clip."""

    def __init__(self) -> None:
        self._rows: list[NDArray[np.float32]] = []
        self._columns: list[NDArray[np.float32]] = []
        self._likeness: list[NDArray[np.float32]] = []
        self._last: list[NDArray[np.float32]] = []  # the last lines, high-pass filtered

    def push(self, pictures: Sequence[Picture]) -> None:
        """Add a run of consecutive pictures of the same size."""
        for picture in (pictures[0], pictures[-1]):
            luma = luma_of(picture)
            if min(luma.shape) < 4 * _SOFT_PX:
                continue
            fine = _fine(luma)
            self._likeness.append(_likeness(fine))
            self._last.append(fine[-3 * _HEAD_LINES :])
            down, across = (-(-side // _LOOKED_AT_PX) for side in luma.shape)
            if float(np.percentile(luma[::down, ::across], 98)) >= _DARK:
                self._rows.append(np.percentile(luma[:, ::across], 90, axis=1).astype(np.float32))
                self._columns.append(np.percentile(luma[::down], 90, axis=0).astype(np.float32))

    def result(self) -> Crop | None:
        """Return the crop, which leaves even sides; None if there is nothing to
        crop."""
        top, bottom = _bars(self._rows)
        left, right = _bars(self._columns)
        bottom += self._switching(bottom)
        if self._rows:
            height, width = len(self._rows[0]), len(self._columns[0])
            # Chroma is stored for pairs of lines and columns.
            bottom += (height - top - bottom) % 2 if top or bottom else 0
            right += (width - left - right) % 2 if left or right else 0
        crop = Crop(left_px=left, top_px=top, right_px=right, bottom_px=bottom)
        return crop if crop != Crop() else None

    @property
    def head_lines(self) -> int:
        """Number of head-switching lines at the bottom, above any bar."""
        return self._switching(_bars(self._rows)[1])

    def _switching(self, bar: int) -> int:
        """Find the topmost line near the bottom at which most pictures are torn."""
        if len(self._likeness) < _LEAST_PICTURES:
            return 0
        likeness = np.stack(self._likeness)
        likeness = likeness[:, : likeness.shape[1] - bar] if bar else likeness
        lines = likeness.shape[1]
        zone = min(_HEAD_LINES, lines // _HEAD_SHARE)
        usual = float(np.median(likeness[:, lines * 6 // 10 : lines - zone - 2]))
        if zone < 3 or usual < _LIKE:
            return 0
        torn = np.percentile(likeness[:, lines - zone :], 100 * _AGREE, axis=0) < _TORN * usual
        # Two lines of each field are compared, so that a tear shows in two lines.
        torn[:-1] &= torn[1:]
        places = np.flatnonzero(torn[:-1])
        if not len(places):
            return 0
        size = int(zone - places[0])
        # The edge of a table looks torn as well, but only there, and the lines below it
        # are not displaced.
        is_unruly = torn[places[0] : -1].mean() >= _UNRULY
        return size if is_unruly or self._is_displaced(size + bar) else 0

    def _is_displaced(self, size: int) -> bool:
        """Whether in most pictures the first torn line resembles the previous one,
        shifted sideways."""
        moved = 0
        for lines in self._last:
            if len(lines) < size + 2:
                return False
            torn, whole = lines[-size], lines[-size - 2]
            waves = np.fft.rfft(torn) * np.conj(np.fft.rfft(whole))
            likeness = np.fft.irfft(waves, len(torn)) / (np.linalg.norm(torn) * np.linalg.norm(whole) + 1e-3)
            shift = int(np.argmax(likeness))
            moved += likeness[shift] > _LIKE and min(shift, len(torn) - shift) >= _LEAST_MOVED_PX
        return moved >= _UNRULY * len(self._last)


def _bars(levels: list[NDArray[np.float32]]) -> tuple[int, int]:
    """Return how many lines at each end are black in all pictures, including the soft
    edge of the bar."""
    if len(levels) < _LEAST_PICTURES:
        return 0, 0
    brightest = np.percentile(np.stack(levels), 95, axis=0)
    mean = np.stack(levels).mean(axis=0)
    black = float(brightest.min())
    if black > _BLACK:
        return 0, 0
    is_bar = brightest <= black + _ABOVE_BLACK
    return _bar(is_bar, mean, black), _bar(is_bar[::-1], mean[::-1], black)


def _bar(is_bar: NDArray[np.bool_], mean: NDArray[np.float32], black: float) -> int:
    inside = np.flatnonzero(~is_bar)
    size = int(inside[0]) if len(inside) else 0
    if not size or size > _MOST_SHARE * len(is_bar):
        return 0
    for _ in range(_SOFT_PX):
        behind = mean[size + 2 : size + 5]
        if not len(behind) or mean[size] - black >= _SOFT * float(behind.mean() - black):
            break
        size += 1
    return size


def _fine(luma: NDArray[np.float32]) -> NDArray[np.float32]:
    """Remove structure broader than a few pixels from each line."""
    sums = np.cumsum(np.pad(luma, ((0, 0), (_SMOOTH_PX // 2 + 1, _SMOOTH_PX // 2)), mode="edge"), axis=1)
    return (luma - (sums[:, _SMOOTH_PX:] - sums[:, :-_SMOOTH_PX]) / _SMOOTH_PX).astype(np.float32)


def _likeness(fine: NDArray[np.float32]) -> NDArray[np.float32]:
    """Correlate each line with the one two above it; the first two are 1."""
    power = np.sqrt((fine * fine).sum(axis=1))
    likeness = np.ones(len(fine), dtype=np.float32)
    likeness[2:] = (fine[2:] * fine[:-2]).sum(axis=1) / (power[2:] * power[:-2] + 1e-3)
    return likeness
