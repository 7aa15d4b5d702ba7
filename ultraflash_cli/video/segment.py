"""Segment files: encoded parts of a clip, valid only once finished."""

import stat
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.video.stream import VideoStream

from ultraflash_cli.files import sync_file
from ultraflash_cli.video.codecs import CODECS, is_rgb_format
from ultraflash_cli.video.color import Picture, as_frame, as_picture, narrowed, yuv_filter
from ultraflash_cli.video.encode import EncodeSpec
from ultraflash_cli.video.encoders import encoder_options, open_encoder, prepare_encoder
from ultraflash_cli.video.frame import Frame
from ultraflash_cli.video.hdr_messages import hdr_messages, with_messages
from ultraflash_cli.video.partial import output_errors
from ultraflash_cli.video.segment_file import SegmentFile

__all__ = ["SegmentWriter", "open_segment"]

_READING = {
    "format_whitelist": ",".join(sorted({known.segment_format for known in CODECS.values()})),
    "protocol_whitelist": "file",
}

_DECODING_LEAD = 1_000_000
"""Ticks by which a segment's decoding times precede its first frame; more than its
number of frames."""


class SegmentWriter:
    """Writes one segment with a freshly opened encoder.

    Timestamps in the file are relative to its first frame; ``close`` returns the rest.
    As a context manager it deletes the file if an exception is raised.
    """

    def __init__(self, path: Path, spec: EncodeSpec) -> None:
        self.path = path
        self.spec = spec
        known = spec.capabilities
        chroma_location = "center" if known.is_jfif else "left"
        self._convert = yuv_filter(spec.color, pix_fmt=spec.pix_fmt, chroma_location=chroma_location)
        self._messages = hdr_messages(spec) if known.lacks_hdr_messages else b""
        self._first: int | None = None
        self._last: int | None = None
        self._last_duration = 0
        self._frames = 0
        self._packets = 0
        self._closed = False
        self._finished: SegmentFile | None = None
        timescale = str(spec.track_time_base.denominator)
        options = {"video_track_timescale": timescale, "movie_timescale": timescale}

        with output_errors(path):
            self._container = av.open(
                f"file:{path}",
                "w",
                format=known.segment_format,
                container_options=options if known.segment_format in ("mp4", "mov") else dict(known.segment_options),
            )
            self._stream = self._add_stream()

        open_encoder(self._stream.codec_context, spec)
        with output_errors(path):
            self._container.start_encoding()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abandon()

    def write(self, frame: Frame) -> None:
        """Encode one frame; ``pts`` must increase, in the spec's time base. YUV 4:2:0
        planes in the spec's format, matrix and range are encoded without conversion.
        Transparency is dropped if the spec encodes none; frames without it are opaque.
        """
        rgb_hwc, pts, duration = frame.rgb_hwc, frame.pts, frame.duration
        assert not self._closed, "a segment that is still open"
        assert self._last is None or pts > self._last, f"time stamps grow: {pts} after {self._last}"
        shapes = ((self.spec.height_px, self.spec.width_px, 3), (self.spec.height_px * 3 // 2, self.spec.width_px))
        assert rgb_hwc.shape in shapes, f"a frame of the spec: {rgb_hwc.shape}"
        if self._first is None:
            self._first = pts
        self._last, self._last_duration = pts, duration
        self._frames += 1
        with output_errors(self.path):
            yuv = self._planes(rgb_hwc) if rgb_hwc.ndim == 2 else self._converted(rgb_hwc, frame.alpha_hw)
            if self.spec.fed_pix_fmt != self.spec.pix_fmt:
                yuv = yuv.reformat(format=self.spec.fed_pix_fmt)  # the same samples in another layout
            # ProRes writes the tags of its frames, not those of the stream.
            yuv.color_primaries, yuv.color_trc = self.spec.color.primaries, self.spec.color.transfer
            ticks = self.spec.time_base.numerator
            yuv.time_base = self.spec.track_time_base
            yuv.pts = (pts - self._first) * ticks
            yuv.duration = duration * ticks
            self._mux(self._stream.encode(yuv))

    def close(self) -> SegmentFile:
        """Finish the file and wait until it is on disk."""
        if self._finished is not None:
            return self._finished

        assert not self._closed, "a segment that was not abandoned"
        assert self._first is not None and self._last is not None, "a segment holds at least one frame"
        self._closed = True
        with output_errors(self.path):
            self._mux(self._stream.encode(None))
            self._container.close()
            sync_file(self.path)
            size_bytes = self.path.stat().st_size

        self._finished = SegmentFile(
            path=self.path,
            size_bytes=size_bytes,
            frames=self._frames,
            first_pts=self._first,
            last_pts=self._last,
            last_duration=self._last_duration,
        )
        return self._finished

    def abandon(self) -> None:
        """Delete the file, finished or not; the disk may be full."""
        if not self._closed:
            self._closed = True
            with suppress(OSError, FFmpegError):
                self._container.close()
        with suppress(OSError):
            if stat.S_ISREG(self.path.lstat().st_mode):
                self.path.unlink()

    def _planes(self, planes: Picture) -> av.VideoFrame:
        """Return planes in the encoder's format as a frame."""
        assert not self.spec.turns and not self.spec.alpha, "planes are neither turned nor transparent"
        yuv = as_frame(planes, self.spec.pix_fmt)
        yuv.colorspace, yuv.color_range = self.spec.color.matrix, self.spec.color.range
        return yuv

    def _converted(self, rgb_hwc: Picture, alpha_hw: Picture | None) -> av.VideoFrame:
        (yuv,) = self._convert.push(self._packed(rgb_hwc, alpha_hw))
        return yuv

    def _packed(self, rgb_hwc: Picture, alpha_hw: Picture | None) -> av.VideoFrame:
        """Return the frame in a format for libswscale, rotated if the file cannot store
        a rotation."""
        deep = rgb_hwc.dtype == np.uint16
        pixels = rgb_hwc if is_rgb_format(self.spec.pix_fmt) else narrowed(rgb_hwc)
        if self.spec.alpha:
            whole = np.full(rgb_hwc.shape[:2], 65535 if deep else 255, rgb_hwc.dtype) if alpha_hw is None else alpha_hw
            assert whole.dtype == rgb_hwc.dtype, "transparency in the depth of the picture"
            pixels = as_picture(np.dstack((pixels, whole)))
        if self.spec.turns:
            if self.spec.mirrored:
                pixels = as_picture(pixels[:, ::-1])
            pixels = as_picture(np.rot90(pixels, -self.spec.rotation_deg // 90))
        names = ("rgb24", "rgb48le", "rgba", "rgba64le")
        return as_frame(pixels, names[2 * self.spec.alpha + deep])

    def _mux(self, packets: list[av.Packet]) -> None:
        for each in packets:
            packet = each
            if self._messages and packet.is_keyframe:
                packet = with_messages(packet, self._messages, self.spec.codec)

            # Encoders sometimes set no decoding times or meaningless ones; join
            # rebuilds them.
            reorders = self.spec.capabilities.reorders
            packet.dts = self._packets - _DECODING_LEAD if reorders else packet.pts
            packet.duration = 1
            self._packets += 1
            self._container.mux_one(packet)

    def _add_stream(self) -> VideoStream:
        spec = self.spec
        width_px, height_px = spec.coded_size_px
        stream = self._container.add_stream(
            spec.encoder,
            rate=spec.rate,
            options=encoder_options(spec),
            width=width_px,
            height=height_px,
            time_base=spec.track_time_base,
        )
        assert isinstance(stream, VideoStream), "a video encoder makes a video stream"
        prepare_encoder(stream.codec_context, spec)
        return stream


def open_segment(path: Path) -> InputContainer:
    """Open a segment for reading, restricted to the formats of segments, so that a file
    put in its place cannot refer to other files.
    """
    return av.open(f"file:{path}", container_options=_READING)
