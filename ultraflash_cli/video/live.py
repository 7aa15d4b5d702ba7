"""Write a clip to a stream segment by segment, while later segments are still being made."""

import io
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path

import av
from av.container import OutputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.video.stream import VideoStream

from ultraflash_cli.errors import OutputCheckError, OutputError
from ultraflash_cli.video.containers import FORMATS, StreamPlan
from ultraflash_cli.video.copies import Window, copied_packets, file_tags
from ultraflash_cli.video.encode import EncodeSpec
from ultraflash_cli.video.join import main_picture
from ultraflash_cli.video.made_tag import with_made
from ultraflash_cli.video.muxing import (
    add_streams,
    add_video,
    aspect_notes,
    late_notes,
    mend_transparency,
    shift_of,
    source_of,
)
from ultraflash_cli.video.partial import is_refusal, output_errors
from ultraflash_cli.video.probe import ClipInfo
from ultraflash_cli.video.segment import open_segment
from ultraflash_cli.video.segment_file import SegmentFile
from ultraflash_cli.video.y4m import ByteSink, write_y4m

__all__ = ["Streamed", "stream_clip"]

_LEAST_DELAY = 4
"""Allowance for reordering in frames; x264 and x265 reorder two."""
_HEAD_BYTES = 64 << 20
"""Bytes to remember, more than the first picture needs."""
_OPTIONS = {
    # Otherwise Matroska uses random identifiers, and no two streams are equal.
    "fflags": "+bitexact",
    "flush_packets": "1",
    # Packets are in order already, and need not wait for those of other streams.
    "max_interleave_delta": "1",
    "cluster_time_limit": "250",
}


@dataclass(frozen=True, kw_only=True)
class Streamed:
    """Record of what was written to the stream."""

    frames: int
    notes: tuple[str, ...] = ()
    """Findings of the join, one sentence each, which become warnings."""


def stream_clip(
    segments: Iterable[SegmentFile],
    plan: StreamPlan,
    spec: EncodeSpec,
    sink: ByteSink,
    *,
    info: ClipInfo | None = None,
    window: Window | None = None,
    tags: Mapping[str, str] | None = None,
    name: str = "-",
    made: str | None = None,
) -> Streamed:
    """Write finished segments to ``sink`` in order, each as soon as ``segments`` yields
    it. The format is raw frames if the plan is y4m, else Matroska without an index,
    either interleaved with the streams that the plan copies from the input ``info``
    (see ``join`` for times and ``window``) or with ``tags`` only. Equal segments
    produce equal bytes. ``name`` is the sink's name in messages, ``made`` the tag that
    records how the clip was made. Raises ``OutputError`` if the sink accepts no more
    data, and ``OutputCheckError`` for a segment with unexpected contents.
    """
    if plan.suffix == ".y4m":
        return Streamed(frames=write_y4m(segments, spec, sink, name=name))
    waiting = iter(segments)
    first = next(waiting, None)
    if first is None:
        return Streamed(frames=0)
    first_s = first.first_pts * spec.time_base
    shift_s = shift_of(info, first_s, window) if info is not None else Fraction(0)
    clock = _Clock(spec, shift=round(shift_s / spec.track_time_base))
    head = _Head(sink)
    with output_errors(Path(name)), head.failing_as_the_sink(), ExitStack() as stack:
        begun = stack.enter_context(open_segment(first.path))
        source = stack.enter_context(source_of(info)) if info is not None else None
        cut_s = Fraction(0)
        if info is not None and window is not None:
            cut_s = max(cut_s, first_s - (info.start_pts or 0) * info.time_base)
        said = dict(tags or {})
        if info is not None and source is not None:
            said = file_tags(source, info, spec, cut_s=cut_s)
        said = with_made(said, plan.suffix, made)
        container = stack.enter_context(_open(head, plan, said))
        others: Iterator[Packet] = iter(())

        notes: tuple[str, ...] = ()
        names: dict[int, str] = {}
        if info is None:
            video = add_video(container, begun.streams.video[0], plan, spec)
        else:
            video, copies, notes = add_streams(
                container, begun, source, info, plan, spec, cut_s=cut_s, shift_s=shift_s, window=window
            )
            described = {stream.index: stream.describe() for stream in info.streams}
            names = {copy.stream.index: described[index] for index, copy in copies.items()}
            if source is not None:
                others = copied_packets(source, copies, shift_s, window, strict=False)

        beside = _Beside(container)
        _interleave(container, _pictures(chain([first], waiting), clock, video), others, beside)
        container.close()
    notes += tuple(
        f"cut off where it could not be written: {names[index]}: {why}" for index, why in beside.refused.items()
    )
    shown_s, aspect = head.shown()
    if window is None:
        notes += late_notes(shown_s - (first_s + shift_s) + max(Fraction(0), -first_s), plan)
    return Streamed(frames=clock.frames, notes=notes + aspect_notes(aspect, plan, spec))


class _Clock:
    """Timestamps of the video packets, segment by segment; decoding times never decrease.

    A packet is decoded when the picture ``delay`` positions earlier in display order is
    shown.
    """

    def __init__(self, spec: EncodeSpec, *, shift: int) -> None:
        self.unit = spec.track_time_base
        self.frames = 0
        """Number of packets with final timestamps."""
        self._ticks = spec.time_base.numerator
        self._shift = shift
        self._delay = _LEAST_DELAY if spec.capabilities.reorders else 0
        self._shown: list[int] = []

    def times(self, stamps: Sequence[int], segment: SegmentFile) -> list[tuple[int, int, int]]:
        """Return timestamp, decoding time and duration of each packet of the next
        segment. ``stamps`` are its timestamps in decoding order, relative to its first
        picture.
        """
        start = segment.first_pts * self._ticks + self._shift
        shown = sorted(start + stamp for stamp in stamps)
        ends = [*shown[1:], shown[-1] + segment.last_duration * self._ticks]
        if self._shown and self._shown[-1] >= shown[0]:
            raise OutputError("two segments overlap in time; start over with --no-resume")
        lead = max(1, ends[0] - shown[0])
        before = self._shown or [shown[0] - places * lead for places in range(self._delay, 0, -1)]
        line = [*before[len(before) - self._delay :], *shown]
        self._shown = line[-max(1, self._delay) :]
        self.frames += len(stamps)
        lasts = {pts: end - pts for pts, end in zip(shown, ends, strict=True)}
        own = [start + stamp for stamp in stamps]
        return [(pts, min(dts, pts), lasts[pts]) for pts, dts in zip(own, line, strict=False)]


def _pictures(segments: Iterable[SegmentFile], clock: _Clock, video: VideoStream) -> Iterator[Packet]:
    headers: bytes | None = None
    for segment in segments:
        path = segment.path
        stamps = [
            round(packet.pts * packet.time_base / clock.unit) for packet in _packets(path) if packet.pts is not None
        ]
        if len(stamps) != segment.frames:
            raise OutputCheckError(f"{path}: has {len(stamps)} frames, expected {segment.frames}")
        times = clock.times(stamps, segment)
        with open_segment(path) as container:
            extradata = container.streams.video[0].codec_context.extradata or b""
        headers = extradata if headers is None else headers
        if extradata != headers:
            raise OutputError(f"{path}: was written with other encoder settings; start over with --no-resume")
        for packet, (pts, dts, duration) in zip(_packets(path), times, strict=True):
            mend_transparency(packet)
            packet.stream = video
            packet.time_base = clock.unit
            packet.pts, packet.dts, packet.duration = pts, dts, duration
            yield packet


def _packets(path: Path) -> Iterator[Packet]:
    with open_segment(path) as container:
        yield from (packet for packet in container.demux(container.streams.video[0]) if packet.size)


class _Beside:
    """Muxes the other streams, each up to where the muxer rejects it."""

    def __init__(self, container: OutputContainer) -> None:
        self._container = container
        self.refused: dict[int, str] = {}
        """Reason for the rejection, by output stream."""

    def mux(self, packet: Packet) -> None:
        """Write a packet, or skip it."""
        if packet.stream_index in self.refused:
            return
        try:
            self._container.mux_one(packet)
        except FFmpegError as error:
            if not is_refusal(error):
                raise
            self.refused[packet.stream_index] = (error.strerror or str(error)).lower()


def _interleave(
    container: OutputContainer, pictures: Iterable[Packet], others: Iterator[Packet], beside: "_Beside"
) -> None:
    """Mux both in the order of their decoding times."""
    other = next(others, None)
    # Matroska has no times before 0; its muxer shifts everything by as much as the
    # first packets precede 0.
    while other is not None and other.pts is not None and other.pts < 0:
        beside.mux(other)
        other = next(others, None)
    for picture in pictures:
        while other is not None and _seconds(other) < _seconds(picture):
            beside.mux(other)
            other = next(others, None)
        container.mux_one(picture)
    while other is not None:
        beside.mux(other)
        other = next(others, None)


def _seconds(packet: Packet) -> Fraction:
    assert packet.dts is not None, "every packet to mux has its decoding time"
    return packet.dts * packet.time_base


def _open(sink: ByteSink, plan: StreamPlan, tags: Mapping[str, str]) -> OutputContainer:
    container = av.open(
        sink, "w", format=FORMATS[plan.suffix], container_options=dict(_OPTIONS), metadata_errors="replace"
    )
    container.metadata.update(tags)
    return container


class _Head:
    """A sink that keeps its first bytes, to examine the first picture."""

    def __init__(self, sink: ByteSink) -> None:
        self._sink = sink
        self._kept = bytearray()
        self._failure: Exception | None = None

    def write(self, content: bytes, /) -> None:
        if len(self._kept) < _HEAD_BYTES:
            self._kept += content
        if self._failure is not None:
            raise self._failure
        try:
            self._sink.write(content)
        except Exception as error:
            self._failure = error
            raise

    @contextmanager
    def failing_as_the_sink(self) -> Generator[None]:
        """Raise the sink's own error instead of PyAV's error from closing the container
        afterwards."""
        try:
            yield
        except Exception:
            if self._failure is not None:
                raise self._failure from None
            raise

    def flush(self) -> None:
        self._sink.flush()

    def shown(self) -> tuple[Fraction, Fraction]:
        """Return the start of the video in seconds, and its pixel aspect ratio.

        PyAV does not pass the aspect ratio to Matroska: it is known only if the codec
        stores it.
        """
        with av.open(io.BytesIO(self._kept), "r", metadata_errors="replace") as container:
            picture = main_picture(container)
            packet = next(packet for packet in container.demux(picture) if packet.size)
            assert packet.pts is not None, "what was just written has its time"
            aspect = picture.sample_aspect_ratio or picture.codec_context.sample_aspect_ratio or Fraction(1)
            return packet.pts * packet.time_base, aspect
