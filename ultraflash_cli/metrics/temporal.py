"""Temporal difference: how closely the changes of a clip follow those of its
reference."""

from itertools import zip_longest
from pathlib import Path

import numpy as np

from ultraflash_cli.errors import InputError
from ultraflash_cli.metrics.ffmpeg import read_luma

__all__ = ["temporal_difference"]


def temporal_difference(output: Path, reference: Path) -> float:
    """Return the mean over time of the root mean square error of frame differences, in 8-bit levels of luma.

    With ``o`` and ``r`` the two clips: ``rms((o[t] - o[t-1]) - (r[t] - r[t-1]))``.
    Flicker and swimming texture raise it, but a constant error does not. A clip of one
    frame has no differences and scores 0. Raises InputError if a clip cannot be read or
    sizes or frame counts differ.
    """
    errors: list[float] = []
    before: np.ndarray | None = None
    count = 0
    for count, (out_hw, ref_hw) in enumerate(zip_longest(read_luma(output), read_luma(reference)), start=1):
        if out_hw is None or ref_hw is None:
            shorter = output if out_hw is None else reference
            raise InputError(f"{shorter}: ends after {count - 1} frames, the other clip is longer")
        if out_hw.shape != ref_hw.shape:
            sizes = " and ".join(f"{plane.shape[1]}x{plane.shape[0]}" for plane in (out_hw, ref_hw))
            raise InputError(f"{output} and {reference} are {sizes}; compare clips of the same size")
        error_hw = out_hw.astype(np.float32) - ref_hw
        if before is not None:
            errors.append(float(np.sqrt(np.mean((error_hw - before) ** 2))))
        before = error_hw
    if not count:
        raise InputError(f"{output}: no frames to compare")
    return float(np.mean(errors)) if errors else 0.0
