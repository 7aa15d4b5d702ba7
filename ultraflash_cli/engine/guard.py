"""Limit how far a downscaled result departs from its source."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ultraflash_cli.engine.layers.resample import lanczos_resize

__all__ = ["Counting", "Guard"]

Counting = Callable[[], tuple[int, int]]
"""A function that returns the numbers of pixels beyond the limit and of all compared
pixels; it waits for the device if necessary."""

_REACH = 5
"""Side, in source pixels, of the square that is blended around a pixel beyond the
limit."""
_SOFT = 3
"""Width of the fade-out of the blend."""


class Guard:
    """Blends a picture towards plain resampling where it departs from its source.

    Both are compared at the smaller of their sizes, channel by channel. Where the
    largest difference exceeds ``levels`` of 255, the blend reduces it to about that
    limit; a picture within the limit is returned unchanged. Pixels beyond the limit are
    counted.
    """

    def __init__(self, levels: float) -> None:
        assert levels > 0, "a limit is more than nothing"
        self.levels = levels
        self._strayed: Tensor | int = 0
        self._pixels = 0

    @property
    def share(self) -> float | None:
        """Share of compared pixels beyond the limit; None before the first picture."""
        return float(self._strayed) / self._pixels if self._pixels else None

    def counting(self) -> Counting:
        """Return the current counts, without waiting for a GPU."""
        pixels, strayed = self._pixels, self._strayed
        if not isinstance(strayed, Tensor):
            return lambda: (strayed, pixels)
        here = torch.empty((), dtype=strayed.dtype, pin_memory=True)
        here.copy_(strayed, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record()

        def wait() -> tuple[int, int]:
            copied.synchronize()
            return int(here), pixels

        return wait

    def clear(self) -> None:
        """Reset the counts."""
        self._strayed, self._pixels = 0, 0

    def hold(
        self, picture_nchw: Tensor, source_nchw: Tensor, plain: Callable[[], Tensor]
    ) -> Tensor:
        """Return the picture, limited. ``plain`` returns the plain resampling at the
        picture's size. On a CPU it is called only if needed; on a GPU that check would
        have to wait for the device.
        """
        limit = self.levels / 255
        stray = _stray(picture_nchw, source_nchw)
        astray = stray > limit
        count = astray.sum()
        self._pixels += astray.numel()
        self._strayed = self._strayed + (count if count.is_cuda else int(count))
        if not count.is_cuda and not count:
            return picture_nchw
        return _blended(picture_nchw, plain(), stray, limit)


def _blended(
    picture_nchw: Tensor, plain_nchw: Tensor, stray: Tensor, limit: float
) -> Tensor:
    """Blend in just enough plain resampling to stay within the limit. ``stray [N, 1, h,
    w]`` is the difference from the source per pixel.
    """
    # Share of plain resampling that reduces a difference to the limit.
    need = (1 - limit / stray.clamp_min(limit)).where(stray > limit, 0.0)
    need = F.max_pool2d(need, _REACH, stride=1, padding=_REACH // 2)
    need = F.avg_pool2d(need, _SOFT, 1, _SOFT // 2, count_include_pad=False)
    size = picture_nchw.shape[2:]
    weight = F.interpolate(need, size=size, mode="bilinear", align_corners=False)
    blended = torch.lerp(picture_nchw, plain_nchw, weight)
    return blended.where(weight > 0, picture_nchw)


def _stray(picture_nchw: Tensor, source_nchw: Tensor) -> Tensor:
    """Return the largest difference over channels, ``[N, 1, h, w]``, at the smaller
    size."""
    pairs = zip(picture_nchw.shape[2:], source_nchw.shape[2:], strict=True)
    height, width = (min(pair) for pair in pairs)
    small, wanted = (
        x if x.shape[2:] == (height, width) else lanczos_resize(x, height, width)
        for x in (picture_nchw.clamp(0, 1), source_nchw)
    )
    return (small - wanted).abs().amax(1, keepdim=True)
