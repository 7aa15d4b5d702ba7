"""Write raw frames for other programs (YUV4MPEG2) from lossless segments."""

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import av
import numpy as np
from av.error import FFmpegError

from ultraflash_cli.errors import OutputCheckError
from ultraflash_cli.video.codecs import bits_of
from ultraflash_cli.video.color import FULL
from ultraflash_cli.video.encode import EncodeSpec
from ultraflash_cli.video.partial import output_errors
from ultraflash_cli.video.segment import open_segment
from ultraflash_cli.video.segment_file import SegmentFile

__all__ = ["ByteSink", "write_y4m"]


class ByteSink(Protocol):
    """The destination of bytes: a binary file open for writing, or standard output."""

    def write(self, content: bytes, /) -> object:
        """Write all of ``content``."""
        ...

    def flush(self) -> None:
        """Write any buffered bytes."""
        ...


def write_y4m(segments: Iterable[SegmentFile], spec: EncodeSpec, sink: ByteSink, *, name: str = "-") -> int:
    """Write the frames of finished segments of the codec ``y4m`` to ``sink`` uncompressed; return their count.

    Each segment is written before the next one is requested. ``name`` is the sink's
    name in messages. Raises ``OutputError`` if the sink accepts no more data,
    ``OutputCheckError`` if a segment cannot be read back.
    """
    target, sample_bytes = Path(name), 2 if spec.deep else 1
    total = 0
    for segment in segments:
        count = 0
        if not total:
            with output_errors(target):
                sink.write(_header(spec))

        try:
            with open_segment(segment.path) as container:
                for frame in container.decode(video=0):
                    content = b"FRAME\n" + _planes(frame, sample_bytes)
                    with output_errors(target):
                        sink.write(content)
                    count += 1
        except (OSError, FFmpegError) as error:
            raise OutputCheckError(f"{segment.path}: this segment cannot be read back ({error})") from error

        if count != segment.frames:
            raise OutputCheckError(f"{segment.path}: has {count} frames, expected {segment.frames}")

        total += count
        with output_errors(target):
            sink.flush()
    return total


def _header(spec: EncodeSpec) -> bytes:
    width_px, height_px = spec.coded_size_px
    bits = bits_of(spec.pix_fmt)
    sampling = next(each for each in ("420", "422", "444") if each in spec.pix_fmt)
    # The position of 4:2:0 chroma that we write: left.
    space = f"p{bits}" if bits > 8 else "mpeg2" if sampling == "420" else ""
    aspect, limits = spec.coded_aspect, "FULL" if spec.color.range == FULL else "LIMITED"
    return (
        f"YUV4MPEG2 W{width_px} H{height_px} F{spec.rate.numerator}:{spec.rate.denominator} Ip "
        f"A{aspect.numerator}:{aspect.denominator} C{sampling}{space} XCOLORRANGE={limits}\n"
    ).encode()


def _planes(frame: av.VideoFrame, sample_bytes: int) -> bytes:
    """Return all samples of a frame, plane by plane and row by row, without row padding."""
    return b"".join(
        np.frombuffer(bytes(plane), np.uint8)
        .reshape(-1, plane.line_size)[: plane.height, : plane.width * sample_bytes]
        .tobytes()
        for plane in frame.planes
    )
