"""The ffmpeg that comes with imageio-ffmpeg: run it, and read the luma of a clip through it."""

import subprocess
from collections.abc import Generator, Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, NamedTuple

import numpy as np

from ultraflash_cli.errors import InputError, UsageError

__all__ = ["Luma", "Planes", "read_luma", "read_planes", "run_ffmpeg"]

Luma = np.ndarray[tuple[int, int], np.dtype[np.uint8]]
"""One plane of a frame, height by width, 8 bits, in the range the clip is coded in."""

RESIZE = "flags=lanczos+accurate_rnd+full_chroma_int"
"""How clips of another size are resized."""


class Planes(NamedTuple):
    """One frame as 4:2:0 planes of 8 bits, in the range the clip is coded in."""

    y_hw: Luma
    cb_hw: Luma
    cr_hw: Luma


def ffmpeg_program() -> str:
    """Return the path of ffmpeg. Raises UsageError where its package is not installed."""
    try:
        from imageio_ffmpeg import get_ffmpeg_exe
    except ImportError as error:
        raise UsageError("measuring needs ffmpeg: pip install '.[eval]' in the source folder") from error
    return get_ffmpeg_exe()


def run_ffmpeg(arguments: Sequence[str], *, what: str, folder: Path | None = None) -> None:
    """Run ffmpeg to its end in ``folder``; raises InputError with ``what`` and ffmpeg's last words."""
    command = [ffmpeg_program(), "-v", "error", "-nostdin", "-y", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", cwd=folder, check=False)
    if done.returncode:
        raise InputError(f"{what}: {last_line(done.stderr)}")


def read_luma(path: Path, *, frames: int | None = None) -> Generator[Luma]:
    """Yield the Y plane of each frame, one at a time; deeper clips are brought to 8 bits.

    Raises InputError where the file is missing or ffmpeg finds no picture in it.
    """
    for planes in read_planes(path, frames=frames):
        yield planes.y_hw


def read_planes(path: Path, *, size_wh: tuple[int, int] | None = None, frames: int | None = None) -> Generator[Planes]:
    """Yield the planes of each frame as it is shown, one at a time, resized by lanczos to ``size_wh`` if given.

    Raises InputError where the file is missing or ffmpeg finds no picture in it.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    limit = ["-frames:v", str(frames)] if frames else []
    resize = f"scale={size_wh[0]}:{size_wh[1]}:{RESIZE}," if size_wh else ""
    # yuv4mpegpipe: the stream opens with a header that names the size, so that nothing has to be probed first.
    graph = f"{resize}format=yuv420p"
    arguments = ["-i", str(path), "-map", "0:v:0", "-vf", graph, "-fps_mode", "passthrough", *limit]
    command = [ffmpeg_program(), "-v", "error", "-nostdin", *arguments, "-f", "yuv4mpegpipe", "-"]
    # Complaints go to a file: a pipe that nobody empties while the frames are read would block ffmpeg.
    with TemporaryFile() as complaints, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=complaints) as process:
        assert process.stdout is not None, "the pipe was asked for"
        try:
            header = process.stdout.readline()
            if not header.startswith(b"YUV4MPEG2"):
                process.wait()
                complaints.seek(0)
                raise InputError(f"{path}: {last_line(complaints.read().decode(errors='replace'))}")
            yield from _planes(process.stdout, *plane_size(header))
        finally:
            process.kill()


def _planes(pipe: IO[bytes], width: int, height: int) -> Generator[Planes]:
    """Yield the frames of a 4:2:0 y4m stream that stands behind its header."""
    luma_bytes = width * height
    half_h, half_w = (height + 1) // 2, (width + 1) // 2
    chroma_bytes = half_h * half_w
    while pipe.readline():  # "FRAME"
        data = pipe.read(luma_bytes + 2 * chroma_bytes)
        if len(data) < luma_bytes + 2 * chroma_bytes:
            return
        flat = np.frombuffer(data, np.uint8)
        y_hw = flat[:luma_bytes].reshape(height, width)
        cb_hw, cr_hw = flat[luma_bytes:].reshape(2, half_h, half_w)
        yield Planes(y_hw, cb_hw, cr_hw)


def plane_size(header: bytes) -> tuple[int, int]:
    """Return width and height from a y4m header line."""
    fields = {field[:1]: field[1:] for field in header.split()[1:]}
    return int(fields[b"W"]), int(fields[b"H"])


def last_line(text: str) -> str:
    """Return the last line that says something."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "ffmpeg found no picture in it"
