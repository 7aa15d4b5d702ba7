"""Helpers for muxing finished segments: output streams, clock, notes."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from fractions import Fraction
from typing import Literal, cast

from av.container import InputContainer, OutputContainer
from av.packet import Packet, PacketSideData, packet_sidedata_type_from_literal
from av.video.stream import VideoStream

from ultraflash_cli.video.containers import LONG_START_S, StreamPlan, is_iso
from ultraflash_cli.video.copies import Copy, Window, add_copies, chapters_of, describe_video
from ultraflash_cli.video.encode import EncodeSpec
from ultraflash_cli.video.pipe import Pipe
from ultraflash_cli.video.probe import ClipInfo
from ultraflash_cli.video.source import open_input

__all__ = [
    "add_streams",
    "add_video",
    "aspect_notes",
    "late_notes",
    "mend_transparency",
    "shift_of",
    "source_of",
]

_LATE_S = Fraction(2, 1000)
_BESIDE: Literal["matroska_block_additional"] = "matroska_block_additional"
_NUMBER_BYTES = 8
"""Size of the identifier before the transparency in a VP9 packet's side data."""


def add_streams(
    container: OutputContainer,
    segment: InputContainer,
    source: InputContainer | None,
    info: ClipInfo,
    plan: StreamPlan,
    spec: EncodeSpec,
    *,
    cut_s: Fraction,
    shift_s: Fraction,
    window: Window | None,
) -> tuple[VideoStream, dict[int, Copy], tuple[str, ...]]:
    """Add the video stream of a ``segment``, the streams copied from ``source``, and
    its chapters. ``cut_s`` is the duration of the picture that was cut before its first
    frame. Returns the picture's stream, the copies by their index in the input, and the
    notes.
    """
    encoded = segment.streams.video[0]
    if source is None:
        return add_video(container, encoded, plan, spec), {}, ()
    video: VideoStream | None = None
    notes: tuple[str, ...] = ()
    copies: dict[int, Copy] = {}
    for stream in source.streams:
        if stream.index == info.video_index:
            video = add_video(container, encoded, plan, spec)
            notes += describe_video(video, stream, info, spec, cut_s=cut_s)
        elif (added := add_copies(container, info, plan, stream)) is not None:
            copies[stream.index] = added
    container.set_chapters(chapters_of(source, shift_s, window))
    assert video is not None, "the input's main video is one of its streams"
    return video, copies, notes


def add_video(container: OutputContainer, encoded: VideoStream, plan: StreamPlan, spec: EncodeSpec) -> VideoStream:
    """Add the video stream with its parameters outside the packets."""
    video = container.add_stream_from_template(encoded, opaque=True)
    context = video.codec_context
    context.sample_aspect_ratio = spec.coded_aspect
    context.framerate = spec.rate
    context.colorspace = spec.color.matrix
    context.color_primaries = spec.color.primaries
    context.color_trc = spec.color.transfer
    context.color_range = spec.color.range
    if spec.codec == "hevc" and is_iso(plan.suffix):
        context.codec_tag = "hvc1"
    if spec.codec == "prores" and "444" in spec.pix_fmt:
        context.codec_tag = "ap4h"  # otherwise it would be taken for ProRes 422
    video.time_base = spec.track_time_base
    return video


def shift_of(info: ClipInfo, first_s: Fraction, window: Window | None) -> Fraction:
    """Return the offset added to all times of the input, in seconds; ``first_s`` is the
    time of the first kept frame."""
    if window is not None or info.start_s > LONG_START_S or first_s < 0:
        return -first_s
    return Fraction(0)


@contextmanager
def source_of(info: ClipInfo) -> Generator[InputContainer | None]:
    """Return the input for a second reading; None for a pipe that was not spooled."""
    if isinstance(info.source, Pipe) and not info.source.is_spooled:
        yield None
        return
    with open_input(info.source) as container:
        yield container


def mend_transparency(packet: Packet) -> None:
    """Remove the duplicate identifier that NUT puts before a packet's side data."""
    if not packet.has_sidedata(_BESIDE):
        return
    content = bytes(packet.get_sidedata(_BESIDE))
    if content[:_NUMBER_BYTES] != content[_NUMBER_BYTES : 2 * _NUMBER_BYTES]:
        return
    kind = packet_sidedata_type_from_literal(_BESIDE)
    # The type hints lack the constructor.
    mended = cast("Callable[[int, int], PacketSideData]", PacketSideData)(kind, len(content) - _NUMBER_BYTES)
    mended.update(content[_NUMBER_BYTES:])
    packet.set_sidedata(mended)


def late_notes(late_s: Fraction, plan: StreamPlan) -> tuple[str, ...]:
    """Return a note if everything is shown noticeably later than in the input."""
    if late_s <= _LATE_S:
        return ()
    late_ms = f"{float(late_s * 1000):.0f} ms"
    return (f"everything is shown {late_ms} later: a stream starts before 0, which {plan.suffix} cannot store",)


def aspect_notes(aspect: Fraction, plan: StreamPlan, spec: EncodeSpec) -> tuple[str, ...]:
    """Return a note if the pixel aspect ratio is lost."""
    if aspect == spec.coded_aspect:
        return ()
    return (f"the pixel aspect ratio {spec.coded_aspect} cannot be stored with {spec.codec} in {plan.suffix}",)
