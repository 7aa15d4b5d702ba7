"""Deinterlacing and inverse telecine: the filters for a clip, and the number and times
of the resulting frames."""

from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from typing import Literal, Protocol

from ultraflash_cli.video.probe import ClipInfo

__all__ = ["Deinterlace", "FrameTimes", "about_fields", "filter_mode", "frames_of", "times_of", "with_deinterlacing"]

Deinterlace = Literal["auto", "frame", "field", "off"]
"""auto: deinterlace frames found to be interlaced, one output frame per input frame,
and restore the original frames of telecined film. frame: deinterlace all frames. field:
deinterlace all frames, one output frame per field. off: leave all frames unchanged."""

_MODES = {"flagged": "interlaced", "tff": "tff", "bff": "bff", "all": "all"}
_CYCLES = {"telecined": 5, "telecined25": 25}
"""Length of the telecine cycle in frames, each with one repeated film frame."""
_UNEVEN = Fraction(3, 2)
"""If frame durations in a cycle differ by a larger factor, a frame is missing, and the
others keep their times."""


def with_deinterlacing(info: ClipInfo, choice: Deinterlace) -> ClipInfo:
    """Return the clip as it will be read. With ``field`` it has twice as many frames,
    and ticks of half the length. Telecined film has four frames for every five, and
    ticks of a quarter of the length, so that the four frames have equal durations; or
    24 for every 25.
    """
    if choice == "auto":
        cycle = _CYCLES.get(info.scan)
        if cycle is None or info.first_field is None or info.has_alpha:
            return info
        return _retimed(replace(info, film=True), finer=cycle - 1, more=Fraction(cycle - 1, cycle))
    info = replace(info, watched=False)
    if choice == "off":
        return replace(info, scan="progressive", wrongly_flagged=False)
    known = info.scan if info.scan in ("tff", "bff") else info.first_field or "all"
    info = replace(info, scan=known, wrongly_flagged=False)
    return info if choice == "frame" else _retimed(replace(info, fields=True), finer=2, more=Fraction(2))


def frames_of(info: ClipInfo) -> ClipInfo:
    """Return a clip with the times of the frames in the file, even if ``info`` counts
    fields or film frames."""
    if info.fields:
        return _retimed(replace(info, fields=False), finer=Fraction(1, 2), more=Fraction(1, 2))
    if info.film:
        cycle = _CYCLES[info.scan]
        return _retimed(replace(info, film=False), finer=Fraction(1, cycle - 1), more=Fraction(cycle, cycle - 1))
    return info


def _retimed(info: ClipInfo, *, finer: Fraction | int, more: Fraction) -> ClipInfo:
    def scaled(pts: int | None) -> int | None:
        return None if pts is None else int(pts * finer)

    count = info.frame_count_estimate
    return replace(
        info,
        time_base=info.time_base / finer,
        average_rate=info.average_rate * more,
        start_pts=scaled(info.start_pts),
        end_pts=scaled(info.end_pts),
        frame_count_estimate=round(count * more) if count is not None else None,
    )


def filter_mode(info: ClipInfo) -> str | None:
    """Return the clip's ``deinterlace`` argument for ``color.rgb_filter``."""
    if info.film or info.scan in ("mixed", "shifted"):
        return f"film{_CYCLES[info.scan]}-{info.first_field}" if info.film else f"matched-{info.first_field}"
    return _MODES.get(info.scan)


def about_fields(info: ClipInfo, mode: str | None) -> str | None:
    """Describe what is done to the fields of the clip; None if nothing is done."""
    if info.film:
        rate, cycle = float(info.average_rate), _CYCLES[info.scan]
        return (
            "film with repeated fields (telecine); the original frames are restored with fieldmatch and decimate, "
            f"{cycle - 1} for every {cycle} ({rate:.3f} fps); --deinterlace off leaves all frames unchanged"
        )
    if mode is None:
        if info.repeated_field is not None and not info.wrongly_flagged:
            return (
                f"film at {float(info.average_rate):.3f} fps, with frames flagged to last two or three fields (soft "
                "telecine); the flagged durations are kept"
            )
        if info.wrongly_flagged:
            return (
                "flagged as interlaced, but the frames are progressive; left unchanged, --deinterlace frame overrides"
            )
        if info.scan in _CYCLES:
            return "telecined film (repeated fields); not deinterlaced, so some frames mix two moments"
        return None
    if info.scan == "mixed":
        return (
            "film with repeated fields (telecine) in parts of the clip only; every frame is kept: matching fields are "
            "joined with fieldmatch, and frames that remain combed are deinterlaced with bwdif"
        )
    if info.scan == "shifted":
        return "each frame contains fields of two neighbouring pictures; matching fields are joined with fieldmatch"
    if mode == "interlaced":
        return None

    wanted = "two frames" if info.fields else "one frame"
    return f"interlaced; deinterlaced with bwdif, {wanted} out per frame in"


class FrameTimes(Protocol):
    """Computes the times of output pictures from those of the input frames."""

    def push(self, pts: int, duration: int) -> None:
        """Record the times of a frame that is passed to the filters."""
        ...

    def take(self, count: int) -> Iterator[tuple[int, int]]:
        """Return timestamp and duration of the next ``count`` pictures, which the
        filters returned together."""
        ...

    @property
    def frames(self) -> int:
        """Number of frames in the filters."""
        ...


def times_of(info: ClipInfo) -> FrameTimes:
    """Return the object that computes the times of a clip's pictures."""
    return _FilmTimes(_CYCLES[info.scan]) if info.film else _EvenTimes(2 if info.fields else 1)


class _EvenTimes:
    def __init__(self, pictures: int) -> None:
        self._pictures = pictures
        self._waiting: deque[tuple[int, int]] = deque()

    @property
    def frames(self) -> int:
        return len(self._waiting) // self._pictures

    def push(self, pts: int, duration: int) -> None:
        # The ticks are shorter by this factor.
        self._waiting.extend((self._pictures * pts + n * duration, duration) for n in range(self._pictures))

    def take(self, count: int) -> Iterator[tuple[int, int]]:
        for _ in range(count):
            yield self._waiting.popleft()


class _FilmTimes:
    """Every ``cycle`` frames yield one picture less; an incomplete cycle at the end
    yields all its frames."""

    def __init__(self, cycle: int) -> None:
        self._cycle = cycle
        self._waiting: deque[tuple[int, int]] = deque()

    @property
    def frames(self) -> int:
        return len(self._waiting)

    def push(self, pts: int, duration: int) -> None:
        self._waiting.append((pts, duration))

    def take(self, count: int) -> Iterator[tuple[int, int]]:
        while count:
            if len(self._waiting) >= self._cycle and count >= self._cycle - 1:
                yield from self._split([self._waiting.popleft() for _ in range(self._cycle)])
                count -= self._cycle - 1
            else:
                pts, duration = self._waiting.popleft()
                yield (self._cycle - 1) * pts, (self._cycle - 1) * duration
                count -= 1

    @staticmethod
    def _split(frames: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
        start, end, pictures = frames[0][0], sum(frames[-1]), len(frames) - 1
        lengths = [duration for _, duration in frames]
        if max(lengths) <= _UNEVEN * min(lengths):
            for number in range(pictures):
                yield pictures * start + number * (end - start), end - start
            return
        places = [pts for pts, _ in frames[:pictures]] + [end]
        for place, following in pairwise(places):
            yield pictures * place, pictures * (following - place)
