"""The segments of a JPEG: read, and added to one that an encoder wrote.

Layout: ITU-T T.81, annex B, and JFIF 1.02. Each segment holds less than 64 KiB; longer
content is divided.
"""

import struct
from collections.abc import Iterator

__all__ = [
    "APP0",
    "APP1",
    "APP2",
    "APP13",
    "COMMENT",
    "EXIF_HEAD",
    "IPTC_HEAD",
    "JFIF_HEAD",
    "JPEG_HEAD",
    "PROFILE_HEAD",
    "XMP_HEAD",
    "jpeg_scan",
    "jpeg_segment",
    "jpeg_segments",
    "jpeg_size",
    "most_bytes",
    "with_segments",
]

JPEG_HEAD = b"\xff\xd8\xff"
"""Start of every JPEG: the first marker, and the byte that begins the next one."""
APP0 = 0xE0
"""JFIF: the shape of pixels, or the resolution."""
APP1 = 0xE1
"""EXIF and XMP."""
APP2 = 0xE2
"""The colour profile."""
APP13 = 0xED
"""Resources of Photoshop, which hold IPTC."""
COMMENT = 0xFE
EXIF_HEAD = b"Exif\0\0"
JFIF_HEAD = b"JFIF\0"
"""Followed by the version, 2 bytes, the unit, a byte, and pixels across and down per
unit, 2 bytes each."""
XMP_HEAD = b"http://ns.adobe.com/xap/1.0/\0"
PROFILE_HEAD = b"ICC_PROFILE\0"
"""Followed by the number of the part and that of all parts, a byte each."""
IPTC_HEAD = b"Photoshop 3.0\0"
_APP15 = 0xEF
_FRAMES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
"""Segments that state the size of the picture; the exceptions are tables."""
_SCAN = 0xDA
_FILL = 0xFF


def jpeg_segments(jpeg: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Yield marker, place and content of each segment before the pixels; fewer of them
    if the file is damaged."""
    place = 2
    while place + 4 <= len(jpeg) and jpeg[place] == _FILL:
        marker = jpeg[place + 1]
        if marker == _FILL:
            place += 1
            continue
        size_bytes = int.from_bytes(jpeg[place + 2 : place + 4], "big")
        if marker == _SCAN or size_bytes < 2:
            return
        yield marker, place, jpeg[place + 4 : place + 2 + size_bytes]
        place += 2 + size_bytes


def jpeg_scan(jpeg: bytes) -> int:
    """Return where the pixels begin, behind the segments before them."""
    ends = (place + 4 + len(content) for _, place, content in jpeg_segments(jpeg))
    return max(ends, default=2)


def jpeg_size(jpeg: bytes) -> tuple[int, int]:
    """Return width and height in pixels. Raises ``StopIteration`` for a file without
    them."""
    frame = next(content for marker, _, content in jpeg_segments(jpeg) if marker in _FRAMES)
    height_px, width_px = struct.unpack(">HH", frame[1:5])
    return width_px, height_px


def most_bytes(head: bytes) -> int:
    """Return how much content a segment holds after ``head``."""
    return 0xFFFF - 2 - len(head)


def jpeg_segment(marker: int, content: bytes) -> bytes:
    """Return a segment: marker, length and content."""
    return struct.pack(">BBH", _FILL, marker, 2 + len(content)) + content


def with_segments(jpeg: bytes, added: bytes) -> bytes:
    """Return a JPEG with more segments, behind those of applications that it has."""
    end = 2
    for marker, place, content in jpeg_segments(jpeg):
        if not APP0 <= marker <= _APP15:
            break
        end = place + 4 + len(content)
    return jpeg[:end] + added + jpeg[end:]
