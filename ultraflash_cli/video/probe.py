"""What is in a file: streams, sizes, times, colour, rotation, without reading it through."""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from struct import unpack

import av
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.container.core import Flags
from av.error import FFmpegError
from av.stream import AttachmentStream, Disposition, Stream
from av.video.stream import VideoStream

from ultraflash_cli.errors import InputError
from ultraflash_cli.video.color import ColorInfo

__all__ = ["ClipInfo", "StreamInfo", "open_input", "probe", "stream_extent"]

_REFUSED_FORMATS = {"ansi", "applehttp", "concat", "dash", "hls", "lavfi", "rtsp", "sdp", "tty"}
"""Formats that are lists of other files, or text; FFmpeg would read nearly anything as ``tty``."""

_READING = {
    "protocol_whitelist": "file",
    "format_whitelist": ",".join(sorted(av.formats_available - _REFUSED_FORMATS)),
}
_PROBE_PACKETS = 500
_FIELD_ORDERS = (2, 3, 4, 5)


@dataclass(frozen=True, kw_only=True)
class StreamInfo:
    """One stream of the input, as far as copying it needs."""

    index: int
    kind: str
    """video, audio, subtitle, data, attachment or unknown."""
    codec: str
    """FFmpeg's codec name (``aac``, not the decoder's); empty where nothing is known."""
    language: str | None
    title: str | None
    is_picture: bool
    """A cover picture rather than a moving one."""
    sample_rate: int = 0

    def describe(self) -> str:
        """Say which stream this is, for people."""
        words = [f"stream {self.index}", self.kind, self.codec]
        if self.language and self.language != "und":
            words.append(self.language)
        return " ".join(word for word in words if word)


@dataclass(frozen=True, kw_only=True)
class ClipInfo:
    """The main video stream of a file and what lies beside it. Sizes are as coded, before rotation."""

    path: Path
    container: str
    """FFmpeg's name of the input format, e.g. ``mov,mp4,m4a,3gp,3g2,mj2``."""
    video_index: int
    codec: str
    width_px: int
    height_px: int
    rotation_deg: int
    """How far the coded picture is turned clockwise to be shown: 0, 90, 180 or 270."""
    display_matrix: tuple[int, ...] | None
    """The nine numbers of the container's display matrix, where there is one."""
    sample_aspect_ratio: Fraction
    pix_fmt: str
    bit_depth: int
    has_alpha: bool
    interlaced: bool
    time_base: Fraction
    average_rate: Fraction
    start_pts: int | None
    """Of the video stream, in ``time_base``."""
    end_pts: int | None
    """Where the file says that its last video frame ends, in ``time_base``."""
    start_s: float
    duration_s: float | None
    frame_count_estimate: int | None
    color: ColorInfo
    """The tags as the file gives them; ``color.resolve_color`` fills the gaps."""
    bit_rate: int | None
    streams: tuple[StreamInfo, ...]
    chapters: int
    """How many chapters the file has."""

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
        return av.VideoFormat(self.pix_fmt).is_rgb


@contextmanager
def open_input(path: Path) -> Generator[InputContainer]:
    """Open ``path`` for reading; raises ``InputError`` in one line for whatever stands in the way."""
    try:
        if path.is_dir():
            raise InputError(f"{path}: is a folder, not a video file.")
        if path.stat().st_size == 0:
            raise InputError(f"{path}: the file is empty (0 bytes).")
        # "file:" keeps names with a colon from being taken for a protocol.
        container = av.open(f"file:{path}", metadata_errors="replace", container_options=_READING)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"{path}: no such file.") from error
    except (OSError, FFmpegError) as error:
        raise InputError(f"{path}: {_why_unreadable(path, error)}") from error
    with container:
        container.flags &= ~Flags.gen_pts.value  # it guesses wrong where frames are reordered
        yield container


def probe(path: Path) -> ClipInfo:
    """Read the headers and the first frame of ``path``.

    Raises ``InputError`` where the file is missing, empty, unreadable, or holds no video that can be decoded.
    """
    with open_input(path) as container:
        stream = _main_video(container)
        if stream is None:
            raise InputError(f"{path}: holds no video stream.")
        if not _has_decoder(stream):
            raise InputError(f"{path}: its video codec is not known to the built-in FFmpeg.")
        frame = _first_frame(path, container, stream)
        context = stream.codec_context
        time_base = stream.time_base or Fraction(1, 1000)
        start, end = stream_extent(stream)
        rate = stream.average_rate or stream.guessed_rate or stream.base_rate or Fraction(25)
        duration = _duration(container, start, end, time_base)
        matrix = _display_matrix(frame)
        formats = frame.format
        return ClipInfo(
            path=path,
            container=container.format.name,
            video_index=stream.index,
            codec=context.codec.canonical_name,
            width_px=frame.width,
            height_px=frame.height,
            rotation_deg=-round(frame.rotation / 90) * 90 % 360 if matrix else 0,
            display_matrix=matrix,
            sample_aspect_ratio=stream.sample_aspect_ratio or context.sample_aspect_ratio or Fraction(1),
            pix_fmt=formats.name,
            bit_depth=min(16, max(component.bits for component in formats.components)),
            has_alpha=_has_alpha(stream, frame),
            interlaced=frame.interlaced_frame or context.field_order in _FIELD_ORDERS,
            time_base=time_base,
            average_rate=rate,
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
            bit_rate=context.bit_rate or container.bit_rate or None,
            streams=tuple(_stream_info(each) for each in container.streams),
            chapters=len(container.chapters()),
        )


def _main_video(container: InputContainer) -> VideoStream | None:
    candidates = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    decodable = [s for s in candidates if _has_decoder(s)]
    chosen = [s for s in decodable if s.disposition & Disposition.default] or decodable or candidates
    return chosen[0] if chosen else None


def _has_decoder(stream: Stream) -> bool:
    # PyAV's type hints do not say that streams without a known decoder have no context.
    return getattr(stream, "codec_context", None) is not None


def _first_frame(path: Path, container: InputContainer, stream: VideoStream) -> av.VideoFrame:
    failure: Exception | None = None
    try:
        for count, packet in enumerate(container.demux(stream)):
            try:
                frames = packet.decode()
            except FFmpegError as error:
                failure = error
                frames = []
            if frames:
                return frames[0]
            if count > _PROBE_PACKETS:
                break
    except (OSError, FFmpegError) as error:
        failure = error
    raise InputError(f"{path}: not one frame of its video can be decoded; the file is damaged or cut.") from failure


def _stream_info(stream: Stream) -> StreamInfo:
    if isinstance(stream, AttachmentStream):
        codec = stream.name or "attachment"
    elif _has_decoder(stream):
        codec = stream.codec_context.codec.canonical_name
    else:
        codec = stream.name or ""
    return StreamInfo(
        index=stream.index,
        kind=stream.type,
        codec=codec,
        language=stream.language,
        title=stream.metadata.get("title"),
        is_picture=bool(stream.disposition & Disposition.attached_pic),
        sample_rate=stream.codec_context.sample_rate if isinstance(stream, AudioStream) and _has_decoder(stream) else 0,
    )


def stream_extent(stream: VideoStream) -> tuple[int | None, int | None]:
    """Where a stream says that it starts and ends, in its own ticks."""
    start = stream.start_time
    if stream.duration:
        return start, (start or 0) + stream.duration
    # Matroska keeps the end of each stream as a tag, in wall time.
    for key, value in stream.metadata.items():
        if key.upper() == "DURATION":
            try:
                hours, minutes, seconds = value.strip().rstrip("\0").split(":")
                end_s = int(hours) * 3600 + int(minutes) * 60 + Fraction(seconds)
            except ValueError:
                break
            return start, round(end_s / (stream.time_base or Fraction(1, 1000)))
    return start, None


def _duration(container: InputContainer, start: int | None, end: int | None, time_base: Fraction) -> float | None:
    if end is not None and end > (start or 0):
        return float((end - (start or 0)) * time_base)
    return container.duration / av.time_base if container.duration else None


def _display_matrix(frame: av.VideoFrame) -> tuple[int, ...] | None:
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return None
    matrix = unpack("=9i", bytes(data)[:36])
    identity = (65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30)
    return None if matrix == identity else matrix


def _has_alpha(stream: VideoStream, frame: av.VideoFrame) -> bool:
    if any(key.lower() == "alpha_mode" and value == "1" for key, value in stream.metadata.items()):
        return True
    if not any(component.is_alpha for component in frame.format.components):
        return False
    alpha = frame.reformat(format="rgba").to_ndarray()[:, :, 3]
    return bool((alpha < 255).any())


def _why_unreadable(path: Path, error: Exception) -> str:
    if isinstance(error, PermissionError):
        return "no permission to read it."
    if _lacks_index(path):
        return "its index (moov) is missing: the recording was cut before it was finished. Recover it from the source."
    return f"is not a video file that can be read ({(getattr(error, 'strerror', None) or str(error)).lower()})."


def _lacks_index(path: Path) -> bool:
    """Walk the top-level boxes of an MP4 or MOV file and see whether ``moov`` is among them."""
    try:
        with open(path, "rb") as file:
            size = path.stat().st_size
            seen: list[bytes] = []
            while len(seen) < 1000 and file.tell() + 8 <= size:
                start = file.tell()
                length, name = unpack(">I4s", file.read(8))
                if length == 1 and start + 16 <= size:
                    length = unpack(">Q", file.read(8))[0]
                seen.append(name)
                if length < 8:
                    break
                file.seek(start + length)
    except OSError:
        return False
    return seen[:1] == [b"ftyp"] and b"moov" not in seen
