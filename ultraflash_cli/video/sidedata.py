"""What decoders attach to frames beside the picture."""

from math import cos, radians, sin
from struct import pack

import av

__all__ = ["side_data"]


def side_data(frame: av.VideoFrame) -> dict[str, bytes]:
    """Give what is attached to ``frame``, by FFmpeg's names (``DISPLAYMATRIX``, ``CONTENT_LIGHT_LEVEL``).

    PyAV gives none at all where there is a kind that it does not know, such as the EXIF tags of photographs; of those
    frames only the rotation is known.
    """
    try:
        return {data.type.name: bytes(data) for data in frame.side_data}
    except ValueError:
        clockwise = radians(-frame.rotation)
        if not frame.rotation:
            return {}
        across, along = round(65536 * cos(clockwise)), round(65536 * sin(clockwise))
        return {"DISPLAYMATRIX": pack("=9i", across, along, 0, -along, across, 0, 0, 0, 1 << 30)}
