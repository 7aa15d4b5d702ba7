"""Detect flat-coloured clips, such as drawings and screen recordings, to which a
generative model would add texture."""

from collections.abc import Iterable
from contextlib import suppress
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from ultraflash_cli.errors import InputError
from ultraflash_cli.video.decode import read_frames
from ultraflash_cli.video.probe import ClipInfo

__all__ = ["first_lumas", "is_flat_coloured"]

_BLOCK_PX = 8
_FLAT_LEVELS = 2
"""A block whose luma varies by at most this much is flat."""
_BLACK = 24
"""Flat blocks darker than this are ignored, as night scenes are full of them."""
_EDGE_LEVELS = 60
"""A block whose luma varies by more than this contains a hard edge."""
_LEAST_FLAT = 0.35
_LEAST_COMMON = 0.6
"""Minimum share of pixels with one of the eight most common luma values."""
_LEAST_EDGES = 0.2
"""Minimum share of hard edges among the blocks that are not flat."""


_LUMA_WEIGHTS = np.array((0.299, 0.587, 0.114), dtype=np.float32)


def first_lumas(info: ClipInfo, count: int) -> list[NDArray[np.uint8]]:
    """Return the luma planes [H, W] of the first ``count`` frames; fewer if the clip
    ends or cannot be decoded."""
    lumas: list[NDArray[np.uint8]] = []
    with suppress(InputError):
        for frame in islice(read_frames(info, warn=lambda _: None), count):
            deep = frame.rgb_hwc.dtype != np.uint8
            rgb = (frame.rgb_hwc >> 8 if deep else frame.rgb_hwc).astype(np.float32)
            lumas.append((rgb @ _LUMA_WEIGHTS).round().astype(np.uint8))
    return lumas


def is_flat_coloured(lumas_hw_u8: Iterable[NDArray[np.uint8]]) -> bool:
    """Return whether frames (luma planes) consist mostly of flat areas in a few tones,
    separated by hard edges."""
    measured = [_measure(luma) for luma in lumas_hw_u8]
    if not measured:
        return False
    flat, common, edges = np.mean(measured, axis=0)
    return bool(flat >= _LEAST_FLAT and common >= _LEAST_COMMON and edges >= _LEAST_EDGES)


def _measure(luma_hw: NDArray[np.uint8]) -> tuple[float, float, float]:
    """Return the shares of flat blocks that are not black, of the eight most common
    tones, and of hard edges."""
    rows, cols = (side // _BLOCK_PX for side in luma_hw.shape)
    if not rows or not cols:
        return 0.0, 0.0, 0.0
    blocks = luma_hw[: rows * _BLOCK_PX, : cols * _BLOCK_PX].reshape(rows, _BLOCK_PX, cols, _BLOCK_PX)
    spread = blocks.max(axis=(1, 3)).astype(int) - blocks.min(axis=(1, 3))
    is_flat = spread <= _FLAT_LEVELS
    common = np.sort(np.bincount(luma_hw.ravel(), minlength=256))[-8:].sum() / luma_hw.size
    rest = spread[~is_flat]
    edges = float((rest > _EDGE_LEVELS).mean()) if rest.size else 0.0
    return float((is_flat & (blocks.mean(axis=(1, 3)) >= _BLACK)).mean()), float(common), edges
