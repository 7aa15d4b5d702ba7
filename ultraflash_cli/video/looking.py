"""Examine the first frames of a clip, within a budget of pixels."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Literal

import av
from av.container import InputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.video.codeccontext import VideoCodecContext
from av.video.stream import VideoStream

from ultraflash_cli.errors import InputError
from ultraflash_cli.video.cadence import RepeatMeter
from ultraflash_cli.video.color import is_rgb
from ultraflash_cli.video.interlace import FieldMeter, Scan, Verdict
from ultraflash_cli.video.pipe import Pipe
from ultraflash_cli.video.refusals import kind_of
from ultraflash_cli.video.sequence import ImageSequence
from ultraflash_cli.video.source import Source, Tally, decoded_frames, decoder_of, read_packets, source_path
from ultraflash_cli.video.transparency import has_alpha_layer, is_transparent, stores_alpha

__all__ = ["FirstLook", "average_rate", "first_look"]

_MOST_LOOKED = 100
"""Maximum number of frames to examine."""
_MOST_PIXELS = 1 << 28
"""Maximum number of pixels to examine, regardless of the frame size."""
_FIRST_FRAME_PACKETS = 500
_SCANNED_BYTES = 8_000_000
_SCANNED_PIXELS = 1 << 26
"""Limits on reading and decoding to find larger pictures later in the file."""
_PLACES = (0.12, 0.3, 0.5, 0.7, 0.88)
_LOOKED_ELSEWHERE = 30
"""Positions in the file at which fields are measured again, and the number of frames at
each."""
_LOOKED_FOR_LONG = 75
"""Number of frames if a 25-frame pattern is expected."""
_TELLING = 12
"""Minimum number of frames with motion for a conclusive measurement."""
_GROWING = {"h264", "hevc", "mpeg1video", "mpeg2video", "vp8", "vp9", "av1"}
"""Codecs whose picture size may change within a stream."""
_INTERLACED_LINES = 1088
_INTERLACED_RATE = 31
"""Limits above which video is never interlaced, so that no fields are measured."""
_FASTEST = 1000
"""Highest frame rate of cameras."""
_FIELD_ORDERS: Mapping[int, Scan] = {2: "tff", 3: "bff", 4: "bff", 5: "tff"}
_FLAGGING_CODECS = {"h264", "hevc", "mpeg2video", "vc1", "dvvideo", "mpeg4", "prores"}
"""Codecs whose decoders flag each frame as interlaced or not."""
_NEVER_INTERLACED = {"apng", "av1", "exr", "gif", "png", "vp8", "vp9", "webp"}


@dataclass(frozen=True, kw_only=True)
class FirstLook:
    """Findings about the first frames."""

    first: av.VideoFrame
    size_wh: tuple[int, int]
    """Size of the largest frame."""
    aspect: Fraction
    """Pixel aspect ratio, as stated by the stream itself."""
    scan: Scan
    first_field: Literal["tff", "bff"] | None
    """Field order, if it was measured."""
    film_rate: Fraction | None
    """Average frames per second, if many frames are flagged to last three fields."""
    flagged_rate: Fraction | None
    """Pairs of fields per second in that case."""
    may_be_interlaced: bool
    """Whether fields were measured."""
    wrongly_flagged: bool
    """Whether frames are flagged as interlaced but are progressive."""
    has_alpha: bool
    lost_alpha: bool
    """Whether there is transparency that cannot be decoded."""


@dataclass
class _Sizes:
    """The largest of the frames seen."""

    largest_wh: tuple[int, int] = (0, 0)
    aspect: Fraction = Fraction(1)
    seen: set[tuple[int, int]] = field(default_factory=set[tuple[int, int]])
    pixels: int = 0
    """Total pixels of all frames."""

    def see(self, frame: av.VideoFrame, decoder: VideoCodecContext) -> None:
        width, height = frame.width, frame.height
        self.seen.add((width, height))
        self.pixels += width * height
        if width * height > self.largest_wh[0] * self.largest_wh[1]:
            self.largest_wh = width, height
            self.aspect = decoder.sample_aspect_ratio or Fraction(1)


def first_look(source: Source, container: InputContainer, stream: VideoStream) -> FirstLook:
    """Decode frames until everything is known, or the budget is spent.

    Raises ``InputError`` if no frame can be decoded.
    """
    path = source_path(source)
    tally, sizes = Tally(), _Sizes()
    first: av.VideoFrame | None = None
    meter: FieldMeter | None = None
    repeats = RepeatMeter(stream)
    flagged = has_alpha = False
    decoder = decoder_of(stream, alpha=False)

    head: list[Packet] = []
    try:
        frames = decoded_frames(container, stream, decoder, tally, patience=_FIRST_FRAME_PACKETS, head=head)
        for count, frame in enumerate(frames):
            if first is None:
                first = frame
                meter = FieldMeter() if _may_be_interlaced(container, stream, frame) else None
            sizes.see(frame, decoder)
            repeats.push(frame)
            flagged = flagged or frame.interlaced_frame
            has_alpha = has_alpha or is_transparent(stream, frame)
            if meter is not None:
                meter.push(frame)
            sure = (meter is None or meter.is_sure) and (has_alpha or not stores_alpha(frame))
            if sure or count + 1 >= _MOST_LOOKED or sizes.pixels >= _MOST_PIXELS:
                break
    except (OSError, FFmpegError) as error:
        if first is None:
            raise InputError(f"{path}: its video cannot be decoded ({str(error).lower()})") from error

    if tally.encrypted:
        raise InputError(f"{path}: its video is encrypted; use an unprotected copy")
    if first is None and isinstance(source, Pipe) and container.format.name.startswith("mov,"):
        raise InputError(
            f"{path}: its index (moov) comes after its frames, which a pipe cannot read; save it to a file first"
        )
    if first is None:
        kind = kind_of(source) if isinstance(source, Path | Pipe) else None
        codec = stream.codec_context.codec.canonical_name
        damaged = f"it is damaged, truncated, or a variant of {codec} that the built-in FFmpeg does not support"
        raise InputError(f"{path}: {kind or f'no video frame can be decoded; {damaged}'}")

    is_file = isinstance(source, Path)
    if isinstance(source, ImageSequence):
        sizes = _Sizes(largest_wh=(first.width, first.height), aspect=sizes.aspect)
    elif is_file and _may_grow(container, stream, sizes):
        for frame in _key_frames_ahead(container, stream, decoder, sizes):
            sizes.see(frame, decoder)

    elsewhere: list[FieldMeter] = []
    measured = meter.result() if meter is not None else "unknown"
    scan = _scan(stream, measured, flagged)
    wrongly_flagged = scan == "flagged" and meter is not None and meter.is_clean
    if is_file and meter is not None and (wrongly_flagged or measured != "progressive"):
        frames = _LOOKED_FOR_LONG if measured == "telecined25" else _LOOKED_ELSEWHERE
        elsewhere = _look_elsewhere(container, stream, decoder, frames)
        wrongly_flagged = wrongly_flagged and not any(each.is_combed for each in elsewhere)
        measured = _together(measured, elsewhere)
        scan = _scan(stream, measured, flagged)

    orders = [each.first_field for each in (meter, *elsewhere) if each is not None and each.is_combed]
    is_hevc = stream.codec_context.codec.canonical_name == "hevc"
    return FirstLook(
        first=first,
        size_wh=sizes.largest_wh,
        aspect=sizes.aspect,
        scan="progressive" if wrongly_flagged else scan,
        first_field=max(("tff", "bff"), key=orders.count) if orders else None,
        film_rate=repeats.rate,
        flagged_rate=stream.codec_context.framerate if repeats.rate else None,
        may_be_interlaced=meter is not None,
        wrongly_flagged=wrongly_flagged,
        has_alpha=has_alpha,
        lost_alpha=is_hevc and has_alpha_layer(stream.codec_context.extradata, bytes(head[0]) if head else b""),
    )


def _may_grow(container: InputContainer, stream: VideoStream, sizes: _Sizes) -> bool:
    if stream.codec_context.codec.canonical_name not in _GROWING:
        return False
    # MP4 lists all sizes in its index; if two were seen, there may be a third.
    return len(sizes.seen) > 1 or not container.format.name.startswith("mov,")


def _key_frames_ahead(
    container: InputContainer, stream: VideoStream, decoder: VideoCodecContext, sizes: _Sizes
) -> Iterator[av.VideoFrame]:
    """Keep reading for some megabytes, decoding only keyframes, at which sizes
    change."""
    decoder.skip_frame = "NONKEY"
    left_bytes, most_pixels = _SCANNED_BYTES, sizes.pixels + _SCANNED_PIXELS
    try:
        for packet in read_packets(container, [stream]):
            left_bytes -= packet.size
            if packet.size:
                try:
                    yield from decoder.decode(packet)
                except FFmpegError:
                    continue  # it is reported when the clip is read
            if left_bytes <= 0 or sizes.pixels >= most_pixels:
                return
    except (OSError, FFmpegError):
        return


def _look_elsewhere(
    container: InputContainer, stream: VideoStream, decoder: VideoCodecContext, frames: int
) -> list[FieldMeter]:
    """Measure fields later in the file, as a film may start with a title that is static
    or was not shot on film."""
    decoder.skip_frame = "DEFAULT"
    start_s = (container.start_time or 0) / av.time_base
    length_s = (container.duration or 0) / av.time_base
    meters: list[FieldMeter] = []
    for part in _PLACES:
        meter = FieldMeter()
        try:
            container.seek(int((start_s + part * length_s) * av.time_base))
            decoder.flush_buffers()
            for frame in islice(decoded_frames(container, stream, decoder, Tally()), frames):
                meter.push(frame)
        except (OSError, FFmpegError):
            break
        meters.append(meter)
    return meters


def _together(first: Verdict, elsewhere: list[FieldMeter]) -> Verdict | Literal["mixed"]:
    """Combine the measurements at the start of a clip and at later positions."""
    verdicts: list[Verdict] = [first, *(meter.result() for meter in elsewhere if meter.votes >= _TELLING)]
    found: list[Verdict] = [verdict for verdict in verdicts if verdict != "unknown"]
    if len(set(found)) == 1:
        return found[0]
    if {"telecined", "telecined25", "shifted"} & set(found):
        return "mixed"
    # Parts in which each frame shows a single moment are progressive.
    interlaced: list[Verdict] = [verdict for verdict in found if verdict != "progressive"]
    return interlaced[0] if len(set(interlaced)) == 1 else first


def _may_be_interlaced(container: InputContainer, stream: VideoStream, frame: av.VideoFrame) -> bool:
    if stream.codec_context.codec.canonical_name in _NEVER_INTERLACED or is_rgb(frame.format.name):
        return False
    if container.format.name in ("image2", "yuv4mpegpipe") or container.format.name.endswith("_pipe"):
        return frame.interlaced_frame
    return 16 <= frame.height <= _INTERLACED_LINES and average_rate(stream) <= _INTERLACED_RATE


def average_rate(stream: VideoStream) -> Fraction:
    """Return the average frame rate, but not that of headers that store their tick rate
    instead (60000 for raw DV)."""
    given = [rate for rate in (stream.average_rate, stream.guessed_rate, stream.base_rate) if rate]
    return next((rate for rate in given if rate <= _FASTEST), given[0] if given else Fraction(25))


def _scan(stream: VideoStream, measured: Verdict | Literal["mixed"], flagged: bool) -> Scan:
    """Weigh measurements against flags; ``first_look`` examines more frames if a flag
    seems wrong."""
    context = stream.codec_context
    declared = _FIELD_ORDERS.get(context.field_order)
    if measured in ("telecined", "telecined25", "mixed", "shifted"):
        return measured
    if flagged:
        return "flagged"
    if measured in ("tff", "bff"):
        return measured
    if declared is None or measured == "progressive":
        return "progressive"
    return "flagged" if context.codec.canonical_name in _FLAGGING_CODECS else declared
