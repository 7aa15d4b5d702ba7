"""HDR metadata as messages (SEI) in front of keyframes, for encoders that write none."""

from struct import pack

from av.packet import Packet

from ultraflash_cli.video.captions import escaped
from ultraflash_cli.video.encode import EncodeSpec

__all__ = ["hdr_messages", "with_messages"]

_START = b"\0\0\0\1"
_HEADS = {"h264": bytes([6]), "hevc": bytes([39 << 1, 1])}
_SCREEN = 137
_LIGHT = 144
_PICTURES = {"h264": range(1, 6), "hevc": range(32)}
"""Types of the units that hold pictures."""


def hdr_messages(spec: EncodeSpec) -> bytes:
    """Return the messages of the mastering display and the light levels as units of a
    byte stream; empty if the clip has neither.
    """
    assert spec.codec in _HEADS, "a codec with messages"
    payloads: list[bytes] = []
    screen, light = spec.mastering_display, spec.content_light
    if screen is not None:
        places = (screen.green, screen.blue, screen.red, screen.white)
        steps = (round(value * 50_000) for place in places for value in place)
        nits = (round(value * 10_000) for value in (screen.brightest_nits, screen.darkest_nits))
        content = pack(">8H2I", *steps, *nits)
        payloads.append(bytes([_SCREEN, len(content)]) + content)
    if light is not None:
        content = pack(">2H", light.max_cll, light.max_fall)
        payloads.append(bytes([_LIGHT, len(content)]) + content)
    return b"".join(_START + _HEADS[spec.codec] + escaped(each + b"\x80") for each in payloads)


def with_messages(packet: Packet, messages: bytes, codec: str) -> Packet:
    """Return a packet of a byte stream with messages in front of its first picture."""
    coded = bytes(packet)
    place = _place(coded, codec)
    whole = Packet(coded[:place] + messages + coded[place:])
    whole.stream, whole.time_base = packet.stream, packet.time_base
    whole.pts, whole.dts, whole.duration = packet.pts, packet.dts, packet.duration
    whole.is_keyframe = packet.is_keyframe
    return whole


def _place(coded: bytes, codec: str) -> int:
    """Return the offset of the first unit that holds a picture."""
    at = coded.find(_START[1:])
    while 0 <= at < len(coded) - 3:
        head = coded[at + 3]
        kind = head & 31 if codec == "h264" else head >> 1 & 63
        if kind in _PICTURES[codec]:
            return at - (at > 0 and coded[at - 1] == 0)
        at = coded.find(_START[1:], at + 3)
    return 0
