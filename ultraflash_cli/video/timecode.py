"""Time codes of cameras and studios (``01:02:03:04``), counted in frames."""

import re
from fractions import Fraction

__all__ = ["moved_timecode"]

_TIMECODE = re.compile(r"(\d\d):(\d\d):(\d\d)([:;.])(\d\d)")
_DAY_S = 24 * 3600
_FASTEST = 100
"""Highest frame rate that two digits can represent."""


def moved_timecode(text: str, *, by_s: Fraction, source_rate: Fraction, rate: Fraction) -> str | None:
    """Return the time code of the frame shown ``by_s`` after the one at ``text``,
    counted at ``rate``. A semicolon before the frames marks drop-frame time code, which
    keeps 30000/1001 frames per second in step with the clock. None if the text is no
    time code or cannot be counted at these rates.
    """
    parts = _TIMECODE.fullmatch(text.strip())
    counted_in, counted = round(source_rate), round(rate)
    drops = parts is not None and parts[4] != ":"
    if parts is None or counted_in < 1 or not 1 <= counted <= _FASTEST or int(parts[5]) >= counted_in:
        return None
    if drops and (counted % 30 or counted_in % 30):
        return None
    hours, minutes, seconds, frames = (int(parts[group]) for group in (1, 2, 3, 5))
    number = (hours * 3600 + minutes * 60 + seconds) * counted_in + frames
    skipped = counted_in // 15 if drops else 0
    number -= skipped * (hours * 60 + minutes - (hours * 60 + minutes) // 10)
    number = round((Fraction(number) / source_rate + by_s) * rate)
    if drops:
        skipped = counted // 15
        tens, rest = divmod(number, counted * 600 - 9 * skipped)
        number += 9 * skipped * tens + skipped * max(0, (rest - skipped) // (counted * 60 - skipped))
    seconds, frames = divmod(number, counted)
    seconds %= _DAY_S
    mark = ";" if drops else ":"
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}{mark}{frames:02d}"
