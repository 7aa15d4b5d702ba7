"""Stream pictures of a running job to a browser as fragmented MP4: downscaled H.264,
one fragment per picture."""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np
from av.video.stream import VideoStream

from ultraflash_cli.video.color import FrameFilter, Picture, as_frame, narrowed
from ultraflash_cli.video.encode import EncodeSpec

__all__ = ["Fragment", "FragmentWriter"]

_LONGEST_PX = 960
"""Maximum width or height of shown pictures: enough for a browser window, and fast to
encode."""
_UNIT = Fraction(1, 90_000)
_KEY_EVERY_S = 2
_MOVE_FLAGS = "+empty_moov+default_base_moof+frag_every_frame"


@dataclass(frozen=True)
class Fragment:
    """A part of the stream."""

    content: bytes
    starts: bool
    """Whether a player can start with it, after the head."""


class _Pieces:
    """Receives the muxer's output, without seeking back."""

    def __init__(self) -> None:
        self.content = bytearray()

    def write(self, content: bytes, /) -> int:
        self.content += content
        return len(content)


class FragmentWriter:
    """Encodes downscaled, upright pictures of a job with the output ``spec``. ``head``
    and ``codec`` (in browsers' notation) are known once the first picture is written.
    """

    def __init__(self, spec: EncodeSpec) -> None:
        self._spec = spec
        width_px, height_px = _shown_size(spec)
        self._filters = FrameFilter(*_filters(spec, width_px, height_px))
        self._pieces = _Pieces()
        self._container = av.open(self._pieces, "w", format="mp4", container_options={"movflags": _MOVE_FLAGS})
        rate = min(max(spec.rate, Fraction(1)), Fraction(240))
        options = {"preset": "ultrafast", "tune": "zerolatency", "crf": "26", "profile": "baseline"}
        stream = self._container.add_stream("libx264", rate=rate, options=options)
        assert isinstance(stream, VideoStream), "a video encoder makes a video stream"
        stream.width, stream.height, stream.pix_fmt = width_px, height_px, "yuv420p"
        stream.codec_context.time_base = stream.time_base = _UNIT
        stream.codec_context.thread_count = 1
        stream.codec_context.gop_size = max(1, round(_KEY_EVERY_S * rate))
        self._stream = stream
        self._keys: list[bool] = []
        self._given = 0
        self._first: Fraction | None = None
        self._last = -1
        self.head = b""
        self.codec = ""

    def write(self, picture: Picture, pts: int) -> Iterator[Fragment]:
        """Encode a picture ``[H, W, 3]``, or planes in the spec's format, shown at
        ``pts``; yields the fragments that are ready. Pictures not later than the last
        one are skipped.
        """
        seconds = pts * self._spec.time_base
        if self._first is None:
            self._first = seconds
        shown = round((seconds - self._first) / _UNIT)
        if shown <= self._last:
            return
        self._last = shown
        for frame in self._filters.push(self._frame(picture)):
            frame.time_base, frame.pts = _UNIT, shown
            yield from self._mux(self._stream.encode(frame))

    def close(self) -> Iterator[Fragment]:
        """Yield the remaining fragments."""
        yield from self._mux(self._stream.encode(None))
        self._container.close()
        yield from self._ready()

    def _frame(self, picture: Picture) -> av.VideoFrame:
        if picture.ndim == 2:
            frame = as_frame(picture, self._spec.pix_fmt)
            frame.colorspace, frame.color_range = self._spec.color.matrix, self._spec.color.range
            return frame
        return as_frame(narrowed(picture), "rgb48le" if picture.dtype == np.uint16 else "rgb24")

    def _mux(self, packets: list[av.Packet]) -> Iterator[Fragment]:
        for packet in packets:
            self._keys.append(packet.is_keyframe)
            self._container.mux_one(packet)
        yield from self._ready()

    def _ready(self) -> Iterator[Fragment]:
        """Yield the complete parts of the muxer's output: the head, then a pair of
        boxes per picture."""
        content = self._pieces.content
        while (end := _end_of_part(content)) is not None:
            part = bytes(content[:end])
            del content[:end]
            if part[4:8] == b"ftyp":
                self.head = part
                self.codec = _codec_of(part)
            elif part[4:8] == b"moof":
                yield Fragment(part, self._keys[self._given])
                self._given += 1


def _end_of_part(content: bytearray) -> int | None:
    """Return the end of the first part: a head `ftyp moov`, a fragment `moof mdat`, or
    another box; None if it is incomplete."""
    end, kinds = 0, list[bytes]()
    while len(content) >= end + 8:
        size = int.from_bytes(content[end : end + 4], "big")
        kinds.append(bytes(content[end + 4 : end + 8]))
        end += max(8, size)
        if end > len(content):
            return None
        if kinds[0] not in (b"ftyp", b"moof") or len(kinds) == 2:
            return end
    return None


def _codec_of(head: bytes) -> str:
    place = head.find(b"avcC") + 5
    return f"avc1.{head[place : place + 3].hex()}"


def _shown_size(spec: EncodeSpec) -> tuple[int, int]:
    """Return the display width and height, after rotation and rounded to even numbers."""
    width, height = spec.width_px * spec.sample_aspect_ratio, Fraction(spec.height_px)
    if spec.rotation_deg in (90, 270):
        width, height = height, width
    scale = min(Fraction(1), _LONGEST_PX / max(width, height))
    return max(2, round(width * scale / 2) * 2), max(2, round(height * scale / 2) * 2)


def _filters(spec: EncodeSpec, width_px: int, height_px: int) -> list[tuple[str, str]]:
    if spec.rotation_deg in (90, 270):
        width_px, height_px = height_px, width_px
    filters = [("scale", f"w={width_px}:h={height_px}:flags=bilinear:out_color_matrix=bt709:out_range=limited")]
    filters.append(("format", "pix_fmts=yuv420p"))
    if spec.mirrored:
        filters.append(("hflip", ""))
    match spec.rotation_deg:
        case 90:
            filters.append(("transpose", "dir=clock"))
        case 180:
            filters += [("hflip", ""), ("vflip", "")]
        case 270:
            filters.append(("transpose", "dir=cclock"))
        case _:
            pass
    return filters
