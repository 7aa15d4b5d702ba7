"""Predict the size of a clip by enlarging and encoding a few of its frames."""

import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path

import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.video.reformatter import Interpolation

from ultraflash_cli.errors import UltraflashError
from ultraflash_cli.video.color import as_picture
from ultraflash_cli.video.encode import EncodeSpec
from ultraflash_cli.video.frame import Frame
from ultraflash_cli.video.probe import ClipInfo
from ultraflash_cli.video.segment import SegmentWriter, open_segment
from ultraflash_cli.video.source import open_input

__all__ = ["FrameBytes", "copied_bytes", "packet_bytes", "sampled_bytes"]

_PLACES = (Fraction(1, 10), Fraction(1, 2), Fraction(9, 10))
"""Positions of the sampled frames, as fractions of the clip."""
_FRAMES = 5
_KEY_EVERY = 250
"""Frames between keyframes, the default of most encoders."""


@dataclass(frozen=True, kw_only=True)
class FrameBytes:
    """Bytes per frame of a clip."""

    key: float
    other: float
    """Size of an inter frame; that of a keyframe if all are keyframes."""
    frames: int
    """Number of frames examined."""

    def total(self, frames: int) -> int:
        """Estimate the bytes of a number of frames."""
        keys = 1 + (frames - 1) // _KEY_EVERY
        return round(keys * self.key + (frames - keys) * self.other)


def sampled_bytes(info: ClipInfo, spec: EncodeSpec) -> FrameBytes | None:
    """Encode a few frames from three positions of a clip with ``spec``, enlarged by a
    Lanczos filter. None if the clip is not a file, does not state its length, or cannot
    be read there.
    """
    if not isinstance(info.source, Path) or info.duration_s is None:
        return None
    packets: list[tuple[int, bool]] = []
    with tempfile.TemporaryDirectory(prefix="sample_") as folder:
        for number, share in enumerate(_PLACES):
            path = Path(folder) / str(number)
            try:
                frames = _frames_at(info, share * Fraction(info.duration_s), spec)
                if not frames:
                    continue
                with SegmentWriter(path, spec) as writer:
                    ticks = max(1, round(1 / (spec.rate * spec.time_base)))
                    for place, rgb_hwc in enumerate(frames):
                        writer.write(Frame(place * ticks, ticks, as_picture(rgb_hwc)))
                with open_segment(path) as container:
                    packets += _packets(container)
            except (FFmpegError, OSError, UltraflashError):
                return None
    return _summary(packets)


def packet_bytes(path: Path) -> FrameBytes | None:
    """Measure the video of a finished file."""
    with open_input(path) as container:
        return _summary(_packets(container))


def copied_bytes(info: ClipInfo, indices: Iterable[int]) -> int:
    """Estimate the size of the copied streams of a clip from their bit rates."""
    if not isinstance(info.source, Path) or info.duration_s is None:
        return 0
    with open_input(info.source) as container:
        rates = [getattr(container.streams[index], "bit_rate", None) or 0 for index in indices]
    return round(sum(rates) * info.duration_s / 8)


def _frames_at(info: ClipInfo, at_s: Fraction, spec: EncodeSpec) -> list[np.ndarray]:
    """Decode a few frames from the keyframe before a time, and enlarge them to the
    output's size."""
    with open_input(info.source) as container:
        stream = container.streams.video[0]
        for each in container.streams.video:
            stream = each if each.index == info.video_index else stream
        start = info.start_pts or 0
        if at_s:
            container.seek(start + int(at_s / info.time_base), stream=stream)
        frames = islice(container.decode(stream), _FRAMES)
        width, height = spec.width_px, spec.height_px
        return [
            frame.reformat(width, height, "rgb24", interpolation=Interpolation.LANCZOS).to_ndarray() for frame in frames
        ]


def _packets(container: InputContainer) -> list[tuple[int, bool]]:
    stream = container.streams.video[0]
    return [(packet.size, packet.is_keyframe) for packet in container.demux(stream) if packet.size]


def _summary(packets: Sequence[tuple[int, bool]]) -> FrameBytes | None:
    keys = [size for size, is_key in packets if is_key]
    others = [size for size, is_key in packets if not is_key]
    if not keys:
        return None
    key = sum(keys) / len(keys)
    return FrameBytes(key=key, other=sum(others) / len(others) if others else key, frames=len(packets))
