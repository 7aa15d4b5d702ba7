"""Write and read the tag that records how a file was made, in Matroska, MP4, QuickTime,
PNG and JPEG. Matroska and WebM store it as the tag `ULTRAFLASH`, MP4 and QuickTime as
XMP in an extra box at the end, where it shifts no offsets, PNG as a text chunk, and
JPEG as a comment.
"""

import html
import re
import struct
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from ultraflash_cli.errors import InputError
from ultraflash_cli.video.jpeg import COMMENT, JPEG_HEAD, jpeg_segment, jpeg_segments, most_bytes, with_segments
from ultraflash_cli.video.source import open_input

__all__ = ["append_made", "is_made_comment", "is_made_text", "read_made", "with_made", "with_made_chunk"]

_KEY = "ULTRAFLASH"
_MATROSKA = (".mkv", ".webm")
_XMP_BOX = bytes.fromhex("be7acfcb97a942e89c71999491e3afac")
"""The box of MP4 that holds XMP."""
_XMP = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
    '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" '
    'xmlns:ultraflash="urn:ultraflash:1" ultraflash:made="{}"/></rdf:RDF></x:xmpmeta><?xpacket end="r"?>'
)
_MADE = re.compile(r'ultraflash:made="([^"]*)"')
_MOST_BYTES = 1 << 20
"""Maximum size of a tag; anything larger is not one of ours."""
_MOST_BOXES = 10_000
_ISO = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"styp")
_EBML = b"\x1a\x45\xdf\xa3"
_PNG = b"\x89PNG\r\n\x1a\n"
PNG_HEAD_BYTES = len(_PNG) + 25
"""Size of the signature and the first chunk."""
_CHUNK_HEAD = b"ultraflash\0\0\0\0\0"
"""Start of an international text chunk: keyword, no compression, no language, no
translated keyword."""
_COMMENT_HEAD = b"ultraflash: "
"""Start of the tag in a comment, and of each continuation of a long one."""


def with_made(tags: Mapping[str, str], suffix: str, made: str | None) -> dict[str, str]:
    """Return a file's tags, plus the one that records how it was made if its container
    stores it as a tag. The input's record is dropped, as it describes only the input.
    """
    kept = {key: value for key, value in tags.items() if key.upper() != _KEY}
    return kept | {_KEY: made} if made is not None and suffix in _MATROSKA else kept


def append_made(path: Path, suffix: str, made: str | None) -> None:
    """Append the tag to a finished file, if its container stores it at the end. Raises
    OSError."""
    if made is None or suffix in _MATROSKA:
        return
    content = _XMP_BOX + _XMP.format(html.escape(made)).encode()
    with path.open("ab") as file:
        file.write(struct.pack(">I4s", 8 + len(content), b"uuid") + content)


def with_made_chunk(picture: bytes, made: str | None) -> bytes:
    """Return a PNG or a JPEG with the tag added."""
    if made is None:
        return picture
    if picture.startswith(JPEG_HEAD):
        text, most = made.encode(), most_bytes(_COMMENT_HEAD)
        pieces = (text[place : place + most] for place in range(0, len(text), most))
        return with_segments(picture, b"".join(jpeg_segment(COMMENT, _COMMENT_HEAD + piece) for piece in pieces))
    return picture[:PNG_HEAD_BYTES] + png_chunk(b"iTXt", _CHUNK_HEAD + made.encode()) + picture[PNG_HEAD_BYTES:]


def is_made_comment(content: bytes) -> bool:
    """Return whether the comment of a JPEG is our tag."""
    return content.startswith(_COMMENT_HEAD)


def is_made_text(content: bytes) -> bool:
    """Return whether the content of a PNG's text chunk is our tag."""
    return content.startswith(_CHUNK_HEAD)


def png_chunk(kind: bytes, content: bytes) -> bytes:
    """Return a chunk of a PNG: length, kind, content and checksum."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def read_made(path: Path) -> str | None:
    """Read the tag of a file; None if there is none. Raises InputError for a file that cannot be read."""
    if not path.is_file():
        raise InputError(f"{path}: {'not a file' if path.exists() else 'no such file'}; give a video or an image")
    try:
        with path.open("rb") as file:
            head = file.read(12)
            if head.startswith(_PNG):
                return _of_png(file)
            if head.startswith(JPEG_HEAD):
                return _of_jpeg(head + file.read(_MOST_BYTES))
            if head[4:8] in _ISO:
                return _of_iso(file)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the permissions") from error
    if not head.startswith(_EBML):
        return None
    with open_input(path) as container:
        return next((value for key, value in container.metadata.items() if key.upper() == _KEY), None)


def _of_iso(file: BinaryIO) -> str | None:
    for kind, size_bytes in _boxes(file):
        if kind == b"uuid" and size_bytes <= _MOST_BYTES:
            content = file.read(size_bytes)
            if content.startswith(_XMP_BOX):
                found = _MADE.search(content.decode(errors="replace"))
                if found is not None:
                    return html.unescape(found[1])
    return None


def _boxes(file: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """Iterate over the top-level boxes: type and content size, with the file positioned
    at the content."""
    end = file.seek(0, 2)
    place = 0
    for _ in range(_MOST_BOXES):
        if place + 8 > end:
            return
        file.seek(place)
        head = file.read(8)
        size_bytes, kind = struct.unpack(">I4s", head)
        head_bytes = 8
        if size_bytes == 1:
            size_bytes = int.from_bytes(file.read(8), "big")
            head_bytes = 16
        if size_bytes < head_bytes:
            return  # the last one, up to the end of the file, or invalid
        yield kind, size_bytes - head_bytes
        place += size_bytes


def _of_jpeg(jpeg: bytes) -> str | None:
    comments = (content for marker, _, content in jpeg_segments(jpeg) if marker == COMMENT)
    pieces = [each.removeprefix(_COMMENT_HEAD) for each in comments if each.startswith(_COMMENT_HEAD)]
    return b"".join(pieces).decode(errors="replace") if pieces else None


def _of_png(file: BinaryIO) -> str | None:
    file.seek(len(_PNG))
    for _ in range(_MOST_BOXES):
        head = file.read(8)
        if len(head) < 8:
            return None
        size_bytes, kind = struct.unpack(">I4s", head)
        if kind == b"iTXt" and size_bytes <= _MOST_BYTES:
            content = file.read(size_bytes)
            if content.startswith(_CHUNK_HEAD):
                return content.removeprefix(_CHUNK_HEAD).decode(errors="replace")
            size_bytes = 0
        file.seek(size_bytes + 4, 1)
    return None
