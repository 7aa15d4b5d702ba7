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
    """Return whether a file is a JPEG that lacks its end marker; decoders fill in what is
    missing."""
    try:
        with open(path, "rb") as file:
            if file.read(len(JPEG_HEAD)) != JPEG_HEAD:
                return False
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as jpeg:
                # A preview before the pixels has an end of its own.
                return jpeg.find(_JPEG_END, jpeg_scan(jpeg[:_HEAD_BYTES])) < 0
    except OSError:
        return False


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
