"""Everything but the picture: which streams come along, and the join of segments, alone or with copied packets."""

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from math import lcm
from pathlib import Path
from typing import TYPE_CHECKING

import av
from av.container import InputContainer, OutputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.stream import Disposition, Stream
from av.video.stream import VideoStream

from ultraflash_cli.errors import OutputCheckError, OutputError, UsageError
from ultraflash_cli.video.encode import EncodeSpec, SegmentRecord, read_record
from ultraflash_cli.video.partial import output_errors, partial_file
from ultraflash_cli.video.probe import ClipInfo, StreamInfo, open_input, stream_extent

if TYPE_CHECKING:
    from av.container.core import Chapter

__all__ = ["DroppedStream", "StreamPlan", "check_output", "join", "join_alone", "plan_alone", "plan_streams"]

_MOVIE_TIMESCALE_MAX = 2**31 - 1
_LONG_START_S = 60
_DURATION_SLACK_S = Fraction(2, 1000)
_PCM = "pcm_"
_CHAPTER_TRACKS = ("", "bin_data", "text")
"""What FFmpeg calls the track in which MP4 keeps its chapters; they are copied as chapters."""


@dataclass(frozen=True, kw_only=True)
class _Container:
    video: frozenset[str]
    audio: frozenset[str]
    subtitle: frozenset[str]
    pcm: bool = False
    attachments: bool = False
    pictures: frozenset[str] = frozenset()
    chapters: bool = True
    tick_s: Fraction | None = None
    """The only unit of time it knows, where it has one."""


_ISO_VIDEO = frozenset({"h264", "hevc", "av1", "vp9", "mpeg4", "mpeg2video", "mpeg1video", "mjpeg"})
_MP4_AUDIO = frozenset({"aac", "mp3", "mp2", "ac3", "eac3", "dts", "alac", "opus", "flac"})
_CONTAINERS = {
    ".mp4": _Container(
        video=_ISO_VIDEO,
        audio=_MP4_AUDIO,
        subtitle=frozenset({"mov_text"}),
        pictures=frozenset({"mjpeg", "png", "bmp"}),
    ),
    ".m4v": _Container(
        video=frozenset({"h264", "hevc", "mpeg4"}),
        audio=frozenset({"aac", "ac3", "eac3", "alac"}),
        subtitle=frozenset({"mov_text"}),
        pictures=frozenset({"mjpeg", "png", "bmp"}),
    ),
    ".mov": _Container(
        video=_ISO_VIDEO | {"prores", "dnxhd", "cfhd", "qtrle", "png"},
        audio=frozenset({"aac", "mp3", "mp2", "ac3", "eac3", "alac", "adpcm_ima_qt"}),
        subtitle=frozenset({"mov_text"}),
        pcm=True,
        pictures=frozenset({"mjpeg", "png", "bmp"}),
    ),
    ".mkv": _Container(
        video=_ISO_VIDEO
        | {"prores", "ffv1", "vp8", "theora", "vc1", "wmv3", "msmpeg4v3", "huffyuv", "utvideo", "dnxhd", "cinepak"},
        audio=_MP4_AUDIO | {"vorbis", "truehd", "mlp", "tta", "wavpack", "mp1", "wmav1", "wmav2", "wmapro"},
        subtitle=frozenset(
            {"subrip", "ass", "ssa", "webvtt", "text", "dvd_subtitle", "hdmv_pgs_subtitle", "dvb_subtitle"}
        ),
        pcm=True,
        attachments=True,
        pictures=frozenset({"mjpeg", "png"}),
        tick_s=Fraction(1, 1000),
    ),
    ".webm": _Container(
        video=frozenset({"vp8", "vp9", "av1"}),
        audio=frozenset({"vorbis", "opus"}),
        subtitle=frozenset({"webvtt"}),
        tick_s=Fraction(1, 1000),
    ),
}
_FORMATS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska", ".webm": "webm"}

_FILE_TAGS = {"compatible_brands", "encoder", "major_brand", "minor_version"}
"""Tags that tell of the old container, not of the clip."""
_TRACK_TAGS = {"duration"}
"""Tags that the new container writes itself."""
_PICTURE_TAGS = {
    "alpha_mode",
    "bps",
    "duration",
    "encoder",
    "number_of_bytes",
    "number_of_frames",
    "rotate",
    "vendor_id",
}
"""Tags that are no longer true of a picture encoded anew; so are all that start with ``_statistics``."""
_ITUNES_TAGS = {
    "album",
    "album_artist",
    "artist",
    "comment",
    "composer",
    "compilation",
    "copyright",
    "creation_time",
    "date",
    "description",
    "disc",
    "episode_id",
    "episode_sort",
    "gapless_playback",
    "genre",
    "grouping",
    "hd_video",
    "keywords",
    "lyrics",
    "media_type",
    "network",
    "season_number",
    "show",
    "synopsis",
    "title",
    "tmpo",
    "track",
}


@dataclass(frozen=True, kw_only=True)
class DroppedStream:
    """A stream of the input that does not come along, and why, in words."""

    stream: StreamInfo
    reason: str

    def __str__(self) -> str:
        return f"{self.stream.describe()}: {self.reason}"


@dataclass(frozen=True, kw_only=True)
class StreamPlan:
    """Which streams are copied into which container."""

    suffix: str
    """The container, as the suffix of the output: .mp4, .m4v, .mov, .mkv or .webm."""
    reason: str
    """Why the container is not the input's; empty where it is, or where the user chose it."""
    copied: tuple[StreamInfo, ...]
    dropped: tuple[DroppedStream, ...]
    """Only what was not asked to be dropped: these belong into the warnings."""
    notes: tuple[str, ...] = ()
    """What else the container changes, a sentence each: these belong into the warnings too."""


def plan_streams(
    info: ClipInfo, output_suffix: str | None, *, audio: str = "copy", subs: str = "copy", codec: str
) -> StreamPlan:
    """Choose the container and the streams to copy beside video of ``codec`` (h264, ...).

    ``output_suffix`` given by the user wins, and what it cannot hold is dropped; without one it is the input's
    container where that can hold everything, MP4 for inputs whose container is not written here, else Matroska.
    Raises ``UsageError`` for a suffix that is not known or cannot hold the video.
    """
    wanted = tuple(
        stream
        for stream in info.streams
        if stream.index != info.video_index
        and not (stream.kind == "audio" and audio == "none")
        and not (stream.kind == "subtitle" and subs == "none")
        and not (info.chapters and stream.kind == "data" and stream.codec in _CHAPTER_TRACKS)
    )
    if output_suffix is not None:
        return _split(info, _checked_suffix(output_suffix, codec), "", wanted)
    own = _suffix_of(info)
    first = own or ".mp4"
    misfits = _misfits(first, codec, [s for s in wanted if _refusal(".mkv", s) is None])
    if misfits:
        return _split(info, ".mkv", f"written as .mkv, because {first} cannot hold {misfits[0]}", wanted)
    written = f"written as {first}, because {info.path.suffix or 'this container'} is not written here"
    return _split(info, first, "" if own else written, wanted)


def plan_alone(output_suffix: str | None, *, codec: str, frame_s: Fraction) -> StreamPlan:
    """Choose the container of a clip that has no source: the named one, else the best known that holds ``codec``.

    ``frame_s`` is how long each frame is shown. Raises ``UsageError`` for a suffix that is not known or cannot hold
    the video.
    """
    if output_suffix is not None:
        suffix = _checked_suffix(output_suffix, codec)
    else:
        suffix = next(each for each in (".mp4", ".mov", ".mkv") if codec in _CONTAINERS[each].video)
    return StreamPlan(suffix=suffix, reason="", copied=(), dropped=(), notes=_rounding(suffix, frame_s))


def join(
    segments: Sequence[Path],
    info: ClipInfo,
    plan: StreamPlan,
    spec: EncodeSpec,
    destination: Path,
    *,
    window: tuple[Fraction, Fraction] | None = None,
) -> tuple[str, ...]:
    """Write ``destination`` from finished segments and the other streams of the input, nothing encoded again.

    The video's time stamps are those that were written, to the tick of the container; decoding times are built anew.
    Copied packets keep their distance to the picture. With ``window`` (start and end in the input's seconds),
    packets whose midpoint lies inside come along, and the first kept frame is shown at 0. Without, the input's own
    clock is kept, unless it starts later than a minute (a broadcast's): then everything is shifted so that the first
    picture is shown at 0. The file appears whole or not at all. Gives a sentence for each thing that could only be
    known now and belongs into the warnings. Raises ``OutputError``.
    """
    records = [read_record(path) for path in segments]
    times = _Times(segments, records, spec)
    shift_s = _shift(info, records, spec, window)
    with ExitStack() as stack:
        part = stack.enter_context(partial_file(destination))
        source = stack.enter_context(open_input(info.path))
        with output_errors(destination):
            first = stack.enter_context(av.open(f"file:{segments[0]}"))
            tags = _without(source.metadata, _FILE_TAGS)
            container = stack.enter_context(_open_output(part, plan, spec, tags))
            video, copies = _add_streams(container, source, first.streams.video[0], info, plan, spec)
            container.set_chapters(_chapters(source, shift_s, window))
            pictures = _pictures(segments, times, spec, video, shift_s)
            strict = _CONTAINERS[plan.suffix].tick_s is None
            _interleave(container, pictures, _copied_packets(source, copies, shift_s, window, strict=strict))
            container.close()
            late_s = _first_shown(part) - (records[0].first_pts * spec.time_base + shift_s)
    if window is not None or late_s <= _DURATION_SLACK_S:
        return ()
    late_ms = f"{float(late_s * 1000):.0f} ms"
    return (f"all is shown {late_ms} later: a stream begins before 0, and {plan.suffix} has no such times.",)


def join_alone(
    segments: Sequence[Path], plan: StreamPlan, spec: EncodeSpec, destination: Path, *, tags: Mapping[str, str]
) -> None:
    """Write ``destination`` from finished segments, nothing beside them and nothing encoded again.

    Time stamps are those that were written; ``tags`` are the file's (``title``, ``comment``). The file appears whole or
    not at all. Raises ``OutputError``.
    """
    times = _Times(segments, [read_record(path) for path in segments], spec)
    with (
        partial_file(destination) as part,
        output_errors(destination),
        av.open(f"file:{segments[0]}") as first,
        _open_output(part, plan, spec, tags) as container,
    ):
        video = _add_video(container, first.streams.video[0], plan, spec)
        for packet in _pictures(segments, times, spec, video, Fraction(0)):
            container.mux_one(packet)


def check_output(
    path: Path,
    *,
    plan: StreamPlan,
    frames: int,
    spec: EncodeSpec | None = None,
    duration_s: Fraction | None = None,
) -> None:
    """Reopen a finished file and compare it with what it should hold.

    Counts the video frames, compares the streams with the plan, decodes the first and the last frame, and where
    they are given compares the picture's size and duration (first frame shown to last frame gone). Raises
    ``OutputCheckError`` that says what differs.
    """
    try:
        with av.open(f"file:{path}", metadata_errors="replace") as container:
            _check_streams(path, container, plan)
            stream = _checked_video(container)
            if spec is not None and (stream.width, stream.height) != (spec.width_px, spec.height_px):
                raise OutputCheckError(
                    f"{path}: the picture is {stream.width}x{stream.height}, expected {spec.width_px}x{spec.height_px}."
                )
            shown = sorted(packet.pts for packet in container.demux(stream) if packet.size and packet.pts is not None)
            if len(shown) != frames:
                raise OutputCheckError(f"{path}: holds {len(shown)} frames, expected {frames}.")
            if len(set(shown)) != frames:
                raise OutputCheckError(f"{path}: two frames share a time stamp.")
            found_s = _duration_s(stream)
            if duration_s is not None and found_s is not None and abs(found_s - duration_s) > _DURATION_SLACK_S:
                raise OutputCheckError(
                    f"{path}: the picture lasts {float(found_s):.3f} s, expected {float(duration_s):.3f} s."
                )
            _decode_ends(path, container, stream, shown)
    except (OSError, FFmpegError, ValueError) as error:
        raise OutputCheckError(f"{path}: the finished file cannot be read back ({error}).") from error


# What fits where


def _suffix_of(info: ClipInfo) -> str | None:
    names = info.container.split(",")
    suffix = info.path.suffix.lower()
    if "mov" in names or "mp4" in names:
        return suffix if suffix in (".mp4", ".m4v", ".mov") else ".mp4"
    if "matroska" in names:
        return suffix if suffix in (".mkv", ".webm") else ".mkv"
    return None


def _refusal(suffix: str, stream: StreamInfo) -> str | None:
    """Why ``stream`` cannot be copied into the container, or None."""
    known = _CONTAINERS[suffix]
    if stream.is_picture:
        fits = stream.codec in known.pictures
    elif stream.kind == "audio":
        fits = stream.codec in known.audio or (known.pcm and stream.codec.startswith(_PCM))
    elif stream.kind == "subtitle":
        fits = stream.codec in known.subtitle
    elif stream.kind == "video":
        fits = stream.codec in known.video
    elif stream.kind == "attachment":
        fits = known.attachments
    else:
        return "data streams cannot be carried over"
    return None if fits else f"{suffix} cannot hold it"


def _misfits(suffix: str, codec: str, streams: Sequence[StreamInfo]) -> list[str]:
    video = [] if codec in _CONTAINERS[suffix].video else [f"{codec} video"]
    return video + [stream.describe() for stream in streams if _refusal(suffix, stream) is not None]


def _checked_suffix(output_suffix: str, codec: str) -> str:
    suffix = output_suffix.lower()
    if suffix not in _CONTAINERS:
        raise UsageError(f"{output_suffix or 'no suffix'}: not a known container; use {', '.join(_CONTAINERS)}.")
    if codec not in _CONTAINERS[suffix].video:
        raise UsageError(f"{suffix} cannot hold {codec} video; use .mkv or another --codec.")
    return suffix


def _rounding(suffix: str, time_base: Fraction) -> tuple[str, ...]:
    tick = _CONTAINERS[suffix].tick_s
    if tick is None or (time_base / tick).denominator == 1:
        return ()
    return (f"{suffix} rounds time stamps to 1 ms; the clip's unit is {time_base} s.",)


def _split(info: ClipInfo, suffix: str, reason: str, wanted: Sequence[StreamInfo]) -> StreamPlan:
    refusals = [(stream, _refusal(suffix, stream)) for stream in wanted]
    dropped = tuple(DroppedStream(stream=stream, reason=why) for stream, why in refusals if why is not None)
    notes = [*_rounding(suffix, info.time_base)]
    if info.start_s > _LONG_START_S:
        notes.append(f"the input's clock starts at {info.start_s:.0f} s; the output's starts at 0.")
    return StreamPlan(
        suffix=suffix,
        reason=reason,
        copied=tuple(stream for stream, why in refusals if why is None),
        dropped=dropped,
        notes=tuple(notes),
    )


# Time


class _Times:
    """Presentation times of all video packets, and decoding times that never step back.

    Packets come in decoding order. With frames sorted by time ``s`` and at most ``delay`` frames of reordering,
    packet ``i`` is decoded at ``s[i - delay]``; the first ``delay`` ones lie before that, ``lead`` apart. The last
    packet's duration makes the track end where the last frame ends (MP4 sums durations in decoding order).
    """

    def __init__(self, segments: Sequence[Path], records: Sequence[SegmentRecord], spec: EncodeSpec) -> None:
        ticks = spec.time_base.numerator
        self._pts = array("q")
        for path, record in zip(segments, records, strict=True):
            start = len(self._pts)
            self._pts.extend(pts + record.first_pts * ticks for pts in _packet_times(path, spec.track_time_base))
            if len(self._pts) - start != record.frames or max(self._pts[start:]) != record.last_pts * ticks:
                raise OutputError(f"{path}: this segment does not hold what it says; --resume off makes it anew.")
        self._sorted = array("q", sorted(self._pts))
        for before, after in zip(self._sorted, self._sorted[1:], strict=False):
            if after <= before:
                raise OutputError("two segments overlap in time; --resume off makes them anew.")
        self._last_duration = records[-1].last_duration * ticks
        count = len(self._pts)
        self._delay = max(i - bisect_left(self._sorted, pts) for i, pts in enumerate(self._pts))
        self._lead = self.duration(0)
        if self._delay:
            late = self._pts[-1] - self._sorted[count - 1 - self._delay]
            self._lead = max(self._lead, -(-late // self._delay))

    def __len__(self) -> int:
        return len(self._pts)

    def pts(self, index: int) -> int:
        return self._pts[index]

    def dts(self, index: int) -> int:
        if index < self._delay:
            return self._sorted[0] - (self._delay - index) * self._lead
        return self._sorted[index - self._delay]

    def duration(self, index: int) -> int:
        """How long the frame of packet ``index`` is shown."""
        place = bisect_left(self._sorted, self._pts[index])
        if place + 1 == len(self._sorted):
            return self._last_duration
        return self._sorted[place + 1] - self._sorted[place]

    def packet_duration(self, index: int) -> int:
        if index + 1 < len(self._pts):
            return self.duration(index)
        behind = self._sorted[-1] - self._sorted[len(self._pts) - 1 - self._delay]
        return self._last_duration + max(0, behind - self._delay * self._lead)


def _packet_times(path: Path, unit: Fraction) -> Iterator[int]:
    with output_errors(path), av.open(f"file:{path}") as container:
        for packet in container.demux(container.streams.video[0]):
            if packet.size:
                assert packet.pts is not None, "the formats of segments give every packet its time"
                yield round(packet.pts * packet.time_base / unit)


def _shift(
    info: ClipInfo,
    records: Sequence[SegmentRecord],
    spec: EncodeSpec,
    window: tuple[Fraction, Fraction] | None,
) -> Fraction:
    """What is added to every time of the input, in seconds."""
    if window is not None or info.start_s > _LONG_START_S:
        return -records[0].first_pts * spec.time_base
    return Fraction(0)


# Streams


def _open_output(part: Path, plan: StreamPlan, spec: EncodeSpec, tags: Mapping[str, str]) -> OutputContainer:
    container = av.open(
        f"file:{part}",
        "w",
        format=_FORMATS[plan.suffix],
        container_options=_muxer_options(plan, spec, tags),
        metadata_errors="replace",
    )
    container.metadata.update(tags)
    return container


def _muxer_options(plan: StreamPlan, spec: EncodeSpec, tags: Iterable[str]) -> dict[str, str]:
    if _FORMATS[plan.suffix] not in ("mp4", "mov"):
        return {}
    timescale = spec.track_time_base.denominator
    # Edit lists, which hold start times, count in the movie's unit: one that divides every track's unit is exact.
    movie = lcm(timescale, *(stream.sample_rate for stream in plan.copied if stream.sample_rate))
    if movie > _MOVIE_TIMESCALE_MAX:
        movie = timescale
    if movie < 1000:
        movie *= -(-1000 // movie)
    flags = ["faststart"]
    if not {key.lower() for key in tags} <= _ITUNES_TAGS:
        flags.append("use_metadata_tags")
    return {
        "movflags": "+" + "+".join(flags),
        "movie_timescale": str(movie),
        "video_track_timescale": str(timescale),
    }


def _add_streams(
    container: OutputContainer,
    source: InputContainer,
    encoded: VideoStream,
    info: ClipInfo,
    plan: StreamPlan,
    spec: EncodeSpec,
) -> tuple[VideoStream, dict[int, Stream]]:
    copied = {stream.index: stream for stream in plan.copied}
    copies: dict[int, Stream] = {}
    video: VideoStream | None = None
    for stream in source.streams:
        if stream.index == info.video_index:
            video = _add_video(container, encoded, plan, spec)
            _describe_video(video, stream, info, spec)
        elif stream.index in copied:
            added = _add_copy(container, source, stream, copied[stream.index], plan)
            if added is not None:
                copies[stream.index] = added
    assert video is not None, "the input's main video is one of its streams"
    return video, copies


def _add_video(container: OutputContainer, encoded: VideoStream, plan: StreamPlan, spec: EncodeSpec) -> VideoStream:
    video = container.add_stream_from_template(encoded, opaque=True)
    context = video.codec_context
    context.sample_aspect_ratio = spec.sample_aspect_ratio
    context.framerate = spec.rate
    context.colorspace = spec.color.matrix
    context.color_primaries = spec.color.primaries
    context.color_trc = spec.color.transfer
    context.color_range = spec.color.range
    if spec.codec == "hevc" and _FORMATS[plan.suffix] in ("mp4", "mov"):
        context.codec_tag = "hvc1"
    video.time_base = spec.track_time_base
    return video


def _describe_video(video: VideoStream, original: Stream, info: ClipInfo, spec: EncodeSpec) -> None:
    """Carry over what the input says of its main video and what is still true of it."""
    if info.display_matrix is not None:
        video.set_display_matrix(_scaled_matrix(info, spec))
    tags = _without(original.metadata, _PICTURE_TAGS)
    video.metadata.update({key: value for key, value in tags.items() if not key.lower().startswith("_statistics")})
    video.disposition = original.disposition


def _add_copy(
    container: OutputContainer, source: InputContainer, stream: Stream, known: StreamInfo, plan: StreamPlan
) -> Stream | None:
    """Add a stream to copy; None where all of it is written at once (pictures in Matroska, attachments)."""
    if known.is_picture and plan.suffix == ".mkv":
        name, kind = ("cover.png", "image/png") if known.codec == "png" else ("cover.jpg", "image/jpeg")
        tags = {key.lower(): value for key, value in stream.metadata.items()}
        data = next((bytes(packet) for packet in source.demux(stream) if packet.size), b"")
        source.seek(0)
        container.add_attachment(tags.get("filename", name), tags.get("mimetype", kind), data)
        return None
    try:
        added = container.add_stream_from_template(stream, opaque=True)
    except ValueError as error:
        raise OutputError(f"{plan.suffix} cannot hold {known.describe()}; write .mkv instead.") from error
    added.metadata.update(_without(stream.metadata, _TRACK_TAGS))
    added.disposition = stream.disposition
    return None if known.kind == "attachment" else added


def _scaled_matrix(info: ClipInfo, spec: EncodeSpec) -> tuple[int, ...]:
    assert info.display_matrix is not None, "a matrix to scale"
    turned = info.rotation_deg in (90, 270)
    width, height = (spec.height_px, spec.width_px) if turned else (spec.width_px, spec.height_px)
    matrix = list(info.display_matrix)
    matrix[6] = round(Fraction(matrix[6] * width, info.display_width_px))
    matrix[7] = round(Fraction(matrix[7] * height, info.display_height_px))
    return tuple(matrix)


def _without(tags: dict[str, str], stale: set[str]) -> dict[str, str]:
    return {key: value for key, value in tags.items() if key.lower() not in stale}


def _chapters(
    source: InputContainer,
    shift_s: Fraction,
    window: tuple[Fraction, Fraction] | None,
) -> "list[Chapter]":
    chapters: list[Chapter] = []
    for chapter in source.chapters():
        unit = chapter["time_base"] or Fraction(1, av.time_base)
        start, end = chapter["start"], chapter["end"]
        if window is not None:
            start = max(start, round(window[0] / unit))
            end = min(end, round(window[1] / unit))
            if start >= end:
                continue
        moved = round(shift_s / unit)
        chapter["start"], chapter["end"] = max(0, start + moved), max(0, end + moved)
        chapters.append(chapter)
    return chapters


# Packets


def _pictures(
    segments: Sequence[Path], times: _Times, spec: EncodeSpec, video: VideoStream, shift_s: Fraction
) -> Iterator[Packet]:
    unit = spec.track_time_base
    shift = round(shift_s / unit)
    index = 0
    headers: bytes | None = None
    for path in segments:
        with av.open(f"file:{path}") as container:
            stream = container.streams.video[0]
            extradata = stream.codec_context.extradata or b""
            if headers is None:
                headers = extradata
            if extradata != headers:
                raise OutputError(f"{path}: was written with other encoder settings; --resume off makes it anew.")
            for packet in container.demux(stream):
                if not packet.size:
                    continue
                packet.stream = video
                packet.time_base = unit
                packet.pts = times.pts(index) + shift
                packet.dts = times.dts(index) + shift
                packet.duration = times.packet_duration(index)
                index += 1
                yield packet


def _copied_packets(
    source: InputContainer,
    copies: dict[int, Stream],
    shift_s: Fraction,
    window: tuple[Fraction, Fraction] | None,
    *,
    strict: bool,
) -> Iterator[Packet]:
    """Packets of the other streams in the order of the file, times shifted, decoding times growing.

    ``strict`` says that the container refuses equal decoding times.
    """
    if not copies:
        return
    last: dict[int, int] = {}
    packets = source.demux(*(source.streams[index] for index in copies))
    while True:
        try:
            packet = next(packets)
        except (StopIteration, FFmpegError):
            return
        index = packet.stream_index
        if not packet.size or index not in copies:
            continue
        unit = packet.time_base
        pts = packet.pts if packet.pts is not None else packet.dts
        if window is not None and pts is not None:
            middle = (pts + Fraction(packet.duration or 0, 2)) * unit
            if not window[0] <= middle < window[1]:
                continue
        shift = round(shift_s / unit)
        dts = packet.dts if packet.dts is not None else pts
        if dts is None:
            dts = last.get(index, -1) + 1
        else:
            dts += shift
        if index in last and dts <= last[index]:
            dts = last[index] + (1 if strict and packet.stream.type != "subtitle" else 0)
        last[index] = dts
        packet.dts = dts
        packet.pts = max(dts, pts + shift) if pts is not None else dts
        packet.stream = copies[index]
        yield packet


def _interleave(container: OutputContainer, pictures: Iterator[Packet], copied: Iterator[Packet]) -> None:
    """Mux both in the order of their decoding times."""
    picture = next(pictures, None)
    other = next(copied, None)
    while picture is not None or other is not None:
        if other is None or (picture is not None and _seconds(picture) <= _seconds(other)):
            packet, picture = picture, next(pictures, None)
        else:
            packet, other = other, next(copied, None)
        assert packet is not None, "one of the two is there"
        container.mux_one(packet)


def _first_shown(path: Path) -> Fraction:
    """When the first packet of the picture is shown, in seconds; segments begin with the first frame shown."""
    with av.open(f"file:{path}", metadata_errors="replace") as container:
        packet = next(packet for packet in container.demux(_checked_video(container)) if packet.size)
        assert packet.pts is not None, "what was just written has its time"
        return packet.pts * packet.time_base


def _seconds(packet: Packet) -> Fraction:
    assert packet.dts is not None, "every packet to mux has its decoding time"
    return packet.dts * packet.time_base


# The check


def _checked_video(container: InputContainer) -> VideoStream:
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    return streams[0]


def _check_streams(path: Path, container: InputContainer, plan: StreamPlan) -> None:
    kinds = ("video", "audio", "subtitle")
    expected = sorted(s.kind for s in plan.copied if s.kind in kinds and not s.is_picture) + ["video"]
    found = sorted(
        s.type for s in container.streams if s.type in kinds and not s.disposition & Disposition.attached_pic
    )
    if sorted(expected) != found:
        raise OutputCheckError(f"{path}: holds the streams {', '.join(found)}; expected {', '.join(sorted(expected))}.")


def _duration_s(stream: VideoStream) -> Fraction | None:
    start, end = stream_extent(stream)
    return None if start is None or end is None or stream.time_base is None else (end - start) * stream.time_base


def _decode_ends(path: Path, container: InputContainer, stream: VideoStream, shown: Sequence[int]) -> None:
    for target in (shown[0], shown[-1]):
        container.seek(target, stream=stream)
        reached = None
        for frame in container.decode(stream):
            reached = frame.pts
            if reached is not None and reached >= target:
                break
        if reached != target:
            raise OutputCheckError(f"{path}: the frame at {target} ticks cannot be decoded.")
