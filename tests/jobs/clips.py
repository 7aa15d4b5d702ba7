"""Tiny generated clips, and functions that read files."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.audio.stream import AudioStream
from av.video.stream import VideoStream

__all__ = ["audio_packets", "decoded", "make_clip", "moving_picture", "stream_kinds", "timestamps"]


def moving_picture(number: int, *, width: int, height: int) -> np.ndarray:
    """Return a soft drifting pattern; every multiple of 1000 starts a different one,
    which is a new scene."""
    rows, columns = np.mgrid[0:height, 0:width]
    scene, step = divmod(number, 1000)
    red = 120 + 100 * np.sin((columns + 2 * step) / (5 + 3 * scene))
    green = (rows * 5 + 70 * scene) % 200 if scene else rows * 3 % 256
    blue = np.full_like(red, 40 + 170 * (scene % 2))
    return np.stack([red, green, blue], axis=2).clip(0, 255).astype(np.uint8)


def make_clip(
    path: Path,
    *,
    frames: int = 20,
    width: int = 64,
    height: int = 48,
    cut_at: int | None = None,
    audio: bool = True,
    uneven: bool = False,
) -> Path:
    """Write a lossless H.264 clip at 25 frames per second, with a tone as audio;
    `uneven` shifts every third frame in time."""
    with av.open(path, "w") as container:
        video = container.add_stream("libx264", rate=25, options={"qp": "0", "preset": "ultrafast"})
        assert isinstance(video, VideoStream)
        video.width, video.height, video.pix_fmt = width, height, "yuv444p"
        video.codec_context.time_base = video.time_base = Fraction(1, 12800)
        sound = container.add_stream("aac", rate=16000) if audio else None
        for number in range(frames):
            shown = number + 1000 if cut_at is not None and number >= cut_at else number
            rgb_hwc = moving_picture(shown, width=width, height=height)
            frame = av.VideoFrame.from_ndarray(rgb_hwc, format="rgb24")
            frame.time_base = Fraction(1, 12800)
            frame.pts = 512 * number + (100 if uneven and number % 3 == 2 else 0)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        if sound is not None:
            assert isinstance(sound, AudioStream)
            seconds = np.arange(16000 * frames // 25) / 16000
            tone = (np.sin(2 * np.pi * 440 * seconds) * 8000).astype(np.int16)[None]
            wave = av.AudioFrame.from_ndarray(tone, format="s16", layout="mono")
            wave.sample_rate, wave.pts = 16000, 0
            container.mux(sound.encode(wave))
            container.mux(sound.encode(None))
    return path


def decoded(path: Path) -> list[np.ndarray]:
    """Return every frame as RGB."""
    with av.open(path) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def timestamps(path: Path) -> list[Fraction]:
    """Return the time of every frame in seconds."""
    with av.open(path) as container:
        times = [(frame.pts, frame.time_base) for frame in container.decode(video=0)]
    return [pts * base for pts, base in times if pts is not None and base is not None]


def audio_packets(path: Path) -> list[tuple[int | None, bytes]]:
    """Return the audio packets with their times."""
    with av.open(path) as container:
        return [(packet.pts, bytes(packet)) for packet in container.demux(audio=0) if packet.size]


def stream_kinds(path: Path) -> list[str]:
    """Return the kinds of the streams in order."""
    with av.open(path) as container:
        return [stream.type for stream in container.streams]
