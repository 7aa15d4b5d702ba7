"""Side data that decoders attach to frames."""

from collections.abc import Iterable
from math import cos, radians, sin
from struct import pack
from typing import cast

import av
from av.sidedata.sidedata import SideData

__all__ = ["side_data"]


def side_data(frame: av.VideoFrame) -> dict[str, bytes]:
    """Return the side data of ``frame`` by FFmpeg's names (``DISPLAYMATRIX``,
    ``CONTENT_LIGHT_LEVEL``). PyAV fails on frames with an unknown kind, such as EXIF
    tags of photographs; for those only the rotation is returned.
    """
    try:
        # The type hints declare a mapping by name; it iterates over the side data
        # themselves.
        return {data.type.name: bytes(data) for data in cast("Iterable[SideData]", frame.side_data)}
    except ValueError:
        clockwise = radians(-frame.rotation)
        if not frame.rotation:
            return {}
        across, along = round(65536 * cos(clockwise)), round(65536 * sin(clockwise))
        return {"DISPLAYMATRIX": pack("=9i", across, along, 0, -along, across, 0, 0, 0, 1 << 30)}
