"""The content of a file's streams, measured in ways that muxers preserve."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition, Stream
from av.subtitles.stream import SubtitleStream
from av.video.stream import VideoStream

__all__ = ["Content", "counted_bytes", "is_moving", "main_picture"]

_EMPTY_TEXT_BYTES = 2
"""Size of the packets with which MP4 fills the time between subtitles."""
_SLACK_S = Fraction(2, 1000)
_SLACK_BYTES = Fraction(1, 50)
"""Tolerance for headers that are added or removed when packets are regrouped."""


@dataclass(kw_only=True)
class Content:
    """The amount of content in a stream. Muxers and demuxers may regroup packets (PCM,
    the segments of Blu-ray subtitles), so that their number alone is not conclusive.
    """

    kind: str
    name: str = ""
    """Name for users, if it comes from the input."""
    packets: int = 0
    size_bytes: int = 0
    start_s: Fraction | None = None
    end_s: Fraction = Fraction(0)

    def add(self, packet: Packet) -> None:
        """Count a packet."""
        self.packets += 1
        self.size_bytes += packet.size
        if packet.pts is None:
            return
        start_s = packet.pts * packet.time_base
        self.start_s = start_s if self.start_s is None else min(self.start_s, start_s)
        self.end_s = max(self.end_s, start_s + (packet.duration or 0) * packet.time_base)

    @property
    def lasts_s(self) -> Fraction:
        """Duration from the start of the first packet to the end of the last, in
        seconds."""
        return self.end_s - (self.start_s or 0)

    def is_in(self, found: "Content") -> bool:
        """Return whether ``found`` has the same content, regardless of how it is split
        into packets."""
        if self.packets == found.packets or self.size_bytes == found.size_bytes:
            return True
        alike = abs(self.size_bytes - found.size_bytes) <= _SLACK_BYTES * self.size_bytes
        return alike and abs(self.lasts_s - found.lasts_s) <= _SLACK_S

    def __str__(self) -> str:
        return f"{self.packets} packets, {self.size_bytes:,} bytes in total, over {float(self.lasts_s):.2f} s"


def counted_bytes(packet: Packet, stream: Stream) -> int:
    """Return the size of a packet; 0 for packets with which MP4 fills the time between
    subtitles."""
    is_mp4_text = isinstance(stream, SubtitleStream) and stream.codec_context.codec.canonical_name == "mov_text"
    return packet.size if packet.size > (_EMPTY_TEXT_BYTES if is_mp4_text else 0) else 0


def is_moving(stream: Stream) -> bool:
    """Return whether a stream is video rather than a cover picture."""
    return stream.type == "video" and not stream.disposition & Disposition.attached_pic


def main_picture(container: InputContainer, contents: Sequence[Content] = (), *, number: int = 0) -> VideoStream:
    """Return the main video of a file written by ``join``, which is the video stream
    with index ``number`` among those in ``contents``. Containers may omit streams
    without packets.
    """
    moving = [stream for stream in container.streams.video if is_moving(stream)]
    written = [content for content in contents if content.kind == "video"]
    if len(moving) < len(written):
        number = sum(content.packets > 0 for content in written[:number])
    return moving[number]
