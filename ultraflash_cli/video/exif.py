"""Adapt EXIF tags to a picture that was enlarged, turned upright and written again.

The tags are edited in place, so that offsets within them, such as those of a maker's
notes, stay valid. Layout: TIFF 6.0, section 2, and Exif 2.32, section 4.6.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["fitted_exif"]

_ORDERS = {b"II*\0": "<", b"MM\0*": ">"}
_WIDTH, _HEIGHT, _ORIENTATION = 0x0100, 0x0101, 0x0112
_EXIF, _EXIF_WIDTH, _EXIF_HEIGHT = 0x8769, 0xA002, 0xA003
_THUMBNAIL, _THUMBNAIL_BYTES = 0x0201, 0x0202
_UPRIGHT = 1
_SHORT, _LONG, _TABLE = 3, 4, 13

_STORAGE = frozenset(
    {
        *(0x0102, 0x0103, 0x0106, 0x010A, 0x0111, 0x0115, 0x0116, 0x0117, 0x011C, 0x013D, 0x0140, 0x014A),
        *range(0x0142, 0x0146),
        *(0x0152, 0x0153, 0x015B, _THUMBNAIL, _THUMBNAIL_BYTES, 0x0211, 0x0212, 0x0213, 0x0214, 0x8773),
    }
)
"""Tags that say how a TIFF stores its pixels and its colour profile."""


def fitted_exif(exif: bytes, *, width_px: int, height_px: int) -> bytes:
    """Return EXIF tags (a TIFF header and what follows) for an upright picture of this
    size: orientation and pixel dimensions are set, thumbnail and tags about the storage
    removed. Empty if the tags are damaged."""
    order = _ORDERS.get(exif[:4])
    if order is None:
        return b""
    tags = _Tags(bytearray(exif), order)
    size = {_WIDTH: width_px, _HEIGHT: height_px, _EXIF_WIDTH: width_px, _EXIF_HEIGHT: height_px}
    try:
        first = tags.number("I", 4)
        more = tags.find(first, _EXIF)
        thumbnails = tags.following(first)
        tags.edit(first, {**size, _ORIENTATION: _UPRIGHT})
        if more is not None:
            tags.edit(more, size)
        if thumbnails:
            tags.erase_thumbnail(thumbnails)
    except (struct.error, ValueError):
        return b""
    return bytes(tags.content)


@dataclass(frozen=True)
class _Tags:
    content: bytearray
    order: str
    """Byte order, as in ``struct``."""

    def number(self, kind: str, place: int) -> int:
        """Read a number (``H`` or ``I``). Raises ``struct.error`` beyond the end."""
        return struct.unpack_from(self.order + kind, self.content, place)[0]

    def entries(self, table: int) -> list[bytes]:
        """Return the entries of a table, 12 bytes each. Raises ``ValueError`` if it is
        cut off."""
        count = self.number("H", table)
        start = table + 2
        if start + 12 * count + 4 > len(self.content):
            raise ValueError("the table ends beyond the file")
        return [bytes(self.content[place : place + 12]) for place in range(start, start + 12 * count, 12)]

    def following(self, table: int) -> int:
        """Return the place of the next table, which describes the thumbnail; 0 for
        none."""
        return self.number("I", table + 2 + 12 * len(self.entries(table)))

    def find(self, table: int, wanted: int) -> int | None:
        """Return the value of a tag that holds one number; None without it."""
        return next((value for tag, value in map(self._read, self.entries(table)) if tag == wanted), None)

    def edit(self, table: int, values: Mapping[int, int]) -> None:
        """Set the tags that are there to ``values``, remove those about the storage, and
        let no table follow."""
        kept: list[bytes] = []
        entries = self.entries(table)
        for entry in entries:
            tag, value = self._read(entry)
            if tag in values and value is not None:
                entry = self._one(tag, values[tag])
            if tag not in _STORAGE and (tag not in values or value is not None):
                kept.append(entry)
        written = struct.pack(self.order + "H", len(kept)) + b"".join(kept)
        room = 2 + 12 * len(entries) + 4
        self.content[table : table + room] = written.ljust(room, b"\0")

    def erase_thumbnail(self, table: int) -> None:
        """Erase the picture that a table describes; cut it off if nothing follows."""
        start, size_bytes = self.find(table, _THUMBNAIL), self.find(table, _THUMBNAIL_BYTES)
        if not start or not size_bytes or start < 8:
            return
        end = min(start + size_bytes, len(self.content))
        self.content[start:end] = b"" if end == len(self.content) else bytes(max(0, end - start))

    def _read(self, entry: bytes) -> tuple[int, int | None]:
        """Return tag and value of an entry; None for the value unless it is one whole
        number."""
        tag, kind, count = struct.unpack(self.order + "HHI", entry[:8])
        if count != 1 or kind not in (_SHORT, _LONG, _TABLE):
            return tag, None
        return tag, struct.unpack_from(self.order + ("H" if kind == _SHORT else "I"), entry, 8)[0]

    def _one(self, tag: int, value: int) -> bytes:
        """Return an entry of one number."""
        if value < 1 << 16:
            return struct.pack(self.order + "HHIHH", tag, _SHORT, 1, value, 0)
        return struct.pack(self.order + "HHII", tag, _LONG, 1, value)
