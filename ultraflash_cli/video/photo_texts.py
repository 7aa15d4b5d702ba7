"""What FFmpeg does not read of a picture: XMP and IPTC, as bytes.

Where they are: XMP Specification, part 3; IPTC-IIM within the resources of Photoshop.
"""

import mmap
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from ultraflash_cli.video.jpeg import (
    APP1,
    APP13,
    IPTC_HEAD,
    JPEG_HEAD,
    XMP_HEAD,
    jpeg_segments,
)
from ultraflash_cli.video.tiff import TIFF_HEADS, tiff_directories

__all__ = ["PNG_XMP_HEAD", "iptc_resource", "photo_texts"]

PNG_XMP_HEAD = b"XML:com.adobe.xmp\0"
"""Keyword of the text chunk that holds XMP."""
_MOST_BYTES = 1 << 24
_MOST_CHUNKS = 100_000
_TIFF_XMP, _TIFF_IPTC = 0x02BC, 0x83BB
_RESOURCE, _RESOURCE_IPTC = b"8BIM", 0x0404
_BOXES = (b"ftyp", b"JXL ", b"jP  ")


def photo_texts(path: Path) -> dict[str, bytes]:
    """Return ``XMP`` and ``IPTC`` of a picture, those that it has. Raises ``OSError``."""
    with path.open("rb") as file:
        head = file.read(12)
        file.seek(0)
        found: dict[str, bytes] = {}
        # Whatever is damaged is left out.
        with suppress(ValueError, struct.error, zlib.error):
            found = _reader(head)(file)
    return {kind: content for kind, content in found.items() if content}


def _reader(head: bytes) -> Callable[[BinaryIO], dict[str, bytes]]:
    if head.startswith(JPEG_HEAD):
        return _of_jpeg
    if head.startswith(b"\x89PNG"):
        return _of_png
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return _of_webp
    if head[:4] in TIFF_HEADS:
        return _of_tiff
    return _of_boxes if head[4:8] in _BOXES else lambda file: {}


def _of_jpeg(file: BinaryIO) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    resources = b""
    for marker, _, content in jpeg_segments(file.read(_MOST_BYTES)):
        if marker == APP1 and content.startswith(XMP_HEAD):
            found.setdefault("XMP", content.removeprefix(XMP_HEAD))
        if marker == APP13 and content.startswith(IPTC_HEAD):
            resources += content.removeprefix(IPTC_HEAD)
    return found | {"IPTC": b"".join(_iptc_in(resources))}


def iptc_resource(iptc: bytes) -> bytes:
    """Return IPTC as a resource of Photoshop, without a name."""
    return _RESOURCE + struct.pack(">HHI", _RESOURCE_IPTC, 0, len(iptc)) + iptc + bytes(len(iptc) % 2)


def _iptc_in(resources: bytes) -> Iterator[bytes]:
    """Yield the content of the resources that hold IPTC."""
    place = 0
    while resources[place : place + 4] == _RESOURCE:
        (kind,) = struct.unpack_from(">H", resources, place + 4)
        place += 6 + (resources[place + 6] + 2) // 2 * 2
        (size_bytes,) = struct.unpack_from(">I", resources, place)
        if kind == _RESOURCE_IPTC:
            yield resources[place + 4 : place + 4 + size_bytes]
        place += 4 + (size_bytes + 1) // 2 * 2


def _of_png(file: BinaryIO) -> dict[str, bytes]:
    for content in _chunks(file, start=8, order=">", wanted=b"iTXt"):
        if content.startswith(PNG_XMP_HEAD):
            is_compressed = content[len(PNG_XMP_HEAD)] == 1
            _, _, text = content[len(PNG_XMP_HEAD) + 2 :].split(b"\0", 2)
            return {"XMP": zlib.decompressobj().decompress(text, _MOST_BYTES) if is_compressed else text}
    return {}


def _of_webp(file: BinaryIO) -> dict[str, bytes]:
    return {"XMP": next(_chunks(file, start=12, order="<", wanted=b"XMP "), b"")}


def _chunks(file: BinaryIO, *, start: int, order: str, wanted: bytes) -> Iterator[bytes]:
    """Yield the content of the chunks of one kind in a PNG (big-endian; size first, a
    checksum last) or a RIFF (little-endian; kind first, padded)."""
    place = start
    for _ in range(_MOST_CHUNKS):
        file.seek(place)
        head = file.read(8)
        if len(head) < 8:
            return
        kind, size = (head[4:], head[:4]) if order == ">" else (head[:4], head[4:])
        (size_bytes,) = struct.unpack(f"{order}I", size)
        if kind == wanted and size_bytes <= _MOST_BYTES:
            yield file.read(size_bytes)
        place += 8 + size_bytes + (4 if order == ">" else size_bytes % 2)


def _of_tiff(file: BinaryIO) -> dict[str, bytes]:
    tags = next(tiff_directories(file, frozenset({_TIFF_XMP, _TIFF_IPTC})), {})
    return {"XMP": tags.get(_TIFF_XMP, b""), "IPTC": tags.get(_TIFF_IPTC, b"")}


def _of_boxes(file: BinaryIO) -> dict[str, bytes]:
    """Search the file for the XMP packet; AVIF, HEIC, JPEG XL and JPEG 2000 store it whole."""
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        start, end = content.find(b"<x:xmpmeta"), content.rfind(b"</x:xmpmeta>")
        is_whole = 0 <= start < end <= start + _MOST_BYTES
        return {"XMP": content[start : end + len(b"</x:xmpmeta>")] if is_whole else b""}
