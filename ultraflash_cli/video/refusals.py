"""Explain why a file cannot be read as a video, and what to do."""

import re
from pathlib import Path
from struct import unpack

from ultraflash_cli.video.pipe import Pipe
from ultraflash_cli.video.sequence import ImageSequence

__all__ = ["kind_of", "why_unreadable"]

_HEAD_BYTES = 4096
_PLAYLIST = "a playlist, expected a video; download and join its entries first"
_PLAYLISTS = (b"#EXTM3U", b"[playlist]", b"ffconcat version", b"<asx", b"<smil")
_PLAYLIST_WORDS = (b"<MPD", b"<SmoothStreamingMedia", b"xspf.org")
_PLAYLIST_SUFFIXES = {".asx", ".ffconcat", ".m3u", ".m3u8", ".mpd", ".pls", ".xspf"}
_WEB = (b"<!doctype html", b"<html")
_OTHERS = {
    b"PK\x03\x04": "an archive (zip), not a video; unpack it first",
    b"Rar!\x1a\x07": "an archive (rar), not a video; unpack it first",
    b"7z\xbc\xaf\x27\x1c": "an archive (7z), not a video; unpack it first",
    b"\x1f\x8b": "an archive (gzip), not a video; unpack it first",
    b"\xfd7zXZ\0": "an archive (xz), not a video; unpack it first",
    b"%PDF-": "a PDF document, not a video; give a video file",
    b"SQLite format 3": "a database, not a video; give a video file",
}
"""Descriptions of other kinds of files, by their first bytes."""
_TEXT = re.compile(rb"[\t\n\r\f\x1b\x20-\x7e\x80-\xff]*")
_LARGEST_SIDE = 16384
_WEBP_MOVES = 0x02
"""The flag of an animation in the extended header (RFC 9649, section 2.7)."""
_UNCOMPRESSED = re.compile(rb"YUV4MPEG2 (?:.*? )?W(\d+) (?:.*? )?H(\d+)\b")


def why_unreadable(source: Path | ImageSequence | Pipe, error: Exception) -> str:
    """Return why a file could not be opened, and what to do."""
    if isinstance(error, PermissionError):
        return "no permission to read it; check the permissions"
    words = (getattr(error, "strerror", None) or str(error)).lower()
    if isinstance(source, Pipe):
        if source.keeps_start and not source.head(1):
            return "the pipe is empty (0 bytes); check the command that writes to it"
        if kind := kind_of(source):
            return kind
        return f"the pipe does not carry a video that can be read without seeking ({words}); save it to a file first"
    if not isinstance(source, Path):
        return f"these images cannot be read ({words}); check that they are complete"
    if _lacks_index(source):
        return "its index (moov) is missing, so the recording was interrupted; recover it from the source"
    kind = kind_of(source)
    if kind:
        return kind
    return f"not a readable video ({words}); check that a player can play it to the end"


def kind_of(source: Path | Pipe) -> str | None:
    """Return what a file that cannot be read as a video is, and what to do; None if
    unknown."""
    if isinstance(source, Pipe):
        return _kind(source.head(_HEAD_BYTES), "") if source.keeps_start else None
    try:
        with source.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError:
        return None
    return _kind(head, source.suffix)


def _kind(head: bytes, suffix: str) -> str | None:
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if found := _UNCOMPRESSED.match(head):
        width, height = int(found[1]), int(found[2])
        if max(width, height) > _LARGEST_SIDE:
            return f"a y4m file of {width}x{height} pixels, expected at most {_LARGEST_SIDE} per side; check its header"
    if head[:4] == b"RIFF" and head[8:16] == b"WEBPVP8X" and head[20:21] and head[20] & _WEBP_MOVES:
        return "an animated WebP, which the built-in FFmpeg cannot read; convert it to a GIF or a video first"
    if start.startswith(_PLAYLISTS) or any(word in start for word in _PLAYLIST_WORDS):
        return _PLAYLIST

    for magic, kind in _OTHERS.items():
        if head.startswith(magic):
            return kind

    if start[:64].lower().startswith(_WEB):
        return "a web page, not a video; download the video itself"
    if not _TEXT.fullmatch(head):
        return None
    if suffix.lower() in _PLAYLIST_SUFFIXES:
        return _PLAYLIST

    return "a text file, not a video; give a video file"


def _lacks_index(path: Path) -> bool:
    """Return whether ``moov`` is missing among the top-level boxes of an MP4 or MOV
    file."""
    try:
        with open(path, "rb") as file:
            size = path.stat().st_size
            seen: list[bytes] = []
            start = 0
            while len(seen) < 1000 and start + 8 <= size:
                file.seek(start)
                length, name = unpack(">I4s", file.read(8))
                if length == 1 and start + 16 <= size:
                    length = unpack(">Q", file.read(8))[0]
                seen.append(name)
                if length < 8:
                    break
                start += length
    except OSError:
        return False
    return seen[:1] == [b"ftyp"] and b"moov" not in seen
