"""Merge the segments of Blu-ray subtitles (PGS) into one packet per picture."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from av.packet import Packet
from av.subtitles.stream import SubtitleStream

__all__ = ["whole_pictures"]

_CODEC = "hdmv_pgs_subtitle"
_START = 0x16
_END = 0x80
_END_SEGMENT = bytes([_END, 0, 0])
_HEAD_BYTES = 3


@dataclass
class _Picture:
    first: Packet
    content: bytearray = field(default_factory=bytearray)

    def packet(self) -> Packet:
        """Return all segments, with an end segment added if it is missing."""
        if not _ends(self.content):
            self.content += _END_SEGMENT
        whole = Packet(bytes(self.content))
        whole.stream, whole.time_base = self.first.stream, self.first.time_base
        whole.pts, whole.dts, whole.duration = self.first.pts, self.first.dts, self.first.duration
        whole.is_keyframe = True
        return whole


def whole_pictures(packets: Iterator[Packet]) -> Iterator[Packet]:
    """Pass packets on, merging the segments of each Blu-ray subtitle. Matroska's muxer
    does the same, but corrupts other tracks if a segment is missing. Pictures without a
    beginning cannot be shown and are dropped; a missing end is added.
    """
    held: dict[int, _Picture] = {}
    for packet in packets:
        stream = packet.stream
        if not isinstance(stream, SubtitleStream) or stream.codec_context.codec.canonical_name != _CODEC:
            yield packet
            continue
        index, content = packet.stream_index, bytes(packet)
        if content[:1] == bytes([_START]) and index in held:
            yield held.pop(index).packet()
        if content[:1] == bytes([_START]):
            held[index] = _Picture(packet)
        if index not in held:
            continue
        held[index].content += content
        if _ends(held[index].content):
            yield held.pop(index).packet()
    for picture in held.values():
        yield picture.packet()


def _ends(content: bytes | bytearray) -> bool:
    """Return whether the last segment is an end segment."""
    place, kind = 0, 0
    while place + _HEAD_BYTES <= len(content):
        kind = content[place]
        place += _HEAD_BYTES + int.from_bytes(content[place + 1 : place + _HEAD_BYTES], "big")
    return kind == _END and place == len(content)
