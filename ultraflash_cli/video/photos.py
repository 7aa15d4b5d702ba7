"""What a photo carries beside its pixels: EXIF tags and a colour profile, read from any
format that FFmpeg reads and written to PNG or JPEG."""

import struct
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress

from av.error import FFmpegError

from ultraflash_cli.errors import InputError
from ultraflash_cli.video.exif import fitted_exif
from ultraflash_cli.video.jpeg import (
    APP1,
    APP2,
    JPEG_HEAD,
    jpeg_segment,
    jpeg_size,
    most_bytes,
    with_segments,
)
from ultraflash_cli.video.made_tag import PNG_HEAD_BYTES, png_chunk
from ultraflash_cli.video.sequence import ImageSequence
from ultraflash_cli.video.sidedata import side_data
from ultraflash_cli.video.source import Source, open_input

__all__ = ["jpeg_misfits", "photo_data", "with_photo_data"]

_KINDS = {0: b"GRAY", 2: b"RGB ", 4: b"GRAY", 6: b"RGB "}
"""Colour space of a profile by the PNG's type of colour."""
_EXIF_HEAD = b"Exif\0\0"
_PROFILE_HEAD = b"ICC_PROFILE\0"
_MOST_PARTS = 255
"""Maximum number of segments of a JPEG that a profile is divided into."""
_OTHER_COLORS = (b"cICP", b"cHRM", b"gAMA", b"sRGB")
"""Chunks that describe colours in another way than a profile; readers prefer some."""


def photo_data(source: Source, number: int = 0) -> Mapping[str, bytes]:
    """Return EXIF tags (``EXIF``) and colour profile (``ICC_PROFILE``) of a photo, or of
    the image ``number`` of a sequence, counted from 0; those that it has."""
    path = source.picture(number) if isinstance(source, ImageSequence) else source
    # It was readable a moment ago; without its tags the picture is still worth having.
    with suppress(InputError, FFmpegError, OSError, StopIteration), open_input(path) as container:
        found = side_data(next(container.decode(video=0)))
        return {kind: found[kind] for kind in ("EXIF", "ICC_PROFILE") if found.get(kind)}
    return {}


def with_photo_data(picture: bytes, data: Mapping[str, bytes]) -> bytes:
    """Return a PNG or a JPEG with the tags, adapted to the new size and the upright
    picture, and with the profile, if that describes the picture's kind of colours."""
    return (_jpeg_with if picture.startswith(JPEG_HEAD) else _png_with)(picture, data)


def jpeg_misfits(data: Mapping[str, bytes]) -> list[str]:
    """Return the names of what a JPEG is too small for, as ``photo_data`` does."""
    most = {"EXIF": most_bytes(_EXIF_HEAD), "ICC_PROFILE": _MOST_PARTS * most_bytes(_PROFILE_HEAD + b"nn")}
    return [kind for kind, content in data.items() if len(content) > most[kind]]


def _jpeg_with(jpeg: bytes, data: Mapping[str, bytes]) -> bytes:
    width_px, height_px = jpeg_size(jpeg)
    too_large = jpeg_misfits(data)
    data = {kind: content for kind, content in data.items() if kind not in too_large}
    added = b""
    exif = fitted_exif(data.get("EXIF", b""), width_px=width_px, height_px=height_px)
    if exif:
        added += jpeg_segment(APP1, _EXIF_HEAD + exif)
    profile, room = data.get("ICC_PROFILE", b""), most_bytes(_PROFILE_HEAD + b"nn")
    if profile[16:20] == b"RGB ":
        parts = [profile[place : place + room] for place in range(0, len(profile), room)]
        for number, part in enumerate(parts, 1):
            added += jpeg_segment(APP2, _PROFILE_HEAD + bytes((number, len(parts))) + part)
    return with_segments(jpeg, added)


def _png_with(png: bytes, data: Mapping[str, bytes]) -> bytes:
    width_px, height_px = struct.unpack(">II", png[16:24])
    added = b""
    exif = fitted_exif(data.get("EXIF", b""), width_px=width_px, height_px=height_px)
    if exif:
        added += png_chunk(b"eXIf", exif)
    profile = data.get("ICC_PROFILE", b"")
    if profile[16:20] == _KINDS.get(png[25]):
        png = _without(png, _OTHER_COLORS)
        added += png_chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(profile))
    return png[:PNG_HEAD_BYTES] + added + png[PNG_HEAD_BYTES:]


def _without(png: bytes, kinds: tuple[bytes, ...]) -> bytes:
    """Remove chunks of these kinds from before the pixels."""
    return png[:8] + b"".join(chunk for kind, chunk in _chunks(png) if kind not in kinds)


def _chunks(png: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield kind and bytes of each chunk; everything from the pixels on at once."""
    place = 8
    while place < len(png):
        size_bytes, kind = struct.unpack(">I4s", png[place : place + 8])
        end = len(png) if kind == b"IDAT" else place + 12 + size_bytes
        yield kind, png[place:end]
        place = end
