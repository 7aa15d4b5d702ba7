"""What a photo carries beside its pixels: EXIF tags, a colour profile, XMP, IPTC, texts
and the resolution, read from any format that FFmpeg reads and written to PNG or JPEG."""

import struct
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from av.error import FFmpegError

from ultraflash_cli.errors import InputError
from ultraflash_cli.video.exif import fitted_exif
from ultraflash_cli.video.jpeg import (
    APP0,
    APP1,
    APP2,
    APP13,
    COMMENT,
    EXIF_HEAD,
    IPTC_HEAD,
    JFIF_HEAD,
    JPEG_HEAD,
    PROFILE_HEAD,
    XMP_HEAD,
    jpeg_segment,
    jpeg_segments,
    jpeg_size,
    most_bytes,
    with_segments,
)
from ultraflash_cli.video.made_tag import PNG_HEAD_BYTES, png_chunk
from ultraflash_cli.video.photo_texts import PNG_COMMENT, PNG_XMP_HEAD, iptc_resource, photo_texts
from ultraflash_cli.video.sequence import ImageSequence
from ultraflash_cli.video.sidedata import side_data
from ultraflash_cli.video.source import Source, open_input
from ultraflash_cli.video.xmp import fitted_xmp

__all__ = ["misfits", "photo_data", "with_photo_data"]

_KINDS = {0: b"GRAY", 2: b"RGB ", 4: b"GRAY", 6: b"RGB "}
"""Colour space of a profile by the PNG's type of colour."""
_PART_BYTES = most_bytes(PROFILE_HEAD + b"nn")
"""Size of the parts of a profile in a JPEG."""
_MOST_IN_JPEG = {
    "EXIF": most_bytes(EXIF_HEAD),
    "XMP": most_bytes(XMP_HEAD),
    "ICC_PROFILE": 255 * _PART_BYTES,
    "IPTC": most_bytes(IPTC_HEAD + iptc_resource(b"")) - 1,
    "COMMENT": most_bytes(b""),
    "DENSITY": 4,
}
_OTHER_COLORS = (b"cICP", b"cHRM", b"gAMA", b"sRGB")
"""Chunks that describe colours in another way than a profile; readers prefer some."""


def photo_data(source: Source, number: int = 0) -> Mapping[str, bytes]:
    """Return EXIF tags (``EXIF``), colour profile (``ICC_PROFILE``) and what
    `photo_texts` finds of a photo, or of the image ``number`` of a sequence, counted
    from 0; those that it has."""
    path = source.picture(number) if isinstance(source, ImageSequence) else source
    # It was readable a moment ago; without its tags the picture is still worth having.
    with suppress(InputError, FFmpegError, OSError, StopIteration), open_input(path) as container:
        found = side_data(next(container.decode(video=0)))
        texts = photo_texts(path) if isinstance(path, Path) else {}
        return {kind: found[kind] for kind in ("EXIF", "ICC_PROFILE") if found.get(kind)} | texts
    return {}


def with_photo_data(picture: bytes, data: Mapping[str, bytes]) -> bytes:
    """Return a PNG or a JPEG with the tags, adapted to the new size and the upright
    picture, and with the profile, if that describes the picture's kind of colours."""
    return (_jpeg_with if picture.startswith(JPEG_HEAD) else _png_with)(picture, data)


def misfits(data: Mapping[str, bytes], codec: str) -> list[str]:
    """Return what pictures of ``codec`` cannot hold of ``data``, by the names of
    ``photo_data``: everything if it is a codec of clips, where a resolution means
    nothing."""
    if codec == "png":
        return [kind for kind in data if kind == "IPTC"]
    most = _MOST_IN_JPEG if codec == "jpeg" else {"DENSITY": 4}
    return [kind for kind, content in data.items() if len(content) > most.get(kind, 0)]


def _jpeg_with(jpeg: bytes, data: Mapping[str, bytes]) -> bytes:
    width_px, height_px = jpeg_size(jpeg)
    profile = data.get("ICC_PROFILE", b"")
    fitted = {
        "EXIF": fitted_exif(data.get("EXIF", b""), width_px=width_px, height_px=height_px),
        "XMP": fitted_xmp(data.get("XMP", b""), width_px=width_px, height_px=height_px),
        "ICC_PROFILE": profile if profile[16:20] == b"RGB " else b"",
        "IPTC": data.get("IPTC", b""),
        "COMMENT": data.get("COMMENT", b""),
    }
    too_large = misfits(fitted, "jpeg")
    kept = {kind: content for kind, content in fitted.items() if content and kind not in too_large}

    added = b""
    if "EXIF" in kept:
        added += jpeg_segment(APP1, EXIF_HEAD + kept["EXIF"])
    if "XMP" in kept:
        added += jpeg_segment(APP1, XMP_HEAD + kept["XMP"])
    if "ICC_PROFILE" in kept:
        parts = [profile[place : place + _PART_BYTES] for place in range(0, len(profile), _PART_BYTES)]
        for number, part in enumerate(parts, 1):
            added += jpeg_segment(APP2, PROFILE_HEAD + bytes((number, len(parts))) + part)
    if "IPTC" in kept:
        added += jpeg_segment(APP13, IPTC_HEAD + iptc_resource(kept["IPTC"]))
    if "COMMENT" in kept:
        added += jpeg_segment(COMMENT, kept["COMMENT"])
    return with_segments(_jpeg_with_density(jpeg, data.get("DENSITY")), added)


def _jpeg_with_density(jpeg: bytes, density: bytes | None) -> bytes:
    """Return a JPEG with a resolution in dots per inch, if its pixels are square."""
    per_inch = round(int.from_bytes(density or b"") * 0.0254)
    for marker, place, content in jpeg_segments(jpeg):
        if marker == APP0 and content.startswith(JFIF_HEAD) and 0 < per_inch <= 0xFFFF:
            start = place + 4 + len(JFIF_HEAD) + 2
            _, across, down = struct.unpack_from(">BHH", jpeg, start)
            if across == down:
                return jpeg[:start] + struct.pack(">BHH", 1, per_inch, per_inch) + jpeg[start + 5 :]
    return jpeg


def _png_with(png: bytes, data: Mapping[str, bytes]) -> bytes:
    width_px, height_px = struct.unpack(">II", png[16:24])
    added = b""
    exif = fitted_exif(data.get("EXIF", b""), width_px=width_px, height_px=height_px)
    if exif:
        added += png_chunk(b"eXIf", exif)
    xmp = fitted_xmp(data.get("XMP", b""), width_px=width_px, height_px=height_px)
    if xmp:
        added += png_chunk(b"iTXt", PNG_XMP_HEAD + bytes(4) + xmp)
    if "COMMENT" in data:
        added += _comment_chunk(data["COMMENT"])
    added += data.get("TEXTS", b"")
    if "DENSITY" in data and _has_square_pixels(png):
        png = _without(png, (b"pHYs",))
        added += png_chunk(b"pHYs", 2 * data["DENSITY"] + b"\1")
    profile = data.get("ICC_PROFILE", b"")
    if profile[16:20] == _KINDS.get(png[25]):
        png = _without(png, _OTHER_COLORS)
        added += png_chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(profile))
    return png[:PNG_HEAD_BYTES] + added + png[PNG_HEAD_BYTES:]


def _comment_chunk(comment: bytes) -> bytes:
    """Return a text chunk of a PNG with a comment in UTF-8, or in Latin-1."""
    try:
        text = comment.decode()
    except UnicodeDecodeError:
        text = comment.decode("latin-1")
    text = text.replace("\0", "")
    try:
        return png_chunk(b"tEXt", PNG_COMMENT + b"\0" + text.encode("latin-1"))
    except UnicodeEncodeError:
        return png_chunk(b"iTXt", PNG_COMMENT + bytes(5) + text.encode())


def _has_square_pixels(png: bytes) -> bool:
    shape = next((chunk[8:16] for kind, chunk in _chunks(png) if kind == b"pHYs"), b"")
    return shape[:4] == shape[4:]


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
