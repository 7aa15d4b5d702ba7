"""Parts of a clip that begin at scene cuts and can be computed on their own."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = ["UNIT_FRAMES", "Span", "divide"]

UNIT_FRAMES = 240
"""Approximate minimum number of frames in a span, which a worker computes between two
claims."""
_MOST_SPANS = 64
"""Maximum number of spans in one clip."""


@dataclass(frozen=True, kw_only=True)
class Span:
    """The frames `first` to `end` (exclusive) of a clip; a scene begins with `first`."""

    first: int
    end: int
    cuts: tuple[int, ...] = ()
    """Scene starts inside the span, without its first frame."""

    @property
    def frames(self) -> int:
        """Count the frames."""
        return self.end - self.first


def divide(cuts: Iterable[int], total: int, *, least: int = UNIT_FRAMES) -> list[Span]:
    """Divide a clip of `total` frames at its scene cuts into spans of at least `least`
    frames, as far as the cuts allow. A short remainder is added to the previous span.
    No clip has more than 64 spans.
    """
    cuts = sorted(cuts)
    least = max(least, -(-total // _MOST_SPANS))
    borders = [0]
    for cut in cuts:
        if cut - borders[-1] >= least and total - cut >= -(-least // 2):
            borders.append(cut)
    return [_span(cuts, first, end) for first, end in zip(borders, [*borders[1:], total], strict=True)]


def _span(cuts: Sequence[int], first: int, end: int) -> Span:
    return Span(first=first, end=end, cuts=tuple(cut for cut in cuts if first < cut < end))
