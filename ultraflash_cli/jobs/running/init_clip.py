"""Read the end of a clip to continue, at the generator's rate and size."""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from fractions import Fraction

import numpy as np

from ultraflash_cli.errors import InputError
from ultraflash_cli.video.color import Picture, as_picture, resize_rgb
from ultraflash_cli.video.decode import read_frames
from ultraflash_cli.video.probe import ClipInfo

__all__ = ["fit_picture", "read_ending"]

_SLACK_S = 1
"""Extra seconds kept before the wanted part, for clips that are slightly shorter than
declared."""


def read_ending(
    info: ClipInfo,
    *,
    lengths: Sequence[int],
    rate: int,
    height_px: int,
    width_px: int,
    warn: Callable[[str], None],
    threads: int = 1,
) -> list[Picture]:
    """Read the last frames of a clip as 8-bit pictures `[height_px, width_px, 3]`,
    `rate` per second. Returns the longest of the `lengths` (ascending) for which the
    clip is long enough; frames are repeated or dropped to match the rate, never
    blended. Raises InputError for a clip that is shorter than all of them.
    """
    end_s = info.end_pts * info.time_base if info.end_pts is not None else None
    times_s, pictures, last_s = _read_from(info, end_s, lengths[-1], rate, (height_px, width_px), warn, threads)
    if end_s is None or last_s < end_s - _SLACK_S:
        # Only now is the end of the clip known.
        size = (height_px, width_px)
        times_s, pictures, last_s = _read_from(info, last_s, lengths[-1], rate, size, lambda _: None, threads)
    places = _places(times_s, lengths[-1], rate)
    fitting = [length for length in lengths if length <= len(places)]
    if not fitting:
        raise InputError(
            f"{info.path}: too short to continue from: {len(places)} frames at {rate} fps, need at least {lengths[0]}"
        )
    return [pictures[place] for place in places[-fitting[-1] :]]


def _read_from(
    info: ClipInfo,
    end_s: Fraction | None,
    frames: int,
    rate: int,
    size: tuple[int, int],
    warn: Callable[[str], None],
    threads: int,
) -> tuple[list[Fraction], list[Picture], Fraction]:
    """Return times and pictures shortly before `end_s` (none if it is None), and the
    last time."""
    times_s: list[Fraction] = []
    pictures: list[Picture] = []
    time_s = Fraction(0)
    for frame in read_frames(info, warn=warn, threads=threads):
        time_s = frame.pts * info.time_base
        if end_s is not None and time_s >= end_s - Fraction(frames, rate) - _SLACK_S:
            times_s.append(time_s)
            pictures.append(fit_picture(frame.rgb_hwc, info, *size))
    return times_s, pictures, time_s


def _places(times_s: Sequence[Fraction], most: int, rate: int) -> list[int]:
    """Choose the frames nearest to evenly spaced times that end with the last frame."""
    places: list[int] = []
    for steps in range(most):
        wanted_s = times_s[-1] - Fraction(steps, rate)
        if wanted_s < times_s[0] - Fraction(1, 2 * rate):
            break
        after = bisect_left(times_s, wanted_s)
        before = max(0, after - 1)
        places.append(before if wanted_s - times_s[before] <= abs(times_s[after] - wanted_s) else after)
    return places[::-1]


def fit_picture(rgb_hwc: Picture, info: ClipInfo, height_px: int, width_px: int) -> Picture:
    """Rotate a frame upright, crop its centre to the target shape, and resample it in 8
    bits."""
    upright = np.rot90(rgb_hwc, -(info.rotation_deg // 90) % 4)
    pixel_aspect = info.sample_aspect_ratio
    if info.rotation_deg in (90, 270):
        pixel_aspect = 1 / pixel_aspect
    height, width = upright.shape[:2]
    shape = Fraction(width_px, height_px) / pixel_aspect
    if Fraction(width, height) > shape:
        cut_height, cut_width = height, max(1, round(height * shape))
    else:
        cut_height, cut_width = max(1, round(width / shape)), width
    top, left = (height - cut_height) // 2, (width - cut_width) // 2
    middle = as_picture(upright[top : top + cut_height, left : left + cut_width])
    fitted = resize_rgb(middle, width_px, height_px)
    if fitted.dtype == np.uint8:
        return fitted
    return as_picture(((fitted.astype(np.uint32) + 128) // 257).astype(np.uint8))
