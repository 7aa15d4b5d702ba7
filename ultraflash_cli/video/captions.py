"""Copy closed captions (CEA-608 and 708), which are inside coded pictures, from the
input's frames to the output's."""

from collections.abc import Iterator

from av.packet import Packet

from ultraflash_cli.video.encode import EncodeSpec
from ultraflash_cli.video.probe import ClipInfo

__all__ = ["carries_captions", "escaped", "with_captions"]

_LENGTH_BYTES = 4
_HEADS = {"h264": bytes([6]), "hevc": bytes([39 << 1, 1])}
"""Start of a caption message (SEI)."""
_REGISTERED = 4
_ATSC = bytes([0xB5, 0, 0x31]) + b"GA94" + bytes([3])
_BYTES_OF_CAPTION = 3
_MOST_CAPTIONS = 31
_LARGEST = 255


def carries_captions(info: ClipInfo, spec: EncodeSpec) -> bool:
    """Return whether captions can be kept: output frames correspond to input frames,
    and the codec can carry captions."""
    return (
        info.has_captions
        and spec.codec in _HEADS
        and spec.time_base == info.time_base
        and not (info.fields or info.film)
    )


def with_captions(
    packets: Iterator[Packet], captions: Iterator[tuple[int, bytes]], spec: EncodeSpec, *, shift: int
) -> Iterator[Packet]:
    """Insert captions into the video packets, in MP4's layout.

    ``captions`` have the input's timestamps and are in display order; ``shift`` is the
    offset added to the packets' timestamps.
    """
    known: dict[int, bytes] = {}
    read_to: int | None = None
    first: int | None = None
    ticks = spec.time_base.numerator
    for packet in packets:
        assert packet.pts is not None, "packets of the picture have their times"
        wanted = (packet.pts - shift) // ticks
        first = wanted if first is None else first
        while read_to is None or read_to < wanted:
            try:
                read_to, content = next(captions)
            except StopIteration:
                read_to = wanted
                break
            if content and read_to >= first:
                known[read_to] = content
        content = known.pop(wanted, b"")
        yield _captioned(packet, content, spec.codec) if content else packet


def _captioned(packet: Packet, captions: bytes, codec: str) -> Packet:
    coded = bytes(packet)
    place = _place(coded, codec)
    unit = _unit(captions, codec)
    whole = Packet(coded[:place] + len(unit).to_bytes(_LENGTH_BYTES, "big") + unit + coded[place:])
    whole.stream, whole.time_base = packet.stream, packet.time_base
    whole.pts, whole.dts, whole.duration = packet.pts, packet.dts, packet.duration
    whole.is_keyframe = packet.is_keyframe
    return whole


def _place(coded: bytes, codec: str) -> int:
    """Return the offset of the first picture unit; messages precede it."""
    place = 0
    while place + _LENGTH_BYTES < len(coded):
        head = coded[place + _LENGTH_BYTES]
        if (1 <= head & 31 <= 5) if codec == "h264" else (head >> 1 & 63 < 32):
            break
        place += _LENGTH_BYTES + int.from_bytes(coded[place : place + _LENGTH_BYTES], "big")
    return place


def _unit(captions: bytes, codec: str) -> bytes:
    count = min(_MOST_CAPTIONS, len(captions) // _BYTES_OF_CAPTION)
    content = _ATSC + bytes([0x40 | count, 0xFF]) + captions[: count * _BYTES_OF_CAPTION] + b"\xff"
    size = bytes([_LARGEST]) * (len(content) // _LARGEST) + bytes([len(content) % _LARGEST])
    return _HEADS[codec] + escaped(bytes([_REGISTERED]) + size + content + b"\x80")


def escaped(content: bytes) -> bytes:
    """Escape bytes that would look like the start of another unit."""
    escaped = bytearray()
    zeros = 0
    for byte in content:
        if zeros >= 2 and byte <= 3:
            escaped.append(3)
            zeros = 0
        escaped.append(byte)
        zeros = zeros + 1 if byte == 0 else 0
    return bytes(escaped)
