"""Copy everything but the picture from input to output: streams, packets, chapters,
tags."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from typing import TYPE_CHECKING

import av
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.stream import AttachmentStream, Stream
from av.subtitles.stream import SubtitleStream
from av.video.stream import VideoStream

from ultraflash_cli.errors import OutputError
from ultraflash_cli.video.containers import ConvertedStream, StreamPlan
from ultraflash_cli.video.encode import EncodeSpec
from ultraflash_cli.video.pgs import whole_pictures
from ultraflash_cli.video.probe import ClipInfo, StreamInfo
from ultraflash_cli.video.sound import SoundConverter, add_sound
from ultraflash_cli.video.source import open_input
from ultraflash_cli.video.subtitles import TextConverter, clipped
from ultraflash_cli.video.timecode import moved_timecode
from ultraflash_cli.video.timeline import timed_packets

if TYPE_CHECKING:
    from av.container.core import Chapter

__all__ = ["Copy", "Window", "add_copies", "chapters_of", "copied_packets", "describe_video", "file_tags"]

Window = tuple[Fraction, Fraction]
"""The part of the input that is kept: start and end in seconds on the input's clock."""

_FILE_TAGS = {"compatible_brands", "encoder", "major_brand", "minor_version"}
"""Tags that describe the old container rather than the clip."""
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
"""Tags that no longer apply after re-encoding; the same goes for all that start with
``_statistics``."""
_TIMECODE = "timecode"
_PICTURE_KINDS = {"png": ("png", "image/png"), "gif": ("gif", "image/gif"), "bmp": ("bmp", "image/bmp")} | {
    "tiff": ("tif", "image/tiff"),
    "webp": ("webp", "image/webp"),
    "mjpeg": ("jpg", "image/jpeg"),
}
_LEAD_FRAMES = 16
"""Decoding lead of packets without a decoding time; no codec reorders more frames."""


_WARM_UP_S = Fraction(1, 10)
"""Maximum amount of audio that a decoder needs to warm up."""


@dataclass(frozen=True, kw_only=True)
class Copy:
    """An output stream whose packets are copied from an input stream."""

    stream: Stream
    kind: str
    picture: bool = False
    converter: TextConverter | SoundConverter | None = None


def add_copies(container: OutputContainer, info: ClipInfo, plan: StreamPlan, stream: Stream) -> Copy | None:
    """Add the output stream for ``stream`` of the input; None if it has none or is
    written completely here."""
    for converted in plan.converted:
        if converted.stream.index == stream.index:
            return _add_converted(container, stream, converted)
    known = next((each for each in plan.copied if each.index == stream.index), None)
    return None if known is None else _add_copy(container, info, stream, known, plan)


def describe_video(
    video: VideoStream, original: Stream, info: ClipInfo, spec: EncodeSpec, *, cut_s: Fraction
) -> tuple[str, ...]:
    """Copy the tags of the main video that still hold; return notes.

    ``cut_s`` is the duration of the picture that was cut before its first frame.
    """
    if info.display_matrix is not None and not spec.turns:
        video.set_display_matrix(_scaled_matrix(info, spec))
    tags = _without(original.metadata, _PICTURE_TAGS)
    tags = {key: value for key, value in tags.items() if not key.lower().startswith("_statistics")}
    notes = _move_timecode(tags, info, spec, cut_s)
    video.metadata.update(tags)
    if spec.alpha and spec.codec == "vp9":
        video.metadata["alpha_mode"] = "1"
    video.disposition = original.disposition
    return notes


def file_tags(source: InputContainer, info: ClipInfo, spec: EncodeSpec, *, cut_s: Fraction) -> dict[str, str]:
    """Return the tags of the input that are not about its container."""
    tags = _without(source.metadata, _FILE_TAGS)
    _move_timecode(tags, info, spec, cut_s)
    return tags


def chapters_of(source: InputContainer, shift_s: Fraction, window: Window | None) -> "list[Chapter]":
    """Return the chapters of the input, moved and cut like the picture."""
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


def copied_packets(
    source: InputContainer,
    copies: Mapping[int, Copy],
    shift_s: Fraction,
    window: Window | None,
    *,
    strict: bool,
    crowded: Counter[int] | None = None,
) -> Iterator[Packet]:
    """Yield the packets of the other streams in file order, with shifted times and
    increasing decoding times. ``strict`` means that the container rejects equal
    decoding times. ``crowded`` counts, for each stream, the packets that overlapped the
    previous one by more than their duration and were moved after it.
    """
    if not copies:
        return
    clocks = {index: _DecodingTimes(copy, strict=strict) for index, copy in copies.items()}
    converters = {index: copy.converter for index, copy in copies.items() if copy.converter is not None}
    texts = [(index, each) for index, each in converters.items() if isinstance(each, TextConverter)]

    def timed(index: int, packets: Iterable[Packet]) -> Iterator[Packet]:
        for packet in packets:
            moved = clocks[index].set(packet, Fraction(0) if copies[index].picture else shift_s)
            if moved and crowded is not None:
                crowded[index] += 1
            packet.stream = copies[index].stream
            yield packet

    for packet in whole_pictures(_lasting(without_cuts(timed_packets(source, copies), all_before_start=strict))):
        index, copy = packet.stream_index, copies[packet.stream_index]
        if texts and packet.dts is not None:
            for other, text in texts:
                yield from timed(other, text.until(packet.dts * packet.time_base))
        if copy.kind == "subtitle":
            kept = clipped(packet, window)
        else:
            kept = packet if copy.picture or _is_inside(packet, window) else None
        if kept is not None:
            yield from timed(index, (kept,) if copy.converter is None else copy.converter.push(kept))
    for index, converter in converters.items():
        yield from timed(index, converter.flush())


def without_cuts(packets: Iterator[Packet], *, all_before_start: bool) -> Iterator[Packet]:
    """Drop packets that an edit list removes, except those that a decoder needs to
    start. Packets before the first shown one are kept if the output has edit lists of
    its own (``all_before_start``), else only as many as an audio decoder needs to warm
    up. Packets cut later are kept only if other pictures refer to them.
    """
    held: dict[int, list[Packet]] = {}
    begun: set[int] = set()
    for packet in packets:
        index = packet.stream_index
        if packet.size and packet.is_discard:
            if index not in begun or packet.stream.type == "video":
                held.setdefault(index, []).append(packet)
            continue
        before = held.pop(index, [])
        if index not in begun and not all_before_start:
            before = [each for each in before if _lies_before(each, packet) <= _WARM_UP_S]
        if index not in begun or not packet.is_keyframe:
            yield from before
        if packet.size:
            begun.add(index)
        yield packet


def _lies_before(packet: Packet, other: Packet) -> Fraction:
    """Return by how many seconds a packet is shown earlier than another."""
    if packet.pts is None or other.pts is None:
        return Fraction(0)
    return (other.pts - packet.pts) * packet.time_base


def _lasting(packets: Iterator[Packet]) -> Iterator[Packet]:
    """Yield the packets that have content, up to the point where the file becomes
    unreadable, and fill in missing audio durations. A packet lasts until the next one
    of its stream, which may be an empty one at the end, else as long as the previous
    one. Without a duration, MP4 would drop the last packet.
    """
    held: dict[int, Packet] = {}
    lengths: dict[int, int] = {}
    while True:
        try:
            packet = next(packets)
        except (StopIteration, FFmpegError):
            break

        index = packet.stream_index
        before = held.pop(index, None)
        if before is not None:
            if packet.pts is not None and before.pts is not None and packet.pts > before.pts:
                lengths[index] = packet.pts - before.pts
            before.duration = lengths.get(index, 0)
            yield before

        if packet.size and packet.stream.type == "audio" and not packet.duration:
            held[index] = packet
        elif packet.size:
            yield packet
    for index, packet in held.items():
        packet.duration = lengths.get(index, 0)
        yield packet


class _DecodingTimes:
    """Shifts the times of a stream's packets, and fills in or repairs decoding times."""

    def __init__(self, copy: Copy, *, strict: bool) -> None:
        self._reorders = copy.kind == "video" and not copy.picture
        self._picture = copy.picture
        self._strict = strict and copy.kind != "subtitle"
        # The time base of audio in MP4 is one sample, which may be coarser than the
        # input's ticks.
        self._rate = copy.stream.sample_rate if isinstance(copy.stream, AudioStream) else None
        self._last: int | None = None

    def set(self, packet: Packet, shift_s: Fraction) -> bool:
        """Set a packet's times; return whether it overlapped the previous one and was moved by more than its
        duration."""
        shift = round(shift_s / packet.time_base)
        pts = packet.pts if packet.pts is not None else packet.dts
        dts = packet.dts if packet.dts is not None or self._reorders else pts
        if self._picture:
            pts, dts = 0, 0
        if dts is not None:
            dts += shift
        elif self._last is not None or pts is None:
            dts = (self._last if self._last is not None else -1) + 1
        else:
            dts = pts + shift - _LEAD_FRAMES * max(1, packet.duration or 1)
        own = dts
        if self._last is not None:
            dts = max(dts, self._last + self._step(packet))
        self._last = dts
        packet.dts = dts
        packet.pts = dts if pts is None else pts + shift if self._reorders else max(dts, pts + shift)
        return dts - own > max(1, packet.duration or 0)

    def _step(self, packet: Packet) -> int:
        """Return the minimum distance in ticks between distinct decoding times in the
        output."""
        if not self._strict:
            return 0
        return ceil(1 / (self._rate * packet.time_base)) if self._rate else 1


def _is_inside(packet: Packet, window: Window | None) -> bool:
    pts = packet.pts if packet.pts is not None else packet.dts
    if window is None or pts is None:
        return True
    return window[0] <= (pts + Fraction(packet.duration or 0, 2)) * packet.time_base < window[1]


def _add_converted(container: OutputContainer, stream: Stream, converted: ConvertedStream) -> Copy:
    if isinstance(stream, AudioStream):
        sound = add_sound(container, stream, converted.codec, converted.stream.sample_bits)
        copy = Copy(stream=sound.stream, kind="audio", converter=sound)
    else:
        assert isinstance(stream, SubtitleStream), "sound and text are all that is converted"
        copy = _add_text(container, stream, converted.codec)
    copy.stream.metadata.update(_without(stream.metadata, _TRACK_TAGS))
    copy.stream.disposition = stream.disposition
    return copy


def _add_text(container: OutputContainer, stream: SubtitleStream, codec: str) -> Copy:
    stream.codec_context.open(strict=False)
    added = container.add_stream(codec)
    assert isinstance(added, SubtitleStream), "a kind of subtitles"
    unit = stream.time_base or Fraction(1, 1000)
    added.time_base, added.codec_context.time_base = unit, unit
    converter = TextConverter(stream, added)
    return Copy(stream=added, kind="subtitle", converter=converter)


def _add_copy(
    container: OutputContainer, info: ClipInfo, stream: Stream, known: StreamInfo, plan: StreamPlan
) -> Copy | None:
    """Add a stream to copy; None if it is written completely here (pictures in
    Matroska, attachments)."""
    if known.is_picture and plan.suffix == ".mkv":
        ending, kind = _PICTURE_KINDS[known.codec]
        tags = {key.lower(): value for key, value in stream.metadata.items()}
        container.add_attachment(
            tags.get("filename", f"cover.{ending}"), tags.get("mimetype", kind), _picture(info, known)
        )
        return None
    if isinstance(stream, AttachmentStream) and stream.mimetype is None:
        container.add_attachment(stream.name or "attachment", "application/octet-stream", stream.data)
        return None
    try:
        added = container.add_stream_from_template(stream, opaque=True)
    except ValueError as error:
        raise OutputError(f"{plan.suffix} cannot hold {known.describe()}; use .mkv instead") from error
    added.metadata.update(_without(stream.metadata, _TRACK_TAGS))
    added.disposition = stream.disposition
    return None if known.kind == "attachment" else Copy(stream=added, kind=known.kind, picture=known.is_picture)


def _picture(info: ClipInfo, known: StreamInfo) -> bytes:
    """Return the content of a cover picture."""
    with open_input(info.source) as again:
        return next((bytes(packet) for packet in again.demux(again.streams[known.index]) if packet.size), b"")


def _scaled_matrix(info: ClipInfo, spec: EncodeSpec) -> tuple[int, ...]:
    assert info.display_matrix is not None, "a matrix to scale"
    turned = info.rotation_deg in (90, 270)
    width, height = (spec.height_px, spec.width_px) if turned else (spec.width_px, spec.height_px)
    matrix = list(info.display_matrix)
    matrix[6] = round(Fraction(matrix[6] * width, info.display_width_px))
    matrix[7] = round(Fraction(matrix[7] * height, info.display_height_px))
    return tuple(matrix)


def _move_timecode(tags: dict[str, str], info: ClipInfo, spec: EncodeSpec, cut_s: Fraction) -> tuple[str, ...]:
    for key in [key for key in tags if key.lower() == _TIMECODE]:
        moved = moved_timecode(tags[key], by_s=cut_s, source_rate=info.average_rate, rate=spec.rate)
        if moved is None:
            said = tags.pop(key)
            return (f"its timecode {said} is not kept; it does not fit {float(spec.rate):.6g} frames per second",)
        tags[key] = moved
    return ()


def _without(tags: Mapping[str, str], stale: set[str]) -> dict[str, str]:
    return {key: value for key, value in tags.items() if key.lower() not in stale}
