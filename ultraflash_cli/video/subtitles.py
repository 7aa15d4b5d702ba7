"""Prepare subtitles for the output: clip them to the selected range, convert them, and
resolve overlaps for MP4."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from struct import error as StructError
from struct import pack, unpack_from

from av.error import FFmpegError
from av.packet import Packet
from av.subtitles.stream import SubtitleStream

__all__ = ["TextConverter", "clipped", "merged_text"]

_LENGTH_BYTES = 2
"""Size of the length field before a text in MP4."""
_BOX_BYTES = 8
_STYLE_BYTES = 12
_MOST_BYTES = 65535
_PATIENCE_S = 1


def clipped(packet: Packet, window: tuple[Fraction, Fraction] | None) -> Packet | None:
    """Clip a subtitle to ``window``, in seconds; None if it lies outside."""
    pts = packet.pts if packet.pts is not None else packet.dts
    if window is None or pts is None:
        return packet
    start_s, end_s = pts * packet.time_base, (pts + (packet.duration or 0)) * packet.time_base
    if not (start_s < window[1] and (end_s > window[0] or start_s >= window[0])):
        return None
    if start_s < window[0]:
        start_s = window[0]
        packet.pts = packet.dts = round(start_s / packet.time_base)
    if packet.duration:
        packet.duration = max(1, round((min(end_s, window[1]) - start_s) / packet.time_base))
    return packet


class TextConverter:
    """Converts text subtitles to another text format.

    MP4 shows one text at a time: overlapping lines are split into consecutive pieces,
    each with all lines shown at that time. A line is therefore held back until it ends.
    """

    def __init__(self, source: SubtitleStream, target: SubtitleStream) -> None:
        self._decoder = source.codec_context
        self._encoder = target.codec_context
        self._encoder.subtitle_header = self._decoder.subtitle_header
        self._encoder.open()
        self._lines = _Lines() if self._encoder.codec.canonical_name == "mov_text" else None
        self._unit = Fraction(1, 1000)

    def push(self, packet: Packet) -> list[Packet]:
        """Add one subtitle; return those that are ready."""
        try:
            shown = self._decoder.decode2(packet)
        except FFmpegError:
            return []
        if shown is None or not len(shown):
            return []
        content = bytes(self._encoder.encode_subtitle(shown))
        self._unit = packet.time_base
        if not content:
            return []
        if self._lines is None or packet.pts is None:
            return [self._packet(content, packet.pts, packet.dts, packet.duration or 0)]
        return self._ready(self._lines.push(_Line(packet.pts, packet.duration or 0, content)))

    def until(self, time_s: Fraction) -> list[Packet]:
        """Return the subtitles that end before the file's current time, with some
        tolerance for late lines."""
        return [] if self._lines is None else self._ready(self._lines.until(int((time_s - _PATIENCE_S) / self._unit)))

    def flush(self) -> list[Packet]:
        """Return the remaining subtitles."""
        return [] if self._lines is None else self._ready(self._lines.flush())

    def _ready(self, lines: "list[_Line]") -> list[Packet]:
        return [self._packet(line.text, line.start, line.start, line.lasts) for line in lines]

    def _packet(self, content: bytes, pts: int | None, dts: int | None, lasts: int) -> Packet:
        ready = Packet(content)
        ready.time_base = self._unit
        ready.pts, ready.dts, ready.duration = pts, dts, lasts
        return ready


@dataclass
class _Line:
    start: int
    lasts: int
    """Duration; 0 if unknown."""
    text: bytes

    @property
    def end(self) -> int:
        return self.start + self.lasts


class _Lines:
    """The lines shown at present, in order of arrival."""

    def __init__(self) -> None:
        self._shown: list[_Line] = []
        self._now: int | None = None

    def push(self, line: _Line) -> list[_Line]:
        for before in self._shown:
            before.lasts = before.lasts or max(0, line.start - before.start)
        pieces = list(self._pieces(line.start, whole=False))
        if not self._shown:
            self._now = line.start if self._now is None else max(self._now, line.start)
        self._shown.append(line)
        return pieces

    def until(self, time: int) -> list[_Line]:
        return list(self._pieces(time, whole=True))

    def flush(self) -> list[_Line]:
        pieces = list(self._pieces(1 << 62, whole=True))
        pieces += [_Line(max(line.start, self._now or line.start), 0, line.text) for line in self._shown]
        self._shown = []
        return pieces

    def _pieces(self, time: int, *, whole: bool) -> Iterator[_Line]:
        """Return the pieces shown before ``time``; with ``whole`` only up to the last
        line that has ended by then."""
        while self._shown and self._now is not None and self._now < time:
            ends = [line.end for line in self._shown if line.lasts]
            stop = min([*ends, time])
            if whole and (stop == time or len(ends) < len(self._shown)):
                return
            if stop > self._now:
                yield _Line(self._now, stop - self._now, merged_text([line.text for line in self._shown]))
                self._now = stop
            self._shown = [line for line in self._shown if not line.lasts or line.end > stop]


def merged_text(texts: Sequence[bytes]) -> bytes:
    """Merge MP4 text samples into one, a line each, with all styles."""
    if len(texts) == 1:
        return texts[0]

    words: list[bytes] = []
    styles: list[bytes] = []
    others: dict[bytes, bytes] = {}
    place = 0
    for sample in texts:
        length = int.from_bytes(sample[:_LENGTH_BYTES])
        text = sample[_LENGTH_BYTES : _LENGTH_BYTES + length]
        for kind, content in _boxes(sample[_LENGTH_BYTES + length :]):
            if kind == b"styl":
                styles += _moved_styles(content, place)
            else:
                others.setdefault(kind, content)
        words.append(text)
        place += len(text.decode(errors="replace")) + 1

    text = b"\n".join(words)[:_MOST_BYTES]
    if styles:
        others = {b"styl": pack(">H", len(styles)) + b"".join(styles)} | others
    boxes = (pack(">I4s", _BOX_BYTES + len(content), kind) + content for kind, content in others.items())
    return pack(">H", len(text)) + text + b"".join(boxes)


def _boxes(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    place = 0
    while place + _BOX_BYTES <= len(content):
        length, kind = unpack_from(">I4s", content, place)
        if length < _BOX_BYTES:
            return
        yield kind, content[place + _BOX_BYTES : place + length]
        place += length


def _moved_styles(content: bytes, by: int) -> list[bytes]:
    """Return the records of a style box, with character positions moved by ``by``."""
    try:
        (count,) = unpack_from(">H", content)
        records = [content[2 + _STYLE_BYTES * n : 2 + _STYLE_BYTES * (n + 1)] for n in range(count)]
        return [pack(">HH", *(place + by for place in unpack_from(">HH", each))) + each[4:] for each in records]
    except StructError:
        return []
