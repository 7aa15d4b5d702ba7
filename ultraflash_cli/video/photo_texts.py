"""What FFmpeg does not read of a picture, as bytes: XMP, IPTC, comments and other texts,
and the resolution.

Where they are: XMP Specification, part 3; IPTC-IIM within the resources of Photoshop;
JFIF 1.02; PNG, section 11.3; TIFF 6.0, section 3.
"""

import mmap
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from ultraflash_cli.video.jpeg import (
    APP0,
    APP1,
    APP13,
    COMMENT,
    IPTC_HEAD,
    JFIF_HEAD,
    JPEG_HEAD,
    XMP_HEAD,
    jpeg_segments,
)
from ultraflash_cli.video.made_tag import is_made_comment, is_made_text, png_chunk
from ultraflash_cli.video.tiff import TIFF_HEADS, tiff_directories

__all__ = ["PNG_COMMENT", "PNG_XMP_HEAD", "iptc_resource", "photo_texts"]

PNG_XMP_HEAD = b"XML:com.adobe.xmp\0"
"""Keyword of the text chunk that holds XMP."""
PNG_COMMENT = b"Comment"
"""Keyword of the text chunk that holds a comment."""
_PNG_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
_RAW_PROFILE = b"Raw profile type "
"""Start of the keywords under which ImageMagick stores tags of the picture as it was."""
_INCH_M = 0.0254
_MOST_BYTES = 1 << 24
_MOST_CHUNKS = 100_000
_TIFF_XMP, _TIFF_IPTC = 0x02BC, 0x83BB
_TIFF_DENSITY, _TIFF_UNIT = 0x011A, 0x0128
_RESOURCE, _RESOURCE_IPTC = b"8BIM", 0x0404
_BOXES = (b"ftyp", b"JXL ", b"jP  ")


def photo_texts(path: Path) -> dict[str, bytes]:
    """Return of a picture, those that it has: ``XMP``, ``IPTC``, ``COMMENT`` (as text),
    ``TEXTS`` (the other text chunks of a PNG) and ``DENSITY`` (pixels per metre, four
    bytes; of square pixels only). Raises ``OSError``."""
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
    if head.startswith(b"BM"):
        return _of_bmp
    return _of_boxes if head[4:8] in _BOXES else lambda file: {}


def _of_jpeg(file: BinaryIO) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    resources = b""
    comments: list[bytes] = []
    for marker, _, content in jpeg_segments(file.read(_MOST_BYTES)):
        if marker == APP0 and content.startswith(JFIF_HEAD) and len(content) >= len(JFIF_HEAD) + 7:
            unit, *density = struct.unpack_from(">BHH", content, len(JFIF_HEAD) + 2)
            found |= _density(*density, {1: _INCH_M, 2: 0.01}.get(unit))
        if marker == COMMENT and not is_made_comment(content):
            comments.append(content.rstrip(b"\0"))
        if marker == APP1 and content.startswith(XMP_HEAD):
            found.setdefault("XMP", content.removeprefix(XMP_HEAD))
        if marker == APP13 and content.startswith(IPTC_HEAD):
            resources += content.removeprefix(IPTC_HEAD)
    return found | {"IPTC": b"".join(_iptc_in(resources)), "COMMENT": b"\n".join(comments)}


def _density(across: float, down: float, per_m: float | None) -> dict[str, bytes]:
    """Return the resolution in pixels per ``per_m`` metres; nothing for pixels that are
    not square, whose shape the output states, and without a unit."""
    if per_m is None or across != down or not 1 <= across / per_m < 1 << 31:
        return {}
    return {"DENSITY": struct.pack(">I", round(across / per_m))}


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
    found: dict[str, bytes] = {}
    texts = b""
    for kind, content in _chunks(file, start=8, order=">", wanted=(*_PNG_TEXTS, b"pHYs")):
        if kind == b"pHYs":
            across, down, unit = struct.unpack_from(">IIB", content.ljust(9, b"\0"))
            found |= _density(across, down, 1 if unit == 1 else None)
        elif content.startswith(PNG_XMP_HEAD) and kind == b"iTXt":
            found.setdefault("XMP", _text(kind, content))
        elif content.startswith(PNG_COMMENT + b"\0"):
            found.setdefault("COMMENT", _text(kind, content))
        elif not is_made_text(content) and not content.startswith(_RAW_PROFILE):
            texts += png_chunk(kind, content)
            if len(texts) > _MOST_BYTES:
                break
    return found | {"TEXTS": texts}


def _text(kind: bytes, content: bytes) -> bytes:
    """Return the text of a PNG's text chunk in UTF-8."""
    _, text = content.split(b"\0", 1)
    if kind == b"tEXt":
        return text.decode("latin-1").encode()
    is_compressed, text = kind == b"zTXt" or text[0] == 1, text[1:]
    if kind == b"iTXt":
        _, _, text = text[1:].split(b"\0", 2)
    text = zlib.decompressobj().decompress(text, _MOST_BYTES) if is_compressed else text
    return text.decode("latin-1").encode() if kind == b"zTXt" else text


def _of_webp(file: BinaryIO) -> dict[str, bytes]:
    return {"XMP": next((content for _, content in _chunks(file, start=12, order="<", wanted=(b"XMP ",))), b"")}


def _chunks(file: BinaryIO, *, start: int, order: str, wanted: tuple[bytes, ...]) -> Iterator[tuple[bytes, bytes]]:
    """Yield kind and content of the chunks of these kinds in a PNG (big-endian; size first, a
    checksum last) or a RIFF (little-endian; kind first, padded)."""
    place = start
    for _ in range(_MOST_CHUNKS):
        file.seek(place)
        head = file.read(8)
        if len(head) < 8:
            return
        kind, size = (head[4:], head[:4]) if order == ">" else (head[:4], head[4:])
        (size_bytes,) = struct.unpack(f"{order}I", size)
        if kind in wanted and size_bytes <= _MOST_BYTES:
            content = file.read(size_bytes)
            if len(content) == size_bytes:
                yield kind, content
        place += 8 + size_bytes + (4 if order == ">" else size_bytes % 2)


def _of_tiff(file: BinaryIO) -> dict[str, bytes]:
    order = TIFF_HEADS[file.read(4)]
    wanted = frozenset({_TIFF_XMP, _TIFF_IPTC, _TIFF_DENSITY, _TIFF_DENSITY + 1, _TIFF_UNIT})
    tags = next(tiff_directories(file, wanted), {})
    found = {"XMP": tags.get(_TIFF_XMP, b""), "IPTC": tags.get(_TIFF_IPTC, b"")}
    if _TIFF_DENSITY in tags and _TIFF_DENSITY + 1 in tags:
        (across, part), (down, other) = (struct.unpack(f"{order}II", tags[_TIFF_DENSITY + n]) for n in (0, 1))
        (unit,) = struct.unpack(f"{order}H", tags.get(_TIFF_UNIT, struct.pack(f"{order}H", 2)))
        found |= _density(across / (part or 1), down / (other or 1), {2: _INCH_M, 3: 0.01}.get(unit))
    return found


def _of_bmp(file: BinaryIO) -> dict[str, bytes]:
    return _density(*struct.unpack_from("<ii", file.read(46), 38), 1)


def _of_boxes(file: BinaryIO) -> dict[str, bytes]:
    """Search the file for the XMP packet; AVIF, HEIC, JPEG XL and JPEG 2000 store it whole."""
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        start, end = content.find(b"<x:xmpmeta"), content.rfind(b"</x:xmpmeta>")
        is_whole = 0 <= start < end <= start + _MOST_BYTES
        return {"XMP": content[start : end + len(b"</x:xmpmeta>")] if is_whole else b""}
