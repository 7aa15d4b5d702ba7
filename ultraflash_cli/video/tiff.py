"""The directories of a TIFF file, one for each page. Layout: TIFF 6.0, section 2."""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

__all__ = ["TIFF_HEADS", "tiff_directories", "tiff_pages"]

TIFF_HEADS = {b"II*\0": "<", b"MM\0*": ">"}
"""Byte order, as in ``struct``, by the first bytes of a file."""
_KIND_OF_PAGE = 0x00FE
_NO_PAGE = 0b101
"""Bits of a smaller copy of another page, and of a mask."""
_MOST_DIRECTORIES = 10_000
_MOST_BYTES = 1 << 24
"""Maximum size of a tag that is read."""
_BYTES_OF_KIND = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 7: 1}
"""Size of the kinds of values that are read: bytes, text, numbers of 16 and 32 bits,
fractions of two of these, and bytes of any meaning."""


def tiff_pages(path: Path) -> int:
    """Return the number of pages, without smaller copies and masks; 0 for any other
    file. Raises ``OSError``."""
    with path.open("rb") as file:
        order = TIFF_HEADS.get(file.read(4))
        if order is None:
            return 0
        kinds = [tags.get(_KIND_OF_PAGE, b"") for tags in tiff_directories(file, frozenset({_KIND_OF_PAGE}))]
    return sum(not _NO_PAGE & int.from_bytes(kind, "little" if order == "<" else "big") for kind in kinds)


def tiff_directories(file: BinaryIO, wanted: frozenset[int]) -> Iterator[dict[int, bytes]]:
    """Yield the values of the ``wanted`` tags of each directory, as they are stored;
    fewer directories if the file is damaged."""
    file.seek(0)
    order = TIFF_HEADS.get(file.read(4))
    seen: set[int] = set()
    while order is not None and len(seen) < _MOST_DIRECTORIES:
        place = _number(file, order, "I")
        if not place or place in seen:
            return
        seen.add(place)
        file.seek(place)
        entries = [file.read(12) for _ in range(_number(file, order, "H"))]
        following = file.tell()
        if not entries or len(entries[-1]) < 12:
            return
        yield {
            tag: value
            for tag, kind, count, inside in (struct.unpack(f"{order}HHI4s", entry) for entry in entries)
            if tag in wanted and (value := _value(file, order, _BYTES_OF_KIND.get(kind, 0) * count, inside))
        }
        file.seek(following)


def _number(file: BinaryIO, order: str, kind: str) -> int:
    content = file.read(struct.calcsize(order + kind))
    return struct.unpack(order + kind, content)[0] if len(content) == struct.calcsize(order + kind) else 0


def _value(file: BinaryIO, order: str, size_bytes: int, inside: bytes) -> bytes:
    """Return a value, which is ``inside`` the entry if it fits there; empty if it is cut
    off or too large."""
    if size_bytes <= len(inside):
        return inside[:size_bytes]
    if size_bytes > _MOST_BYTES:
        return b""
    file.seek(struct.unpack(order + "I", inside)[0])
    value = file.read(size_bytes)
    return value if len(value) == size_bytes else b""
