"""The selected range of a clip: `--start`, `--end` and `--preview`."""

import re
from fractions import Fraction

from ultraflash_cli.errors import UsageError

__all__ = ["Window", "choose_window", "is_still", "parse_time"]

Window = tuple[Fraction, Fraction]
"""Start and end (exclusive) in seconds on the input's clock."""

_NUMBER = r"\d+(?:\.\d*)?|\.\d+"
_FOREVER_S = Fraction(10**9)


def parse_time(text: str, *, duration_s: Fraction | None) -> Fraction:
    """Read `12.5`, `12.5s`, `mm:ss.fff`, `hh:mm:ss.fff` or `25%` as seconds from the clip's start.

    Raises UsageError for anything else, and for a percentage of a clip of unknown length.
    """
    text = text.strip()
    if match := re.fullmatch(rf"({_NUMBER})\s*s?", text):
        return Fraction(match[1])
    if match := re.fullmatch(r"(?:(\d+):)?([0-5]?\d):([0-5]?\d(?:\.\d*)?)", text):
        return int(match[1] or 0) * 3600 + int(match[2]) * 60 + Fraction(match[3])
    if match := re.fullmatch(rf"({_NUMBER})%", text):
        if duration_s is None:
            raise UsageError(f"{text}: the length of the input is unknown; use seconds instead")
        if Fraction(match[1]) > 100:
            raise UsageError(f"{text}: a percentage must be at most 100%")
        return Fraction(match[1]) / 100 * duration_s
    raise UsageError(f"invalid time {text!r}; use seconds (12.5), mm:ss.fff or a percentage (25%)")


def is_still(preview: str | None) -> bool:
    """Return whether a preview is a single frame: `frame` or `frame@POSITION`."""
    return preview is not None and preview.partition("@")[0].strip().lower() == "frame"


def choose_window(
    *, start: str | None, end: str | None, preview: str | None, clip_start_s: Fraction, duration_s: float | None
) -> Window | None:
    """Convert the three options to a window on the input's clock; None for the whole
    clip. Raises UsageError. The clip's start is exact, so that a window from there
    includes the first frame.
    """
    if start is None and end is None and preview is None:
        return None
    length_s = Fraction(duration_s) if duration_s is not None else None
    if preview is not None:
        if start is not None or end is not None:
            raise UsageError("--preview cannot be combined with --start or --end; remove one")
        wanted, at, place = preview.partition("@")
        first_s = parse_time(place if at else "0", duration_s=length_s)
        last_s = first_s + parse_time(wanted, duration_s=length_s)
    else:
        first_s = parse_time(start, duration_s=length_s) if start is not None else Fraction(0)
        last_s = parse_time(end, duration_s=length_s) if end is not None else _FOREVER_S
    if first_s >= last_s:
        raise UsageError(
            f"the range from {float(first_s):g} s to {float(last_s):g} s is empty; --start must be before --end"
        )
    if length_s is not None and first_s >= length_s:
        raise UsageError(f"--start is at {float(first_s):g} s, but the clip is only {float(length_s):.3f} s long")
    return clip_start_s + first_s, clip_start_s + last_s
