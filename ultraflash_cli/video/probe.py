"""Probe a file for streams, sizes, times, colour and rotation, without reading all of
it."""

import re
from dataclasses import dataclass, replace
from fractions import Fraction
from math import atan2, degrees, gcd, lcm
from pathlib import Path
from struct import unpack
from typing import Literal, cast

import av
from av.audio.format import AudioFormat
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.stream import AttachmentStream, Disposition, Stream
from av.video.stream import VideoStream

from ultraflash_cli.errors import InputError
from ultraflash_cli.video.color import (
    ColorInfo,
    ContentLight,
    MasteringDisplay,
    chroma_location,
    content_light,
    is_rgb,
    mastering_display,
)
from ultraflash_cli.video.crop import Crop, container_crop
from ultraflash_cli.video.interlace import Scan
from ultraflash_cli.video.looking import average_rate, first_look
from ultraflash_cli.video.refusals import kind_of
from ultraflash_cli.video.sequence import ImageSequence
from ultraflash_cli.video.sidedata import side_data
from ultraflash_cli.video.sound import sample_bits
from ultraflash_cli.video.source import (
    LARGEST_PIXELS,
    Source,
    has_decoder,
    main_videos,
    open_input,
    source_path,
)
from ultraflash_cli.video.timeline import survey

__all__ = ["ClipInfo", "StreamInfo", "probe", "stream_extent", "surveyed"]

_CLOCK = re.compile(r"(\d{1,6}):(\d{1,2}):(\d{1,2}(?:\.\d{1,12})?)")


@dataclass(frozen=True, kw_only=True)
class StreamInfo:
    """One input stream, with what is needed to copy it."""

    index: int
    kind: str
    """video, audio, subtitle, data, attachment or unknown."""
    codec: str
    """FFmpeg's codec name (``aac``, not the decoder's); empty if nothing is known."""
    language: str | None
    title: str | None
    is_picture: bool
    """Whether it is a cover picture rather than video."""
    sample_rate: int = 0
    sample_bits: int = 0
    """Bits per sample of audio stored losslessly as integers; else 0."""
    is_known: bool = True
    """Whether the file states the parameters that a copy needs: sample rate and
    channels of audio, size of a picture."""

    def describe(self) -> str:
        """Return a short description of the stream for messages."""
        unknown = "of an unknown codec" if self.kind in ("audio", "subtitle", "video") else ""
        words = [f"stream {self.index}", self.kind, self.codec or unknown]
        if self.language and self.language != "und":
            words.append(self.language)
        return " ".join(word for word in words if word)


@dataclass(frozen=True, kw_only=True)
class ClipInfo:
    """The main video stream of a file, and the other streams. Sizes are those after
    cropping, before rotation."""

    path: Path
    """The name of ``source``; a pattern for pictures, ``-`` for a pipe."""
    source: Source
    """Source for ``open_input`` and ``read_frames``."""
    container: str
    """FFmpeg's name of the input format, e.g. ``mov,mp4,m4a,3gp,3g2,mj2``."""
    video_index: int
    codec: str
    width_px: int
    height_px: int
    crop: Crop | None
    """Part of the stored picture that the container crops away."""
    rotation_deg: int
    """Clockwise rotation of the coded picture for display: 0, 90, 180 or 270."""
    mirrored: bool
    """Whether the coded picture is mirrored left to right, before rotation."""
    display_matrix: tuple[int, ...] | None
    """The nine numbers of the container's display matrix, if there is one."""
    sample_aspect_ratio: Fraction
    coded_aspect: Fraction
    """Pixel aspect ratio (width over height) according to the stream itself, regardless
    of the container."""
    pix_fmt: str
    chroma_location: str
    """Chroma sample location, as FFmpeg's scale filter names it."""
    bit_depth: int
    has_alpha: bool
    """Whether the stream is tagged as transparent, or an examined frame has a pixel
    that is not opaque."""
    lost_alpha: bool
    """Whether the stream has transparency that the built-in FFmpeg cannot read."""
    scan: Scan
    wrongly_flagged: bool
    """Whether the examined frames are flagged as interlaced but are progressive."""
    first_field: Literal["tff", "bff"] | None = None
    """Field order, if it was measured."""
    repeated_field: Fraction | None = None
    """Ticks per field, if many frames are flagged to last three fields (soft telecine)."""
    fields: bool = False
    """Whether each frame of the file yields two, one per field; see
    ``with_deinterlacing``."""
    film: bool = False
    """Whether the file's frames are reduced to the original film frames; see
    ``with_deinterlacing``."""
    watched: bool = False
    """Whether to watch for undetected interlaced parts when the clip is read."""
    chroma_shift: tuple[float, float] | None = None
    """Chroma shift in pixels to the right and down, which is undone on reading."""
    denoise: tuple[float, float] | None = None
    """Denoising strength for luma and chroma when frames are read, in levels of 255."""
    time_base: Fraction
    average_rate: Fraction
    step_s: Fraction
    """Largest step that divides the start time and the frame intervals."""
    start_pts: int | None
    """Start of the video stream, in ``time_base``."""
    end_pts: int | None
    """End of the last video frame according to the file, in ``time_base``."""
    start_s: float
    duration_s: float | None
    frame_count_estimate: int | None
    color: ColorInfo
    """Colour tags of the file; ``color.resolve_color`` fills in missing ones."""
    mastering_display: MasteringDisplay | None
    content_light: ContentLight | None
    bit_rate: int | None
    streams: tuple[StreamInfo, ...]
    chapters: int
    """Number of chapters in the file."""
    has_captions: bool = False
    """Whether closed captions are inside the first picture."""

    @property
    def stored_wh(self) -> tuple[int, int]:
        """Width and height of the decoded picture, before it is cropped."""
        crop = self.crop or Crop()
        return self.width_px + crop.width_px, self.height_px + crop.height_px

    @property
    def interlaced(self) -> bool:
        """Whether frames are deinterlaced when read."""
        return self.scan in ("flagged", "tff", "bff", "all", "mixed", "shifted")

    @property
    def display_width_px(self) -> int:
        """Width as shown, after rotation; the sample aspect ratio is not applied."""
        return self.height_px if self.rotation_deg in (90, 270) else self.width_px

    @property
    def display_height_px(self) -> int:
        """Height as shown, after rotation; the sample aspect ratio is not applied."""
        return self.width_px if self.rotation_deg in (90, 270) else self.height_px

    @property
    def is_rgb(self) -> bool:
        """Whether the pixels are stored as RGB, so that no YUV matrix applies."""
        return is_rgb(self.pix_fmt)

    @property
    def other_videos(self) -> tuple[StreamInfo, ...]:
        """Video streams of the file other than the main one."""
        return tuple(
            stream
            for stream in self.streams
            if stream.kind == "video" and not stream.is_picture and stream.index != self.video_index
        )


def probe(source: Source) -> ClipInfo:
    """Read the headers and the first frames of ``source``: a file, a sequence of pictures or a pipe.

    What it reads of a pipe is buffered, so that ``read_frames`` starts at the first
    frame. Raises ``InputError`` if the file is missing, empty, unreadable, encrypted,
    or contains no video that can be decoded.
    """
    path = source_path(source)
    if isinstance(source, ImageSequence):
        source.check_sizes()
    failure = InputError(f"{path}: {_without_video(source)}")
    for number, index in enumerate(main_videos(source)):
        try:
            return _probe(source, index)
        except InputError as error:
            failure = failure if number else error
    raise failure


def _without_video(source: Source) -> str:
    with open_input(source) as container:
        sounds = [each.codec_context.codec.canonical_name for each in container.streams.audio if has_decoder(each)]
        kind = kind_of(source) if isinstance(source, Path) and not sounds else None
    if kind:
        return kind
    found = f"has only audio ({sounds[0]}), no video stream" if sounds else "has no video stream"
    return f"{found}; give a file with video"


def _probe(source: Source, index: int) -> ClipInfo:
    """Probe a source whose main video is stream ``index``."""
    path = source_path(source)
    with open_input(source) as container:
        stream = container.streams[index]
        assert isinstance(stream, VideoStream), "one of the main videos"
        if not has_decoder(stream):
            raise InputError(f"{path}: the built-in FFmpeg does not support its video codec")

        context = stream.codec_context
        if context.width * context.height > LARGEST_PIXELS:
            most = f"at most {LARGEST_PIXELS:,} pixels"
            raise InputError(f"{path}: is {context.width}x{context.height}, expected {most}; check its header")

        look = first_look(source, container, stream)
        frame = look.first
        time_base = stream.time_base or Fraction(1, 1000)
        start, end = survey(source, stream.index) or stream_extent(stream)
        rate = look.film_rate or average_rate(stream)
        duration = _duration(container, start, end, time_base)
        matrix = _display_matrix(frame)
        rotation_deg, mirrored = _turn(matrix)
        formats = frame.format
        width_px, height_px = look.size_wh
        crop = container_crop(stream, width_px, height_px)

        own_aspect = stream.sample_aspect_ratio or context.sample_aspect_ratio or Fraction(1)
        return ClipInfo(
            path=path,
            source=source,
            container=container.format.name,
            video_index=stream.index,
            codec=context.codec.canonical_name,
            width_px=width_px - (crop.width_px if crop else 0),
            height_px=height_px - (crop.height_px if crop else 0),
            crop=crop,
            rotation_deg=rotation_deg,
            mirrored=mirrored,
            display_matrix=matrix,
            sample_aspect_ratio=own_aspect,
            coded_aspect=look.aspect,
            pix_fmt=formats.name,
            chroma_location=chroma_location(frame, context.codec.canonical_name),
            bit_depth=min(16, max(component.bits for component in formats.components)),
            has_alpha=look.has_alpha,
            lost_alpha=look.lost_alpha,
            scan=look.scan,
            first_field=look.first_field,
            repeated_field=1 / (2 * look.flagged_rate * time_base) if look.flagged_rate else None,
            wrongly_flagged=look.wrongly_flagged,
            watched=look.may_be_interlaced and look.scan == "progressive" and not look.wrongly_flagged,
            time_base=time_base,
            average_rate=rate,
            step_s=_common_step((start or 0) * time_base, 1 / rate, 1 / (stream.base_rate or rate)),
            start_pts=start,
            end_pts=end,
            start_s=float((start or 0) * time_base),
            duration_s=duration,
            frame_count_estimate=round(duration * rate) if duration else stream.frames or None,
            color=ColorInfo(
                matrix=frame.colorspace,
                primaries=frame.color_primaries,
                transfer=frame.color_trc,
                range=frame.color_range,
            ),
            mastering_display=mastering_display(frame),
            content_light=content_light(frame),
            bit_rate=context.bit_rate or container.bit_rate or None,
            streams=tuple(_stream_info(each) for each in container.streams),
            chapters=len(container.chapters()),
            has_captions="A53_CC" in side_data(frame),
        )


def surveyed(info: ClipInfo) -> ClipInfo:
    """Read the whole clip, and return it with its start and end on the repaired clock,
    for any container."""
    found = survey(info.source, info.video_index, thorough=True)
    if found is None:
        return info
    start, end = found
    seconds = float((end - start) * info.time_base)
    return replace(
        info,
        start_pts=start,
        end_pts=end,
        start_s=float(start * info.time_base),
        duration_s=seconds,
        frame_count_estimate=round(seconds * info.average_rate),
    )


def _stream_info(stream: Stream) -> StreamInfo:
    if isinstance(stream, AttachmentStream):
        codec = stream.name or "attachment"
    elif has_decoder(stream):
        codec = stream.codec_context.codec.canonical_name
    else:
        codec = getattr(stream, "name", None) or ""
    return StreamInfo(
        index=stream.index,
        kind=stream.type,
        codec=codec,
        language=stream.language,
        title=stream.metadata.get("title"),
        is_picture=bool(stream.disposition & Disposition.attached_pic),
        sample_rate=stream.codec_context.sample_rate if isinstance(stream, AudioStream) and has_decoder(stream) else 0,
        sample_bits=_sample_bits(stream, codec),
        is_known=_is_known(stream),
    )


def _sample_bits(stream: Stream, codec: str) -> int:
    if not isinstance(stream, AudioStream) or not has_decoder(stream):
        return 0
    # The type hints omit that the format may be unknown at this point.
    form = cast("AudioFormat | None", stream.codec_context.format)
    return sample_bits(codec, form.name if form is not None else "")


def _is_known(stream: Stream) -> bool:
    if not has_decoder(stream):
        return True  # for these the codec alone decides
    if isinstance(stream, AudioStream):
        return stream.codec_context.sample_rate > 0 and stream.codec_context.channels > 0
    return not isinstance(stream, VideoStream) or stream.codec_context.width > 0


def stream_extent(stream: VideoStream) -> tuple[int | None, int | None]:
    """Return the start and end that a stream declares, in its own ticks."""
    start = stream.start_time
    counted = (start or 0) + stream.duration if stream.duration else None
    # Matroska stores the end of each stream as a tag; without it, FFmpeg reports that
    # of the longest stream.
    if counted is None or "matroska" in stream.container.format.name:
        end_s = _tagged_end_s(stream)
        if end_s is not None:
            return start, round(end_s / (stream.time_base or Fraction(1, 1000)))
    return start, counted


def _tagged_end_s(stream: VideoStream) -> Fraction | None:
    for key, value in stream.metadata.items():
        if key.upper() == "DURATION" and (clock := _CLOCK.fullmatch(value.strip().rstrip("\0"))):
            hours, minutes, seconds = clock.groups()
            return int(hours) * 3600 + int(minutes) * 60 + Fraction(seconds)
    return None


def _common_step(*times_s: Fraction) -> Fraction:
    """Return the largest step that divides all times without remainder."""
    common = lcm(*(time.denominator for time in times_s))
    return Fraction(gcd(*(int(time * common) for time in times_s)), common)


def _duration(container: InputContainer, start: int | None, end: int | None, time_base: Fraction) -> float | None:
    if end is not None and end > (start or 0):
        return float((end - (start or 0)) * time_base)
    return container.duration / av.time_base if container.duration else None


def _display_matrix(frame: av.VideoFrame) -> tuple[int, ...] | None:
    data = side_data(frame).get("DISPLAYMATRIX", b"")
    if len(data) < 36:
        return None
    matrix = unpack("=9i", data[:36])
    identity = (65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30)
    return None if matrix == identity else matrix


def _turn(matrix: tuple[int, ...] | None) -> tuple[int, bool]:
    """Return the clockwise rotation of a display matrix, in multiples of 90 degrees,
    and whether it mirrors first."""
    if matrix is None:
        return 0, False
    mirrored = matrix[0] * matrix[4] - matrix[1] * matrix[3] < 0
    sign = -1 if mirrored else 1
    return round(degrees(atan2(sign * matrix[1], sign * matrix[0])) / 90) * 90 % 360, mirrored
