"""Audio converted to Opus, which WebM holds, or to AAC: any layout of up to eight channels."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.audio.stream import AudioStream

from ultraflash_cli.video.sound import add_sound

RATE = 48_000


def chirp(path: Path, rate: int, layout: str) -> None:
    """Write 0.7 s of a rising tone as lossless audio."""
    time_s = np.arange(rate * 7 // 10) / rate
    tone = (20_000 * np.sin(2 * np.pi * (200 + 800 * time_s) * time_s)).astype(np.int16)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=rate, layout=layout)
        assert isinstance(stream, AudioStream)
        shaped = np.repeat(tone, len(stream.codec_context.layout.channels)).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(shaped, format="s16", layout=layout)
        frame.sample_rate, frame.time_base, frame.pts = rate, Fraction(1, rate), 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def convert(source: Path, made: Path, name: str) -> None:
    """Write the audio of a file as a file of its own."""
    with av.open(str(source)) as before, av.open(str(made), "w") as after:
        converter = add_sound(after, before.streams.audio[0], name, 16)
        for packet in before.demux(audio=0):
            for ready in converter.push(packet) if packet.size else converter.flush():
                ready.stream = converter.stream
                after.mux(ready)


def peaks(path: Path) -> list[float]:
    """Return the largest sample of each channel."""
    resampler = av.AudioResampler(format="flt")  # PyAV cannot read eight planes
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        frames = [piece for frame in container.decode(stream) for piece in resampler.resample(frame)]
        samples = np.concatenate([frame.to_ndarray().reshape(-1, frame.layout.nb_channels) for frame in frames])
    return np.abs(samples).max(axis=0).tolist()


def heard(path: Path) -> tuple[str, np.ndarray]:
    """Return the codec, and the first channel at 48 kHz."""
    resampler = av.AudioResampler(format="flt", rate=RATE)
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        frames = [*container.decode(stream), None]
        channels = len(stream.codec_context.layout.channels)
        pieces = [piece.to_ndarray()[0, ::channels] for frame in frames for piece in resampler.resample(frame)]
        return stream.codec_context.codec.canonical_name, np.concatenate(pieces)


@pytest.mark.parametrize(
    ("rate", "layout", "wanted"),
    [
        (48_000, "stereo", "stereo"),
        (44_100, "mono", "mono"),
        (16_000, "stereo", "stereo"),
        (48_000, "5.1", "5.1"),
        (48_000, "5.1(side)", "5.1"),
        (48_000, "4.1", "5.1"),
        (48_000, "7.0", "7.1"),
    ],
)
def test_opus_keeps_the_place_and_the_length_of_sound(rate: int, layout: str, wanted: str, tmp_path: Path) -> None:
    source, made = tmp_path / "a.wav", tmp_path / "a.webm"
    chirp(source, rate, layout)
    convert(source, made, "opus")

    with av.open(str(made)) as after:
        assert after.streams.audio[0].codec_context.layout.name == wanted
    (_, was), (codec, now) = heard(source), heard(made)
    assert codec == "opus" and abs(len(was) - len(now)) <= 1
    inner = slice(4_000, len(was) - 4_000)
    errors = [float(np.abs(was[inner] - np.roll(now, lag)[inner]).mean()) for lag in range(-100, 101)]
    assert errors.index(min(errors)) == 100, "no sample earlier or later"
    assert min(errors) < 0.1 * float(np.abs(was).mean())


@pytest.mark.parametrize(
    ("layout", "filled"), [("2.1", [0, 1, 3]), ("4.0", range(5)), ("5.0", range(5)), ("6.1", range(7))]
)
def test_channels_without_a_layout_are_all_kept(layout: str, filled: Sequence[int], tmp_path: Path) -> None:
    source, made = tmp_path / "a.mkv", tmp_path / "a.webm"
    chirp(source, RATE, layout)  # Matroska stores how many channels PCM has, not where they belong
    convert(source, made, "opus")

    assert all(peaks(made)[channel] > 0.3 for channel in filled)


def test_eight_channels_become_aac(tmp_path: Path) -> None:
    source, made = tmp_path / "a.wav", tmp_path / "a.mp4"
    chirp(source, RATE, "7.1")
    convert(source, made, "aac")

    assert len(peaks(made)) == 8 and min(peaks(made)) > 0.3
