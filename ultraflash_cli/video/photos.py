"""What a photo carries beside its pixels: EXIF tags and a colour profile, read from any
format that FFmpeg reads and written to PNG."""

import struct
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress

from av.error import FFmpegError

from ultraflash_cli.errors import InputError
from ultraflash_cli.video.exif import fitted_exif
from ultraflash_cli.video.made_tag import PNG_HEAD_BYTES, png_chunk
from ultraflash_cli.video.sequence import ImageSequence
from ultraflash_cli.video.sidedata import side_data
from ultraflash_cli.video.source import Source, open_input

__all__ = ["photo_data", "with_photo_data"]

_KINDS = {0: b"GRAY", 2: b"RGB ", 4: b"GRAY", 6: b"RGB "}
"""Colour space of a profile by the PNG's type of colour."""
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


def with_photo_data(png: bytes, data: Mapping[str, bytes]) -> bytes:
    """Return a PNG with the tags, adapted to the new size and the upright picture, and
    with the profile, if that describes the PNG's kind of colours."""
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
