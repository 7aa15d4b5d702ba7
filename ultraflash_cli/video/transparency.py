"""Detect transparency, and whether it can be read."""

from collections.abc import Iterator
from typing import cast

import av
import numpy as np
from av.video.stream import VideoStream
from numpy.typing import NDArray

from ultraflash_cli.video.color import alpha_planes, as_picture

__all__ = ["has_alpha_layer", "is_transparent", "stores_alpha"]

_PREFIX_SEI = 39
_ALPHA_CHANNEL = 165
"""HEVC message (SEI) that announces an auxiliary layer with transparency."""
_PACKED_ALPHA = {"rgba": 3, "bgra": 3, "argb": 0, "abgr": 0}
"""Index of alpha among the four bytes of a pixel."""
_LINES = 256
"""Number of lines examined at once."""


def stores_alpha(frame: av.VideoFrame) -> bool:
    """Return whether the pixel format of ``frame`` has an alpha component."""
    return frame.format.name == "pal8" or any(component.is_alpha for component in frame.format.components)


def is_transparent(stream: VideoStream, frame: av.VideoFrame) -> bool:
    """Return whether the container declares transparency, or a pixel of ``frame`` is
    not opaque."""
    if any(key.lower() == "alpha_mode" and value == "1" for key, value in stream.metadata.items()):
        return True
    return stores_alpha(frame) and not all(bool(part.all()) for part in _opaque(frame))


def _opaque(frame: av.VideoFrame) -> Iterator[NDArray[np.bool_]]:
    """Yield which pixels are opaque, some lines at a time, as a copy of a large picture
    would take gigabytes."""
    place = _PACKED_ALPHA.get(frame.format.name)
    plane = frame.planes[0]
    if place is not None and 0 < plane.line_size * frame.height <= plane.buffer_size:
        content = np.frombuffer(memoryview(cast("bytearray", plane)), np.uint8, plane.line_size * frame.height)
        lines, shift = content.reshape(frame.height, plane.line_size)[:, place : 4 * frame.width : 4], 0
    else:
        gray = alpha_planes(frame)
        lines, shift = as_picture(gray.to_ndarray(format=gray.format.name)), gray.format.components[0].bits - 8
    for start in range(0, frame.height, _LINES):
        part = lines[start : start + _LINES]
        yield part >= (255 << shift)


def has_alpha_layer(extradata: bytes | None, packet: bytes) -> bool:
    """Return whether an HEVC stream with this header and first packet stores
    transparency in a second layer."""
    units = [*_header_units(extradata or b""), *_units(packet)]
    return any(
        unit[0] >> 1 & 63 == _PREFIX_SEI and unit[2] == _ALPHA_CHANNEL and not unit[4] & 0x80
        for unit in units
        if len(unit) > 4
    )


def _header_units(extradata: bytes) -> Iterator[bytes]:
    """Return the NAL units of a decoder configuration record, or of a plain stream."""
    if extradata[:1] != b"\x01" or len(extradata) < 23:
        yield from _units(extradata)
        return
    place = 23
    for _ in range(extradata[22]):
        count = int.from_bytes(extradata[place + 1 : place + 3])
        place += 3
        for _ in range(count):
            length = int.from_bytes(extradata[place : place + 2])
            yield extradata[place + 2 : place + 2 + length]
            place += 2 + length


def _units(content: bytes) -> Iterator[bytes]:
    """Return the starts of a packet's NAL units, after start codes or lengths."""
    if content.startswith((b"\0\0\1", b"\0\0\0\1")):
        yield from (unit[:16] for unit in content.split(b"\0\0\1")[1:])
        return
    place = 0
    while place + 4 < len(content):
        length = int.from_bytes(content[place : place + 4])
        yield content[place + 4 : place + 20]
        place += 4 + length
