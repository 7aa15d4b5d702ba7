"""Which frames of a clip are deinterlaced, and into how many frames."""

from dataclasses import replace
from typing import Literal

from ultraflash_cli.video.probe import ClipInfo

__all__ = ["Deinterlace", "filter_mode", "frames_of", "with_deinterlacing"]

Deinterlace = Literal["auto", "frame", "field", "off"]
"""auto: what is found to be interlaced, one frame out per frame in. frame: all of it. field: all of it, one frame
out for each field. off: nothing."""

_MODES = {"flagged": "interlaced", "tff": "tff", "bff": "bff", "all": "all"}


def with_deinterlacing(info: ClipInfo, choice: Deinterlace) -> ClipInfo:
    """Return a clip as it is to be read; with ``field`` it has twice the frames, and ticks half as long."""
    if choice == "auto":
        return info
    if choice == "off":
        return replace(info, scan="progressive", wrongly_flagged=False)
    known = info.scan if info.scan in ("tff", "bff") else "all"
    info = replace(info, scan=known, wrongly_flagged=False)
    if choice == "frame":
        return info
    count = info.frame_count_estimate
    return replace(
        info,
        fields=True,
        time_base=info.time_base / 2,
        average_rate=info.average_rate * 2,
        start_pts=_scaled(info.start_pts),
        end_pts=_scaled(info.end_pts),
        frame_count_estimate=count * 2 if count is not None else None,
    )


def frames_of(info: ClipInfo) -> ClipInfo:
    """Return a clip with the times of its frames where ``info`` counts fields."""
    if not info.fields:
        return info
    return replace(
        info,
        fields=False,
        time_base=info.time_base * 2,
        average_rate=info.average_rate / 2,
        start_pts=info.start_pts // 2 if info.start_pts is not None else None,
        end_pts=info.end_pts // 2 if info.end_pts is not None else None,
    )


def filter_mode(info: ClipInfo) -> str | None:
    """Return what ``color.rgb_filter`` takes for the clip."""
    return _MODES.get(info.scan)


def _scaled(pts: int | None) -> int | None:
    return None if pts is None else pts * 2
