"""One pass over two clips of the same size: temporal and warping error, colour drift,
and the largest differences."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ultraflash_cli.errors import InputError
from ultraflash_cli.metrics.ffmpeg import Planes
from ultraflash_cli.metrics.warping import warping_error

__all__ = ["Crop", "PairScores", "compare_planes", "distinct_crops", "worst_places"]

_BLOCK_PX = 16
_FLOW_PX = 270
"""Motion is estimated on pictures whose short side is at most this long."""


_CROPS_OF_A_FRAME = 3
_ENOUGH = 3
"""If there are fewer crops, the same position may be shown again at another time."""
_DISTINCT_FRAMES = 50
_DISTINCT_SHARE = 4
"""Frames at least a quarter of the clip apart are assumed to show different content."""


class Crop(NamedTuple):
    """A position at which two frames differ."""

    frame: int
    top_px: int
    left_px: int
    error_levels: float
    """Mean absolute difference of luma."""


@dataclass
class PairScores:
    """Metrics of each frame, in 8-bit levels; those of temporal differences are 0 for
    the first frame."""

    tdiff: list[float] = field(default_factory=list[float])
    """Root mean square error of luma frame differences."""
    warping: list[float | None] = field(default_factory=list[float | None])
    """Change of the output along the reference's motion; None for frames on which it was not measured."""
    warping_reference: list[float | None] = field(default_factory=list[float | None])
    """The same for the reference."""
    drift_y: list[float] = field(default_factory=list[float])
    """Mean of output minus reference, luma."""
    drift_cb: list[float] = field(default_factory=list[float])
    drift_cr: list[float] = field(default_factory=list[float])
    crops: list[Crop] = field(default_factory=list[Crop])
    """The largest errors of each frame, without overlap, in decreasing order."""


def compare_planes(
    outputs: Iterable[Planes],
    references: Iterable[Planes],
    *,
    crop_px: int,
    names: tuple[str, str],
    warped_every: int = 1,
) -> PairScores:
    """Compare two clips frame by frame. ``crop_px`` is the side of the crops, ``names``
    are the names of output and reference in errors. The warping error, which takes
    longer than everything else, is measured on every ``warped_every``-th frame. Raises
    InputError if sizes or frame counts differ.
    """
    scores = PairScores()
    before: tuple[Planes, Planes] | None = None
    for number, (output, reference) in enumerate(_paired(outputs, references, names)):
        error = output.y_hw.astype(np.float32) - reference.y_hw
        earlier = None if before is None else before[0].y_hw.astype(np.float32) - before[1].y_hw
        scores.tdiff.append(0.0 if earlier is None else float(np.sqrt(np.mean((error - earlier) ** 2))))

        along, own = None, None
        if before is None:
            along, own = 0.0, 0.0
        elif (number - 1) % warped_every == 0:
            along, own = _warping(output, reference, before)
        scores.warping.append(along)
        scores.warping_reference.append(own)

        scores.drift_y.append(float(error.mean()))
        scores.drift_cb.append(float(output.cb_hw.mean(dtype=np.float64) - reference.cb_hw.mean(dtype=np.float64)))
        scores.drift_cr.append(float(output.cr_hw.mean(dtype=np.float64) - reference.cr_hw.mean(dtype=np.float64)))
        scores.crops += worst_places(np.abs(error), number, crop_px)
        before = output, reference

    if not scores.tdiff:
        raise InputError(f"{names[0]}: no frames to compare")
    scores.crops.sort(key=lambda crop: -crop.error_levels)
    return scores


def _paired(
    outputs: Iterable[Planes], references: Iterable[Planes], names: tuple[str, str]
) -> Iterator[tuple[Planes, Planes]]:
    for count, (output, reference) in enumerate(zip_longest(outputs, references)):
        if output is None or reference is None:
            shorter, longer = names if output is None else reversed(names)
            length = "one frame" if count == 1 else f"{count} frames"
            raise InputError(f"{shorter} ends after {length}, {longer} is longer; compare clips of the same length")
        if output.y_hw.shape != reference.y_hw.shape:
            sizes = " and ".join(f"{each.y_hw.shape[1]}x{each.y_hw.shape[0]}" for each in (output, reference))
            raise InputError(f"{names[0]} and {names[1]} are {sizes}; compare clips of the same size")
        yield output, reference


def _warping(output: Planes, reference: Planes, before: tuple[Planes, Planes]) -> tuple[float, float]:
    factor = max(1, round(min(output.y_hw.shape) / _FLOW_PX))
    now = (_shrunk(output.y_hw, factor), _shrunk(reference.y_hw, factor))
    earlier = (_shrunk(before[0].y_hw, factor), _shrunk(before[1].y_hw, factor))
    return warping_error(now[0], earlier[0], now[1], earlier[1])


def _shrunk(plane: NDArray[np.uint8], factor: int) -> NDArray[np.float32]:
    height, width = (side // factor * factor for side in plane.shape)
    blocks = plane[:height, :width].reshape(height // factor, factor, width // factor, factor)
    return blocks.mean(axis=(1, 3), dtype=np.float32)


def distinct_crops(crops: Sequence[Crop], *, count: int, frames: int, crop_px: int) -> list[Crop]:
    """Choose the crops with the largest errors, without repeating content. ``crops``
    are sorted by decreasing error. Overlapping crops are used only if there are too few
    others, and only from frames that are far apart in the clip.
    """
    chosen: list[Crop] = []
    for far in (frames, max(_DISTINCT_FRAMES, frames // _DISTINCT_SHARE)):
        for crop in crops:
            near = [each for each in chosen if abs(each.frame - crop.frame) < far]
            if len(chosen) < (count if far == frames else _ENOUGH) and not any(
                _overlap(each, crop, crop_px) for each in near
            ):
                chosen.append(crop)
    return sorted(chosen, key=lambda crop: -crop.error_levels)


def _overlap(a: Crop, b: Crop, crop_px: int) -> bool:
    return abs(a.top_px - b.top_px) < crop_px and abs(a.left_px - b.left_px) < crop_px


def worst_places(error_hw: NDArray[np.float32], frame: int, crop_px: int) -> list[Crop]:
    """Return non-overlapping squares with the largest mean error, on a grid of
    blocks."""
    height, width = error_hw.shape
    block = min(_BLOCK_PX, height, width)
    rows, columns = height // block, width // block
    blocks = error_hw[: rows * block, : columns * block].reshape(rows, block, columns, block).mean(axis=(1, 3))
    side = max(1, min(crop_px // block, rows, columns))
    total = np.pad(blocks.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    sums = total[side:, side:] - total[:-side, side:] - total[side:, :-side] + total[:-side, :-side]
    found: list[Crop] = []
    for _ in range(_CROPS_OF_A_FRAME):
        top, left = map(int, np.unravel_index(int(sums.argmax()), sums.shape))
        if sums[top, left] < 0:  # everything left overlaps
            break
        found.append(Crop(frame, top * block, left * block, float(sums[top, left] / side**2)))
        sums[max(0, top - side + 1) : top + side, max(0, left - side + 1) : left + side] = -1
    return found
