"""Audio conversion that keeps every sample at its time, and the lossless codecs."""

from collections.abc import Callable, Iterator
from fractions import Fraction
from struct import pack
from typing import TYPE_CHECKING, Literal, cast

import av
import numpy as np
from av.audio.stream import AudioStream
from av.container import OutputContainer
from av.error import FFmpegError
from av.packet import Packet, PacketSideData, packet_sidedata_type_from_literal

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["SoundConverter", "add_sound", "lossless_codecs", "sample_bits"]

_BITS = (
    dict.fromkeys(("pcm_u8", "pcm_s8", "pcm_s8_planar"), 8)
    | dict.fromkeys(("pcm_s16le", "pcm_s16be", "pcm_s16le_planar", "pcm_s16be_planar", "pcm_u16le", "pcm_u16be"), 16)
    | dict.fromkeys(("pcm_alaw", "pcm_mulaw", "pcm_vidc"), 16)
    | dict.fromkeys(("pcm_s24le", "pcm_s24be", "pcm_s24le_planar", "pcm_u24le", "pcm_u24be", "pcm_s24daud"), 24)
    | dict.fromkeys(("pcm_s32le", "pcm_s32be", "pcm_s32le_planar", "pcm_u32le", "pcm_u32be"), 32)
)
_OF_DISCS = ("pcm_bluray", "pcm_dvd", "s302m")
"""PCM in Blu-ray, DVD and SMPTE 302M packets: 16 bits, or up to 24."""
_PACKED = ("alac", "ape", "flac", "mp4als", "shorten", "tak", "tta", "wavpack", "wmalossless")
_PLAIN = {8: "pcm_u8", 16: "pcm_s16le", 24: "pcm_s24le", 32: "pcm_s32le"}
_FLOATS = {"pcm_f32be": "pcm_f32le", "pcm_f32le": "pcm_f32le", "pcm_f64be": "pcm_f64le", "pcm_f64le": "pcm_f64le"}
_FLAC_BITS = 24
_STEP_S = Fraction(1, 25)
"""Maximum deviation of timestamps that is ignored; a smaller offset is not visible in
lip sync."""
_AAC_RATES = (96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000)
_AAC_BITS = 96_000
"""Bits per second for each channel, at the usual sample rates."""
_AAC_BITS_OF_SAMPLE = 4
_OPUS_RATE, _OPUS_BITS = 48_000, 64_000
"""Samples per second, and bits per second for each channel."""
_OPUS_LAYOUTS = (
    dict.fromkeys(("quad(side)", "3.0(back)"), "quad")
    | dict.fromkeys(("4.0", "5.0(side)"), "5.0")
    | dict.fromkeys(("2.1", "3.1", "4.1", "5.1(side)", "hexagonal"), "5.1")
    | {"6.0": "6.1"}
    | dict.fromkeys(("6.0(front)", "6.1(back)", "6.1(front)", "7.0", "7.0(front)", "octagonal"), "7.1")
    | dict.fromkeys(("7.1(wide)", "7.1(wide-side)"), "7.1")
)
"""Layouts outside the mapping family 1 of Opus (RFC 7845, section 5.1.1.2), and the ones
inside it that take their place; the sound of AC-3 is usually 5.1(side)."""
_MOST_CHANNELS = 8
_USUAL_LAYOUTS = {1: "mono", 2: "stereo", 3: "2.1", 4: "4.0", 5: "5.0", 6: "5.1", 7: "6.1", 8: "7.1"}
"""FFmpeg's guesses by the number of channels, as its converter would mix others."""
_SKIPPED: Literal["skip_samples"] = "skip_samples"


def sample_bits(codec: str, sample_format: str) -> int:
    """Return the bits per sample of losslessly stored audio; 0 for floats and other
    codecs."""
    if codec in _BITS:
        return _BITS[codec]
    if codec in _OF_DISCS or codec in _PACKED:
        plain = sample_format.rstrip("p")
        return {"u8": 8, "s16": 16, "s32": 24 if codec in _OF_DISCS else 32}.get(plain, 0)
    return 0


def lossless_codecs(codec: str, bits: int) -> tuple[str, ...]:
    """Return the codecs to which ``codec`` can be converted losslessly, PCM first."""
    if codec in _FLOATS:
        return (_FLOATS[codec],)
    plain = _PLAIN.get(bits)
    if plain is None:
        return ()
    return (plain, "flac") if bits <= _FLAC_BITS else (plain,)


def add_sound(container: OutputContainer, source: AudioStream, codec: str, bits: int) -> "SoundConverter":
    """Add a track of ``codec`` to a file, and return the converter for packets of
    ``source``."""
    rate = source.codec_context.sample_rate
    channels = source.codec_context.channels
    layout = source.codec_context.layout.name
    if codec == "aac":
        rate = min(_AAC_RATES, key=lambda known: (known < rate, abs(known - rate)))
    elif codec == "opus":
        rate = _OPUS_RATE
    # For files without a channel layout, or with too many channels.
    if codec in ("aac", "opus") and ("channels" in layout or channels > _MOST_CHANNELS):
        layout = _USUAL_LAYOUTS.get(channels, "stereo")
    if codec == "opus":
        layout = _OPUS_LAYOUTS.get(layout, layout)

    # FFmpeg's own encoder of Opus is experimental.
    added = container.add_stream("libopus" if codec == "opus" else codec, rate=rate, layout=layout)
    assert isinstance(added, AudioStream), "an audio encoder makes an audio stream"
    context = added.codec_context
    deep = bits > 16
    context.format = {
        "aac": "fltp", "flac": "s32" if deep else "s16", "pcm_u8": "u8", "pcm_s16le": "s16", "pcm_f32le": "flt",
        "pcm_f64le": "dbl", "opus": "flt",
    }.get(codec, "s32")  # fmt: skip
    if codec == "aac":
        context.bit_rate = min(_AAC_BITS, _AAC_BITS_OF_SAMPLE * rate) * max(1, len(context.layout.channels))
    elif codec == "opus":
        context.bit_rate = _OPUS_BITS * max(1, len(context.layout.channels))
    context.time_base = added.time_base = Fraction(1, rate)
    context.open()
    return SoundConverter(source, added)


class SoundConverter:
    """Decodes packets and re-encodes their samples. Samples stay at the times of the
    packets. Short gaps are filled with silence, longer ones are left empty, and
    duplicate samples are dropped.
    """

    def __init__(self, source: AudioStream, target: AudioStream) -> None:
        self.stream = target
        self._decoder = source.codec_context
        self._encoder = target.codec_context
        self._rate = self._encoder.sample_rate
        # PyAV reads beyond the planes of a frame with eight of them; the encoder converts to its own format.
        self._format = self._encoder.format.packed
        self._block = self._encoder.frame_size
        self._resampler: av.AudioResampler | None = None
        self._setup: tuple[str, str, int] | None = None
        self._waiting: NDArray[np.generic] | None = None  # samples that do not fill a block yet, [channels, samples]
        self._next: int | None = None  # expected position of the next decoded sample, in output samples
        self._held: Packet | None = None

    def push(self, packet: Packet) -> list[Packet]:
        """Add a packet; return the packets that are ready."""
        try:
            frames = self._decoder.decode(packet)
        except FFmpegError:
            return []
        return self._passed(self._encoded(frames))

    def flush(self) -> list[Packet]:
        """Return the remaining packets."""
        try:
            frames = self._decoder.decode(None)
        except FFmpegError:
            frames = []
        packets = list(self._encoded(frames))
        rest = self._resampled(None)
        if self._next is not None and rest is not None:
            packets += self._append(rest)
        if self._waiting is not None and self._waiting.shape[1]:
            packets += self._encode(self._waiting)
            self._waiting = None
        if self._next is not None:
            packets += self._encoder.encode(None)
        ready = self._passed(iter(packets))
        if self._held is not None:
            self._mark_end(self._held)
            ready.insert(len(ready) - sum(not each.size for each in ready), self._held)
        return ready

    def _passed(self, packets: Iterator[Packet]) -> list[Packet]:
        """Hold one packet back, as the last one needs special treatment."""
        ready: list[Packet] = []
        for packet in packets:
            packet.time_base = Fraction(1, self._rate)
            if not packet.size:
                ready.append(packet)
                continue
            if self._held is not None:
                ready.append(self._held)
            self._held = packet
        return ready

    def _encoded(self, frames: list[av.AudioFrame]) -> Iterator[Packet]:
        for frame in frames:
            pts, unit = frame.pts, frame.time_base
            place = None if pts is None or unit is None else round(pts * unit * self._rate)
            samples = self._converted(frame)
            if samples is None:
                continue
            if self._next is None:
                self._next = place or 0
            elif place is not None and abs(place - self._next) > _STEP_S * self._rate:
                if place < self._next:
                    samples = samples[:, self._next - place :]
                else:
                    yield from self._bridge(place - self._next)
            yield from self._append(samples)

    def _converted(self, frame: av.AudioFrame) -> "NDArray[np.generic] | None":
        """Return the samples of a frame in the encoder's kind of numbers, ``[channels,
        samples]``; None if they are incompatible."""
        setup = frame.format.name, frame.layout.name, frame.sample_rate
        if self._resampler is None or setup != self._setup:
            self._setup = setup
            self._resampler = av.AudioResampler(format=self._format, layout=self._encoder.layout, rate=self._rate)
        frame.pts = None
        return self._resampled(frame)

    def _resampled(self, frame: av.AudioFrame | None) -> "NDArray[np.generic] | None":
        """Return the samples of a frame, or those that are left at the end, like
        ``_converted``."""
        if self._resampler is None:
            return None
        try:
            pieces = [piece.to_ndarray() for piece in self._resampler.resample(frame)]
        except (FFmpegError, ValueError):
            return None
        channels = len(self._encoder.layout.channels)
        shaped = [piece.reshape(-1, channels).T for piece in pieces]
        return np.concatenate(shaped, axis=1) if shaped else None

    def _bridge(self, gap: int) -> Iterator[Packet]:
        """Fill a gap with silence up to the end of the current block, and leave the
        rest empty."""
        waiting = 0 if self._waiting is None else self._waiting.shape[1]
        silent = min(gap, self._block - waiting) if self._block and waiting else 0
        if silent:
            yield from self._append(self._silence(silent))
        assert self._next is not None, "samples came before a gap"
        self._next += gap - silent

    def _silence(self, count: int) -> "NDArray[np.generic]":
        kind = {"u8": np.uint8, "s16": np.int16, "s32": np.int32, "flt": np.float32, "dbl": np.float64}
        dtype = kind[self._format.name]
        return np.full((len(self._encoder.layout.channels), count), 128 if dtype is np.uint8 else 0, dtype)

    def _append(self, samples: "NDArray[np.generic]") -> Iterator[Packet]:
        assert self._next is not None, "the first samples have their time"
        self._next += samples.shape[1]
        if self._waiting is not None and self._waiting.shape[1]:
            samples = np.concatenate((self._waiting, samples), axis=1)
        self._waiting = samples
        size = self._block or samples.shape[1]
        while size and self._waiting.shape[1] >= size:
            block, rest = self._waiting[:, :size], self._waiting[:, size:]
            yield from self._encode(block)
            self._waiting = rest

    def _encode(self, samples: "NDArray[np.generic]") -> list[Packet]:
        """Encode the oldest pending samples."""
        assert self._next is not None and self._waiting is not None, "samples with their time"
        shaped = np.ascontiguousarray(samples.T.reshape(1, -1))
        frame = av.AudioFrame.from_ndarray(shaped, format=self._format, layout=self._encoder.layout)  # pyright: ignore[reportArgumentType]
        frame.sample_rate = self._rate
        frame.time_base = Fraction(1, self._rate)
        frame.pts = self._next - self._waiting.shape[1]
        return self._encoder.encode(frame)

    def _mark_end(self, packet: Packet) -> None:
        """Mark the padding samples at the end of the last packet as skipped."""
        padded = self._block - (packet.duration or self._block) if self._block else 0
        if padded <= 0 or self._encoder.codec.canonical_name != "aac":
            return
        kind = packet_sidedata_type_from_literal(_SKIPPED)
        content = pack("<IIBB", 0, padded, 0, 0)
        # The type hints lack the constructor.
        beside = cast("Callable[[int, int], PacketSideData]", PacketSideData)(kind, len(content))
        beside.update(content)
        packet.set_sidedata(beside)
