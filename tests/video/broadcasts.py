"""Small broadcast recordings: MPEG-TS with video and audio, joined, and with rewritten
timestamps."""

import re
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from tests.video.clips import picture

__all__ = ["PICTURE", "SOUND", "TICKS", "recording", "restamped", "telecined", "unstamped"]

TICKS = 90_000
PICTURE, SOUND = 0x100, 0x101
"""Packet identifiers of video and audio in an MPEG-TS written by FFmpeg."""
_PACKET = 188
_SIZE = (32, 24)
_SAMPLES = 1152

Change = Callable[[int, int, int], tuple[int, int]]
"""Function from the index and the presentation and decoding times of a stream to new
times."""


def recording(path: Path, *, start_s: float = 0, frames: int = 25, sound: bool = True, first: int = 0) -> Path:
    """Write 25 frames per second with B-frames, and MPEG audio that begins and ends
    with the video."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(
            "libx264", rate=25, width=_SIZE[0], height=_SIZE[1], options={"bf": "2", "g": "10", "preset": "veryfast"}
        )
        assert isinstance(stream, av.VideoStream)
        stream.codec_context.thread_count = 1
        tone = container.add_stream("mp2", rate=48000) if sound else None
        pieces: list[tuple[Fraction, av.Packet]] = []
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(first + number, width=_SIZE[0], height=_SIZE[1]))
            frame.pts, frame.time_base = number, Fraction(1, 25)
            pieces += [(_time(packet), packet) for packet in stream.encode(frame)]
        pieces += [(_time(packet), packet) for packet in stream.encode(None)]
        if tone is not None:
            assert isinstance(tone, av.AudioStream)
            for number in range(round(frames / 25 * 48000 / _SAMPLES)):
                wave = np.sin(np.arange(number * _SAMPLES, (number + 1) * _SAMPLES) / (20 + first + number / 9)) * 8000
                sounding = av.AudioFrame.from_ndarray(np.stack([wave, wave], 1).reshape(1, -1).astype(np.int16), "s16")
                sounding.sample_rate, sounding.pts = 48000, number * _SAMPLES
                sounding.time_base = Fraction(1, 48000)
                pieces += [(_time(packet), packet) for packet in tone.encode(sounding)]
            pieces += [(_time(packet), packet) for packet in tone.encode(None)]
        for _, packet in sorted(pieces, key=lambda piece: piece[0]):
            assert packet.pts is not None and packet.dts is not None
            shift = round(Fraction(start_s) / packet.time_base)
            packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
            container.mux(packet)
    return path


def restamped(content: bytes, stream: int, change: Change) -> bytes:
    """Rewrite the times of a stream of an MPEG-TS."""
    changed = bytearray(content)
    number = 0
    for start in range(0, len(content), _PACKET):
        begins, pid = content[start + 1] & 0x40, (content[start + 1] & 0x1F) << 8 | content[start + 2]
        if not begins or pid != stream:
            continue
        place = start + 4 + (1 + content[start + 4] if content[start + 3] & 0x20 else 0)
        assert content[place : place + 3] == b"\0\0\1", "the start of a packet of the stream"
        flags = content[place + 7] >> 6
        if not flags & 2:
            continue
        pts = _read(content, place + 9)
        dts = _read(content, place + 14) if flags & 1 else pts
        new_pts, new_dts = change(number, pts, dts)
        _write(changed, place + 9, new_pts)
        if flags & 1:
            _write(changed, place + 14, new_dts)
        number += 1
    return bytes(changed)


def unstamped(content: bytes) -> bytes:
    """Remove all times of the video from an MPEG-TS or MPEG-PS."""
    changed = bytearray(content)
    for found in re.finditer(rb"\x00\x00\x01\xe0..[\x80-\xbf]", content, re.DOTALL):
        length = content[found.end() + 1]
        changed[found.end()] &= 0x3F
        changed[found.end() + 2 : found.end() + 2 + length] = b"\xff" * length
    return bytes(changed)


def telecined(content: bytes) -> bytes:
    """Repeat the first field of every second MPEG-2 frame, as for film on discs."""
    changed = bytearray(content)
    for found in re.finditer(rb"\x00\x00\x01\xb5[\x10-\x1f]", content):
        changed[found.end()] &= ~0x08  # no progressive sequence
    for number, found in enumerate(re.finditer(rb"\x00\x00\x01\xb5[\x80-\x8f]", content)):
        changed[found.end() + 2] |= 0 if number % 2 else 0x02
    return bytes(changed)


def _time(packet: av.Packet) -> Fraction:
    assert packet.dts is not None
    return packet.dts * packet.time_base


def _read(content: bytes, place: int) -> int:
    a, b, c, d, e = content[place : place + 5]
    return (a >> 1 & 7) << 30 | b << 22 | (c >> 1) << 15 | d << 7 | e >> 1


def _write(content: bytearray, place: int, ticks: int) -> None:
    ticks %= 1 << 33
    content[place] = content[place] & 0xF1 | (ticks >> 30 & 7) << 1
    content[place + 1] = ticks >> 22 & 255
    content[place + 2] = (ticks >> 15 & 127) << 1 | 1
    content[place + 3] = ticks >> 7 & 255
    content[place + 4] = (ticks & 127) << 1 | 1
