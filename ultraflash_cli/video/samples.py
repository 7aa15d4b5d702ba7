"""Short runs of consecutive pictures from the whole clip, for measurements in
advance."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.video.codeccontext import VideoCodecContext
from av.video.stream import VideoStream
from numpy.typing import NDArray

from ultraflash_cli.errors import InputError
from ultraflash_cli.video.color import ColorInfo, Picture, as_picture
from ultraflash_cli.video.convert import FrameConverter, look_of
from ultraflash_cli.video.deinterlacing import filter_mode, frames_of
from ultraflash_cli.video.probe import ClipInfo
from ultraflash_cli.video.source import Tally, decoded_frames, decoder_of, open_input

__all__ = ["luma_of", "middle_of", "sampled_runs", "ycc_of"]

_RUNS = 8
_PICTURES = 3
_AROUND = 1
"""Frames before and after a run, which deinterlacing needs."""
_READ_THROUGH = 400
"""Frame count up to which clips are read completely; longer ones are sampled at
keyframes."""
_OF_HEAD = 60
"""Frames read at the start of inputs without seeking."""

_YCC = np.array([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]], dtype=np.float32)


def sampled_runs(info: ClipInfo, *, threads: int = 1) -> Iterator[list[Picture]]:
    """Yield up to eight runs of three pictures, decoded as the clip is read, from
    positions that depend only on the file. A clip without decodable pictures yields
    none.
    """
    single = replace(frames_of(info), has_alpha=False)
    mode = filter_mode(info)
    if mode is not None and mode.startswith("film"):
        mode = mode.replace("film", "matched")
    with suppress(InputError, OSError, FFmpegError), open_input(info.source) as container:
        stream = container.streams[info.video_index]
        assert isinstance(stream, VideoStream), "probe chose a video stream"
        decoder = decoder_of(stream, alpha=False)
        decoder.thread_count = threads
        for frames in _runs(container, stream, decoder, info):
            converter = FrameConverter(single, deinterlace=mode, alpha=False, threads=threads)
            tags = ColorInfo(matrix=frames[0].colorspace, range=frames[0].color_range)
            pictures: list[Picture] = []
            for frame in frames:
                look = look_of(frame, decoder.sample_aspect_ratio, single, tags)
                pictures += [rgb_hwc for rgb_hwc, _ in converter.push(frame, look)]
            pictures += [rgb_hwc for rgb_hwc, _ in converter.flush()]
            around = _AROUND if len(pictures) > 2 * _AROUND + 1 else 0
            yield pictures[around : len(pictures) - around]


def _runs(
    container: InputContainer, stream: VideoStream, decoder: VideoCodecContext, info: ClipInfo
) -> Iterator[list[av.VideoFrame]]:
    length = _PICTURES + 2 * _AROUND
    count = frames_of(info).frame_count_estimate
    is_file = isinstance(info.source, Path)
    if not is_file or count is None or count <= _READ_THROUGH:
        most = _OF_HEAD if not is_file else count or _READ_THROUGH
        spacing = max(length, most // _RUNS)
        frames = decoded_frames(container, stream, decoder, Tally())
        for number in range(_RUNS):
            run = list(islice(frames, length))
            if run and (len(run) == length or not number):
                yield run
            if len(run) < length:
                return
            for _ in islice(frames, spacing - length):
                pass
        return

    start_s, length_s = (container.start_time or 0) / av.time_base, info.duration_s or 0.0
    seen: set[int | None] = set()
    for number in range(_RUNS):
        container.seek(int((start_s + (number + 0.5) / _RUNS * length_s) * av.time_base))
        decoder.flush_buffers()
        run = list(islice(decoded_frames(container, stream, decoder, Tally()), length))
        if run and run[0].pts not in seen:
            seen.add(run[0].pts)
            yield run


def ycc_of(rgb_hwc: Picture) -> NDArray[np.float32]:
    """Return luma and the two colour differences ``[3, height, width]`` in full-range
    8-bit levels."""
    levels = rgb_hwc.astype(np.float32)
    if rgb_hwc.dtype == np.uint16:
        levels /= 257
    return np.ascontiguousarray((levels @ _YCC.T).transpose(2, 0, 1))


def middle_of(picture: Picture, most_px: int = 768) -> Picture:
    """Return the centre of a picture, at most ``most_px`` per side, which suffices for
    large pictures."""
    height, width = (min(most_px, side) for side in picture.shape[:2])
    top, left = (picture.shape[0] - height) // 2, (picture.shape[1] - width) // 2
    return as_picture(picture[top : top + height, left : left + width])


def luma_of(rgb_hwc: Picture) -> NDArray[np.float32]:
    """Return luma ``[height, width]`` in full-range 8-bit levels."""
    levels = rgb_hwc.astype(np.float32) @ _YCC[0]
    return levels / np.float32(257) if rgb_hwc.dtype == np.uint16 else levels
