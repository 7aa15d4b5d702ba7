"""Plan the sizes of an upscale: from any source size to the exact target, with the
model's x2 or x3."""

import math
import re
from dataclasses import dataclass
from fractions import Fraction

from ultraflash_cli.errors import ConfigError, UsageError

__all__ = [
    "LARGEST_SIDE_PX",
    "NAMED_SIDES",
    "SHORT_SIDES",
    "UpscalePlan",
    "plan_upscale",
    "read_res",
]

SHORT_SIDES = {"1k": 960, "2k": 1440}
"""Default targets by their short side in pixels; the long side follows from the aspect
ratio."""

NAMED_SIDES = {"1k": 960, "2k": 1440, "4k": 2160, "8k": 4320}
"""All named targets by their short side in pixels; names such as 1080p state it
themselves."""

WORTHWHILE = Fraction(6, 5)
"""Minimum enlargement at which a named target is chosen by default."""

LARGEST_SIDE_PX = 16384
"""Maximum length of a target's sides in pixels."""


@dataclass(frozen=True, kw_only=True)
class UpscalePlan:
    """The sizes of all steps as (height, width) in pixels, in coded orientation."""

    source: tuple[int, int]
    """Size of the clip."""
    enlarged: tuple[int, int]
    """Size of the model's input: that of the source or, beyond x3, that of the source
    enlarged by a fixed filter."""
    padded: tuple[int, int]
    """``enlarged`` padded by reflection to multiples required by the model."""
    scale: int
    """The model's growth per side."""
    target: tuple[int, int]
    """Size of the result."""

    @property
    def model_size(self) -> tuple[int, int]:
        """The model's output after cropping the padding; reduced to ``target`` if that
        is smaller."""
        return self.enlarged[0] * self.scale, self.enlarged[1] * self.scale

    @property
    def growth(self) -> float:
        """Growth of the side that grows more."""
        return max(self.target[0] / self.source[0], self.target[1] / self.source[1])


def plan_upscale(
    width_px: int,
    height_px: int,
    *,
    res: str | None = None,
    multiple_px: int = 16,
    downscale: bool = False,
    quarter_turn: bool = False,
) -> UpscalePlan:
    """Plan the upscale of a coded ``width_px`` x ``height_px`` clip.

    ``res`` is a name such as ``1k``, a short side such as ``1080p``, ``WxH`` (as
    shown), a factor such as ``2x`` or ``1.5x``, or None for the default target.
    ``quarter_turn`` means that the clip is displayed with a rotation of 90 or 270
    degrees. Raises UsageError for a ``res`` that cannot be read, for a target no larger
    than the source (unless it is ``1x`` or ``downscale``) and for one beyond 16384
    pixels.
    """
    target_w, target_h = _target(width_px, height_px, res, quarter_turn)
    if max(target_w, target_h) > LARGEST_SIDE_PX:
        raise UsageError(
            f"the source is {width_px}x{height_px}, the target {target_w}x{target_h}: "
            f"beyond {LARGEST_SIDE_PX} pixels "
            "per side; choose a smaller --res"
        )

    growth = max(Fraction(target_w, width_px), Fraction(target_h, height_px))
    shrinks = (
        target_w < width_px
        or target_h < height_px
        or (target_w, target_h) == (width_px, height_px)
    )
    if shrinks and not downscale and res != "1x":
        raise UsageError(
            f"the source is {width_px}x{height_px}, the target {target_w}x{target_h}: "
            "nothing to upscale; "
            "choose a larger --res, or use --downscale to process and then reduce it"
        )

    scale = 2 if growth <= 2 else 3
    enlarged_w, enlarged_h = width_px, height_px
    if growth > scale:
        enlarged_w, enlarged_h = math.ceil(target_w / scale), math.ceil(target_h / scale)
    return UpscalePlan(
        source=(height_px, width_px),
        enlarged=(enlarged_h, enlarged_w),
        padded=(_up_to(enlarged_h, multiple_px), _up_to(enlarged_w, multiple_px)),
        scale=scale,
        target=(target_h, target_w),
    )


def _up_to(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def _even(length: Fraction) -> int:
    """Round to the nearest even number, at least 2."""
    return max(2, 2 * math.floor(length / 2 + Fraction(1, 2)))


def _by_short_side(width: int, height: int, short: int) -> tuple[int, int]:
    if width <= height:
        return short, _even(Fraction(height * short, width))
    return _even(Fraction(width * short, height)), short


def _target(
    width: int, height: int, res: str | None, quarter_turn: bool
) -> tuple[int, int]:
    if res is None:
        for short in SHORT_SIDES.values():
            if Fraction(short, min(width, height)) >= WORTHWHILE:
                return _by_short_side(width, height, short)
        return 2 * width, 2 * height
    text = read_res(res)
    if text in NAMED_SIDES:
        return _by_short_side(width, height, NAMED_SIDES[text])
    if text.endswith("p"):
        return _by_short_side(width, height, _even(Fraction(text[:-1])))
    first, _, second = text.partition("x")
    if not second and "." in first:
        return _even(width * Fraction(first)), _even(height * Fraction(first))
    if not second:
        return width * int(first), height * int(first)
    shown = int(first), int(second)
    return (shown[1], shown[0]) if quarter_turn else shown


def read_res(text: str) -> str:
    """Return a target as a lower-case word for file names. Raises ConfigError for an
    invalid one."""
    word = text.strip().lower()
    if word in NAMED_SIDES or re.fullmatch(r"[1-9]\d?(\.\d{1,3})?x|[1-9]\d{1,4}p", word):
        return word
    size = re.fullmatch(r"(\d{1,9})x(\d{1,9})", word)
    if size is None:
        raise ConfigError(
            f"--res must be a name ({', '.join(NAMED_SIDES)}), a short side such as "
            "1080p, a size such as 1664x960 or a "
            f"factor from 1x to 99x, got {text!r}"
        )
    if min(int(size[1]), int(size[2])) < 2:
        raise ConfigError(f"--res {text}: sides must be at least 2 pixels")
    return word
