"""Count the bytes missing at the end of a file, from the lengths in its boxes, and tell
pictures without an end."""

import mmap
from pathlib import Path
from struct import unpack
from typing import BinaryIO

from ultraflash_cli.video.jpeg import JPEG_HEAD, jpeg_scan

__all__ = ["is_cut_off", "missing_bytes"]

_EBML, _SEGMENT = 0x1A45DFA3, 0x18538067
_MOST_BOXES = 100_000
_JPEG_END = b"\xff\xd9"
_PNG_HEAD = b"\x89PNG\r\n\x1a\n"
_GIF_HEAD = b"GIF8"
_GIF_IMAGE, _GIF_EXTENSION = 0x2C, 0x21
_HEAD_BYTES = 1 << 24


def missing_bytes(path: Path) -> int:
    """Return how many bytes the file lacks according to its outermost boxes; 0 if it is
    complete or of a format that does not state its length. MP4, MOV, Matroska, WebM,
    AVI and other RIFF files do.
    """
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            head = file.read(12)
            file.seek(0)
            if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
                return _missing_of_boxes(file, size)
            if head[:4] == b"\x1a\x45\xdf\xa3":
                return _missing_of_matroska(file, size)
            if head[:4] == b"RIFF":
                return max(0, unpack("<I", head[4:8])[0] + 8 - size)
    except OSError:
        return 0
    return 0


def is_cut_off(path: Path) -> bool:
    """Return whether a file is a JPEG, PNG or GIF that lacks its end marker; decoders
    fill in what is missing."""
    try:
        with open(path, "rb") as file:
            head = file.read(len(_PNG_HEAD))
            is_ended = next((known for start, known in _IS_ENDED.items() if head.startswith(start)), None)
            if is_ended is None:
                return False
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as picture:
                return not is_ended(picture)
    except OSError:
        return False


def _is_ended_jpeg(jpeg: mmap.mmap) -> bool:
    # A preview before the pixels has an end of its own.
    return jpeg.find(_JPEG_END, jpeg_scan(jpeg[:_HEAD_BYTES])) >= 0


def _is_ended_png(png: mmap.mmap) -> bool:
    """Follow the chunks to the last one (ISO/IEC 15948, section 5.3)."""
    place = len(_PNG_HEAD)
    while place + 12 <= len(png):
        length, name = unpack(">I4s", png[place : place + 8])
        place += 12 + length
        if name == b"IEND":
            return place <= len(png)
    return False


def _is_ended_gif(gif: mmap.mmap) -> bool:
    """Follow the blocks to the trailer (GIF89a, appendix B). Bytes of no known kind end
    the file, too, as they do for decoders."""
    place = 13 + _table_bytes(gif[10:11])
    while place < len(gif):
        kind = gif[place]
        if kind == _GIF_IMAGE:
            place += 11 + _table_bytes(gif[place + 9 : place + 10])
        elif kind == _GIF_EXTENSION:
            place += 2
        else:
            return True
        while place < len(gif) and gif[place]:
            place += 1 + gif[place]
        place += 1
    return False


def _table_bytes(flags: bytes) -> int:
    """Return the size of the colour table that a GIF's flags announce."""
    return 3 << ((flags[0] & 7) + 1) if flags and flags[0] & 0x80 else 0


_IS_ENDED = {JPEG_HEAD: _is_ended_jpeg, _PNG_HEAD: _is_ended_png, _GIF_HEAD: _is_ended_gif}


def _missing_of_boxes(file: BinaryIO, size: int) -> int:
    start = 0
    for _ in range(_MOST_BOXES):
        file.seek(start)
        head = file.read(16)
        if len(head) < 8:
            return 0
        length = unpack(">I", head[:4])[0]
        if length == 1 and len(head) == 16:
            length = unpack(">Q", head[8:])[0]
        if length < 8 or not head[4:8].isalnum():
            return 0
        if start + length > size:
            return start + length - size if head[4:8] in (b"mdat", b"moov", b"moof") else 0
        start += length
    return 0


def _missing_of_matroska(file: BinaryIO, size: int) -> int:
    for expected in (_EBML, _SEGMENT):
        if int.from_bytes(file.read(4)) != expected:
            return 0
        length = _vint(file)
        if length is None:
            return 0
        if expected == _SEGMENT:
            return max(0, file.tell() + length - size)
        file.seek(length, 1)
    return 0


def _vint(file: BinaryIO) -> int | None:
    first = file.read(1)
    if not first or not first[0]:
        return None
    width = 9 - first[0].bit_length()
    rest = file.read(width - 1)
    mask = (1 << (8 - width)) - 1
    value = ((first[0] & mask) << (8 * len(rest))) + int.from_bytes(rest)
    unknown = (1 << (7 * width)) - 1
    return None if len(rest) < width - 1 or value == unknown else value
