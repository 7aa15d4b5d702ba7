"""Join finished segments into one file, alone or with the other streams of the input."""

from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from math import lcm
from pathlib import Path

import av
from av.container import InputContainer, OutputContainer
from av.packet import Packet
from av.video.stream import VideoStream

from ultraflash_cli.errors import OutputError
from ultraflash_cli.video.captions import carries_captions, with_captions
from ultraflash_cli.video.containers import FORMATS, StreamPlan, is_iso, tick_of
from ultraflash_cli.video.contents import Content, counted_bytes, main_picture
from ultraflash_cli.video.copies import (
    Window,
    copied_packets,
    file_tags,
)
from ultraflash_cli.video.decode import read_captions
from ultraflash_cli.video.encode import EncodeSpec
from ultraflash_cli.video.made_tag import append_made, with_made
from ultraflash_cli.video.muxing import (
    add_streams,
    add_video,
    aspect_notes,
    late_notes,
    mend_transparency,
    shift_of,
    source_of,
)
from ultraflash_cli.video.partial import output_errors, partial_file
from ultraflash_cli.video.probe import ClipInfo
from ultraflash_cli.video.segment import open_segment
from ultraflash_cli.video.segment_file import SegmentFile

__all__ = ["Joined", "join", "join_alone"]

_FEW = 3
"""Number of overlapping packets accepted without a note."""
_MOVIE_TIMESCALE_MAX = 2**31 - 1
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
class Joined:
    """The result of a join."""

    notes: tuple[str, ...]
    """Findings of the join, one sentence each, which become warnings."""
    contents: tuple[Content, ...]
    """Content of each stream, in order, except cover pictures and attachments."""
    picture: int = 0
    """Index of the main video stream among the video streams."""

    @property
    def packets(self) -> tuple[tuple[str, int], ...]:
        """Kind and number of packets of every stream."""
        return tuple((content.kind, content.packets) for content in self.contents)


def join(
    segments: Sequence[SegmentFile],
    info: ClipInfo,
    plan: StreamPlan,
    spec: EncodeSpec,
    destination: Path,
    *,
    window: Window | None = None,
    made: str | None = None,
) -> Joined:
    """Write ``destination`` from finished segments and the other streams of the input,
    without re-encoding pictures. The video keeps its timestamps, rounded to the ticks
    of the container; decoding times are rebuilt. Copied packets stay in sync with the
    picture. With ``window`` (start and end in the input's seconds), packets whose
    midpoint is inside are kept, subtitles are clipped to it, and the first kept frame
    is shown at 0. Otherwise the input's clock is kept, unless it starts after more than
    a minute (as in a broadcast) or its first picture is before 0, which no container
    can store: then everything is shifted so that the first picture is shown at 0. The
    file appears whole or not at all, and equal arguments produce equal bytes. ``made``
    is the tag that records how the clip was made. Raises ``OutputError``.
    """
    times = _Times(segments, spec)
    first_s = segments[0].first_pts * spec.time_base
    shift_s = shift_of(info, first_s, window)
    before_s = max(Fraction(0), -first_s)
    cut_s = Fraction(0)
    if window is not None:
        cut_s = max(cut_s, first_s - (info.start_pts or 0) * info.time_base)
    notes: tuple[str, ...] = ()
    crowded: Counter[int] = Counter()
    with ExitStack() as stack:
        part = stack.enter_context(partial_file(destination))
        source = stack.enter_context(source_of(info))
        with output_errors(destination):
            first = stack.enter_context(open_segment(segments[0].path))
            tags = {} if source is None else file_tags(source, info, spec, cut_s=cut_s)
            tags = with_made(tags, plan.suffix, made)
            options = _muxer_options(plan, spec, tags, source)
            if _has_picture(plan) and (lost := _foreign_tags(plan, tags)):
                notes += (f"{plan.suffix} holds either these tags or the cover picture; left out: {', '.join(lost)}.",)
            container = stack.enter_context(_open_output(part, plan, tags, options))
            video, copies, said = add_streams(
                container, first, source, info, plan, spec, cut_s=cut_s, shift_s=shift_s, window=window
            )
            notes += said
            pictures = _pictures(segments, times, spec, video, shift_s)
            others: Iterator[Packet] = iter(())
            if source is not None and carries_captions(info, spec):
                shift = round(shift_s / spec.track_time_base)
                pictures = with_captions(pictures, read_captions(info), spec, shift=shift)

            if source is not None:
                strict = tick_of(plan.suffix) is None
                others = copied_packets(source, copies, shift_s, window, strict=strict, crowded=crowded)
            names = {stream.index: stream.describe() for stream in info.streams}
            written = {video.index: Content(kind="video")}
            for index, copy in copies.items():
                if not copy.picture:
                    written[copy.stream.index] = Content(kind=copy.kind, name=names[index])

            _interleave(container, pictures, others, written)
            container.close()
            append_made(part, plan.suffix, made)
            contents = tuple(written[index] for index in sorted(written))
            number = sum(content.kind == "video" for index, content in written.items() if index < video.index)
            shown_s, aspect = _shown(part, contents, number)
            late_s = shown_s - (first_s + shift_s) + before_s
    if window is None:
        notes += late_notes(late_s, plan)
    notes += aspect_notes(aspect, plan, spec)
    notes += tuple(
        f"{names[index]}: {count} packets overlap the previous ones in time; they were moved after them"
        for index, count in sorted(crowded.items())
        if count > _FEW
    )
    return Joined(notes=notes, contents=contents, picture=number)


def join_alone(
    segments: Sequence[SegmentFile],
    plan: StreamPlan,
    spec: EncodeSpec,
    destination: Path,
    *,
    tags: Mapping[str, str],
    made: str | None = None,
) -> Joined:
    """Write ``destination`` from finished segments alone, without re-encoding.
    Timestamps are kept; ``tags`` are those of the file (``title``, ``comment``), and
    ``made`` records how it was made. The file appears whole or not at all. Raises
    ``OutputError``.
    """
    times = _Times(segments, spec)
    tags = with_made(tags, plan.suffix, made)
    with partial_file(destination) as part, output_errors(destination):
        with (
            open_segment(segments[0].path) as first,
            _open_output(part, plan, tags, _muxer_options(plan, spec, tags, None)) as container,
        ):
            video = add_video(container, first.streams.video[0], plan, spec)
            written = {video.index: Content(kind="video")}
            _interleave(container, _pictures(segments, times, spec, video, Fraction(0)), iter(()), written)
        append_made(part, plan.suffix, made)
    return Joined(notes=(), contents=tuple(written.values()))


class _Times:
    """Presentation times of all video packets, and decoding times that never decrease.

    Packets come in decoding order. With frames sorted by time ``s`` and at most
    ``delay`` frames of reordering, packet ``i`` is decoded at ``s[i - delay]``; the
    first ``delay`` ones precede it at distances of ``lead``. The duration of the last
    packet is set so that the track ends with the last frame (MP4 sums durations in
    decoding order).
    """

    def __init__(self, segments: Sequence[SegmentFile], spec: EncodeSpec) -> None:
        ticks = spec.time_base.numerator
        self._pts = array("q")
        for segment in segments:
            start, first = len(self._pts), segment.first_pts * ticks
            self._pts.extend(pts + first for pts in _packet_times(segment.path, spec.track_time_base))
            if len(self._pts) - start != segment.frames or max(self._pts[start:]) != segment.last_pts * ticks:
                raise OutputError(f"{segment.path}: this segment is damaged; start over with --no-resume")
        self._sorted = array("q", sorted(self._pts))
        for before, after in zip(self._sorted, self._sorted[1:], strict=False):
            if after <= before:
                raise OutputError("two segments overlap in time; start over with --no-resume")
        self._last_duration = segments[-1].last_duration * ticks
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
        """Return the display duration of packet ``index``."""
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
    with output_errors(path), open_segment(path) as container:
        for packet in container.demux(container.streams.video[0]):
            if packet.size:
                assert packet.pts is not None, "the formats of segments give every packet its time"
                yield round(packet.pts * packet.time_base / unit)


def _open_output(part: Path, plan: StreamPlan, tags: Mapping[str, str], options: Mapping[str, str]) -> OutputContainer:
    container = av.open(
        f"file:{part}", "w", format=FORMATS[plan.suffix], container_options=dict(options), metadata_errors="replace"
    )
    container.metadata.update(tags)
    return container


def _muxer_options(
    plan: StreamPlan, spec: EncodeSpec, tags: Iterable[str], source: InputContainer | None
) -> dict[str, str]:
    # Otherwise Matroska uses random identifiers, and no two joins are equal.
    options = {"fflags": "+bitexact"}
    if not is_iso(plan.suffix):
        return options

    timescale = spec.track_time_base.denominator
    if source is not None:
        moving = {stream.index for stream in plan.copied if stream.kind == "video" and not stream.is_picture}
        units = [stream.time_base for stream in source.streams if stream.index in moving]
        finer = lcm(timescale, *(unit.denominator for unit in units if unit is not None))
        timescale = finer if finer <= _MOVIE_TIMESCALE_MAX else timescale

    # Edit lists, which store start times, use the movie's time base: one that divides
    # every track's time base is exact.
    movie = lcm(timescale, *(stream.sample_rate for stream in plan.copied if stream.sample_rate))
    if movie > _MOVIE_TIMESCALE_MAX:
        movie = timescale
    if movie < 1000:
        movie *= -(-1000 // movie)
    flags = ["faststart"]
    if _foreign_tags(plan, tags) and not _has_picture(plan):
        flags.append("use_metadata_tags")

    return options | {
        "movflags": "+" + "+".join(flags),
        "movie_timescale": str(movie),
        "video_track_timescale": str(timescale),
    }


def _foreign_tags(plan: StreamPlan, tags: Iterable[str]) -> list[str]:
    """Return the tags that MP4 and QuickTime only store in another kind of list, which
    cannot hold a cover picture."""
    return sorted(key for key in tags if key.lower() not in _ITUNES_TAGS) if is_iso(plan.suffix) else []


def _has_picture(plan: StreamPlan) -> bool:
    return any(stream.is_picture for stream in plan.copied)


def _pictures(
    segments: Sequence[SegmentFile], times: _Times, spec: EncodeSpec, video: VideoStream, shift_s: Fraction
) -> Iterator[Packet]:
    unit = spec.track_time_base
    shift = round(shift_s / unit)
    index = 0

    headers: bytes | None = None
    for segment in segments:
        with open_segment(segment.path) as container:
            stream = container.streams.video[0]
            extradata = stream.codec_context.extradata or b""
            if headers is None:
                headers = extradata
            if extradata != headers:
                raise OutputError(
                    f"{segment.path}: was written with other encoder settings; start over with --no-resume"
                )
            for packet in container.demux(stream):
                if not packet.size:
                    continue
                mend_transparency(packet)
                packet.stream = video
                packet.time_base = unit
                packet.pts = times.pts(index) + shift
                packet.dts = times.dts(index) + shift
                packet.duration = times.packet_duration(index)
                index += 1
                yield packet


def _interleave(
    container: OutputContainer, pictures: Iterator[Packet], copied: Iterator[Packet], written: Mapping[int, Content]
) -> None:
    """Mux both in decoding order, and fill in the content of each stream."""
    picture = next(pictures, None)
    other = next(copied, None)
    while picture is not None or other is not None:
        if other is None or (picture is not None and _seconds(picture) <= _seconds(other)):
            packet, picture = picture, next(pictures, None)
        else:
            packet, other = other, next(copied, None)
        assert packet is not None, "one of the two is there"
        content = written.get(packet.stream_index)
        if content is not None and counted_bytes(packet, container.streams[packet.stream_index]):
            content.add(packet)
        container.mux_one(packet)


def _shown(path: Path, contents: Sequence[Content], number: int) -> tuple[Fraction, Fraction]:
    """Return the start of the video in seconds, and its pixel aspect ratio.

    Segments start with the first frame shown. PyAV does not pass the aspect ratio to
    Matroska: it is known only if the codec stores it.
    """
    with av.open(f"file:{path}", metadata_errors="replace") as container:
        picture = main_picture(container, contents, number=number)
        packet = next(packet for packet in container.demux(picture) if packet.size)
        assert packet.pts is not None, "what was just written has its time"
        aspect = picture.sample_aspect_ratio or picture.codec_context.sample_aspect_ratio or Fraction(1)
        return packet.pts * packet.time_base, aspect


def _seconds(packet: Packet) -> Fraction:
    assert packet.dts is not None, "every packet to mux has its decoding time"
    return packet.dts * packet.time_base
