"""The visible part of a stored picture: clean aperture or Matroska's pixel crop."""

import io
from collections.abc import Iterator
from dataclasses import dataclass

import av
from av.error import FFmpegError
from av.video.stream import VideoStream

__all__ = ["Crop", "container_crop"]

_CROPPING_CONTAINERS = ("matroska", "mov,")
_SIDES = {0x54CC: "left_px", 0x54DD: "right_px", 0x54BB: "top_px", 0x54AA: "bottom_px"}
"""Matroska's numbers of PixelCropLeft and so on."""
_MASTERS = {0x18538067, 0x1654AE6B, 0xAE, 0xE0}
"""Segment, Tracks, TrackEntry and Video, which contain those elements."""


@dataclass(frozen=True, kw_only=True)
class Crop:
    """Columns and lines of the stored picture that are not shown, before rotation."""

    left_px: int = 0
    top_px: int = 0
    right_px: int = 0
    bottom_px: int = 0

    @property
    def width_px(self) -> int:
        """Number of columns that are cropped."""
        return self.left_px + self.right_px

    @property
    def height_px(self) -> int:
        """Number of lines that are cropped."""
        return self.top_px + self.bottom_px


def container_crop(stream: VideoStream, width_px: int, height_px: int) -> Crop | None:
    """Return the container's crop of pictures of ``width_px`` x ``height_px``; None if
    there is none. PyAV does not expose this value: it is read from the header that
    FFmpeg's muxer writes for such a stream.
    """
    if not stream.container.format.name.startswith(_CROPPING_CONTAINERS):
        return None
    header = io.BytesIO()
    try:
        with av.open(header, "w", format="matroska") as container:
            container.add_stream_from_template(stream, opaque=True)
            container.start_encoding()
            found = dict(_sides(header.getvalue()))
    except (OSError, FFmpegError, ValueError):
        return None  # a codec that Matroska cannot hold
    crop = Crop(**found)
    is_sound = crop.width_px < width_px and crop.height_px < height_px
    return crop if found and is_sound and crop != Crop() else None


def _sides(content: bytes) -> Iterator[tuple[str, int]]:
    """Walk Matroska's elements down to the crop of the first track."""
    place = 0
    while place < len(content):
        number, place = _number(content, place, keeps_marker=True)
        size, place = _number(content, place, keeps_marker=False)
        end = min(len(content), place + size)  # the size of a segment that is still being written is unknown
        if number in _MASTERS:
            yield from _sides(content[place:end])
        elif number in _SIDES:
            yield _SIDES[number], int.from_bytes(content[place:end])
        place = end


def _number(content: bytes, place: int, *, keeps_marker: bool) -> tuple[int, int]:
    length = 9 - content[place].bit_length()
    number = int.from_bytes(content[place : place + length])
    return number if keeps_marker else number & ~(1 << (7 * length)), place + length
