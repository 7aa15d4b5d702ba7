"""Side data that decoders attach to frames."""

from collections.abc import Iterable
from math import cos, radians, sin
from struct import pack
from typing import cast

import av
from av.sidedata.sidedata import SideData

__all__ = ["side_data"]


def side_data(frame: av.VideoFrame) -> dict[str, bytes]:
    """Return what is attached to ``frame``, by FFmpeg's names (``DISPLAYMATRIX``, ``CONTENT_LIGHT_LEVEL``).

    PyAV gives none at all if there is a kind that it does not know, such as the EXIF tags of photographs; of those
    frames only the rotation is known.
    """
    try:
        # The type hints call it a mapping of names; it gives what is attached, one after the other.
        return {data.type.name: bytes(data) for data in cast("Iterable[SideData]", frame.side_data)}
    except ValueError:
        clockwise = radians(-frame.rotation)
        if not frame.rotation:
            return {}
        across, along = round(65536 * cos(clockwise)), round(65536 * sin(clockwise))
        return {"DISPLAYMATRIX": pack("=9i", across, along, 0, -along, across, 0, 0, 0, 1 << 30)}
