"""Parse the values of the old-footage options without loading a library."""

import re

from ultraflash_cli.errors import ConfigError

__all__ = ["read_crop", "read_shift"]

_FARTHEST_PX = 64


def read_crop(text: str) -> tuple[int, int, int, int] | None:
    """Read the value of `--crop`: pixels to cut off at the left, top, right and bottom;
    None for a word. Raises ConfigError for anything else.
    """
    if text in ("none", "auto"):
        return None
    if not re.fullmatch(r"\d{1,5}(,\d{1,5}){3}", text):
        raise ConfigError(f"--crop must be none, auto or LEFT,TOP,RIGHT,BOTTOM in pixels, got {text!r}")
    left, top, right, bottom = map(int, text.split(","))
    return left, top, right, bottom


def read_shift(text: str) -> tuple[float, float] | None:
    """Read the value of `--chroma-shift`: the shift of the colours in pixels to the
    right and down; None for a word. Raises ConfigError for anything else.
    """
    if text in ("none", "auto"):
        return None
    number = r"[+-]?\d{1,2}(\.\d{1,3})?"
    if not re.fullmatch(rf"{number},{number}", text):
        raise ConfigError(f"--chroma-shift must be none, auto or X,Y in pixels, such as 4,-1.5, got {text!r}")
    across, down = map(float, text.split(","))
    if max(abs(across), abs(down)) > _FARTHEST_PX:
        raise ConfigError(f"--chroma-shift moves by at most {_FARTHEST_PX} pixels, got {text!r}")
    return across, down
