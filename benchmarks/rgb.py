"""Conversion of clips to RGB frames and back by ffmpeg, with the same colour matrix,
which preserves luma."""

import subprocess
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import numpy.typing as npt
from imageio_ffmpeg import get_ffmpeg_exe

from ultraflash_cli.errors import InputError

__all__ = ["Frame", "read_rgb", "write_rgb"]

Frame = npt.NDArray[np.uint8]
"""RGB [H, W, 3]."""

FLAGS = "flags=bicubic+accurate_rnd+full_chroma_int+full_chroma_inp"
# Named on both sides: the default for an untagged or differently tagged stream depends
# on its size and direction.
TO_RGB = f"scale=in_color_matrix=bt709:in_range=tv:{FLAGS},format=rgb24"
TO_YUV = f"scale=out_color_matrix=bt709:out_range=tv:{FLAGS},format=yuv420p"
TAGS = ["-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709", "-color_range", "tv"]


def read_rgb(path: Path, *, width_px: int, height_px: int) -> Iterator[Frame]:
    """Yield the frames of a clip of this size. Raises InputError if it ends within a
    frame or has none."""
    command = [get_ffmpeg_exe(), "-v", "error", "-nostdin", "-i", str(path), "-vf", TO_RGB]
    command += ["-fps_mode", "passthrough", "-f", "rawvideo", "-"]
    size, count = width_px * height_px * 3, 0
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None, "the pipe was asked for"
        while data := process.stdout.read(size):
            if len(data) < size:
                break
            count += 1
            yield np.frombuffer(data, np.uint8).reshape(height_px, width_px, 3)
    if process.returncode or not count or data:
        raise InputError(f"{path}: is no clip of {width_px}x{height_px} from its first frame to its last")


def write_rgb(path: Path, frames: Iterable[Frame], *, rate: Fraction) -> None:
    """Write frames losslessly as 8-bit 4:2:0. Raises InputError if ffmpeg fails."""
    remaining = iter(frames)
    first = next(remaining)
    height, width, _ = first.shape
    command = [get_ffmpeg_exe(), "-v", "error", "-y", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}"]
    command += ["-r", str(rate), "-i", "-", "-vf", TO_YUV, *TAGS, "-c:v", "ffv1", str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        assert process.stdin is not None, "the pipe was asked for"
        process.stdin.write(first.tobytes())
        for frame in remaining:
            process.stdin.write(frame.tobytes())
        process.stdin.close()
    if process.returncode:
        raise InputError(f"{path}: ffmpeg could not write it")
