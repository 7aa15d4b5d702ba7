"""Simple decoding of clips for training: bilinear chroma, coded orientation, no
timestamps."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from av.error import FFmpegError
from av.video.stream import VideoStream

from ultraflash_cli.errors import InputError
from ultraflash_cli.video.probe import probe
from ultraflash_cli.video.source import open_input

__all__ = ["read_plain_frames"]


def read_plain_frames(path: Path) -> Iterator[npt.NDArray[np.uint8]]:
    """Yield the frames [H, W, 3] of a whole clip, converted by libswscale with its
    default settings. The built-in weights were trained on this conversion; it differs
    by a level or two from that of ``read_frames``. Raises InputError for a file that is
    missing, unreadable, damaged or without video.
    """
    index = probe(path).video_index
    with open_input(path) as container:
        stream = container.streams[index]
        assert isinstance(stream, VideoStream), "probe chose a video stream"
        try:
            for frame in container.decode(stream):
                yield frame.to_ndarray(format="rgb24").astype(np.uint8, copy=False)
        except FFmpegError as error:
            raise InputError(f"{path}: damaged, cannot be used for training ({error.strerror})") from error
