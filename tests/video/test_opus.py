"""Audio converted to Opus, which WebM holds."""

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


def heard(path: Path) -> tuple[str, np.ndarray]:
    """Return the codec, and the first channel at 48 kHz."""
    resampler = av.AudioResampler(format="fltp", rate=RATE)
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        frames = [*container.decode(stream), None]
        pieces = [piece.to_ndarray()[0] for frame in frames for piece in resampler.resample(frame)]
        return stream.codec_context.codec.canonical_name, np.concatenate(pieces)


@pytest.mark.parametrize(
    ("rate", "layout"), [(48_000, "stereo"), (44_100, "mono"), (16_000, "stereo"), (48_000, "5.1")]
)
def test_opus_keeps_the_place_and_the_length_of_sound(rate: int, layout: str, tmp_path: Path) -> None:
    source, made = tmp_path / "a.mkv", tmp_path / "a.webm"
    chirp(source, rate, layout)
    with av.open(str(source)) as before, av.open(str(made), "w") as after:
        converter = add_sound(after, before.streams.audio[0], "opus", 16)
        for packet in before.demux(audio=0):
            for ready in converter.push(packet) if packet.size else converter.flush():
                ready.stream = converter.stream
                after.mux(ready)

    (_, was), (codec, now) = heard(source), heard(made)
    assert codec == "opus" and abs(len(was) - len(now)) <= 1
    inner = slice(4_000, len(was) - 4_000)
    errors = [float(np.abs(was[inner] - np.roll(now, lag)[inner]).mean()) for lag in range(-100, 101)]
    assert errors.index(min(errors)) == 100, "no sample earlier or later"
    assert min(errors) < 0.1 * float(np.abs(was).mean())
