"""Run the ffmpeg of imageio-ffmpeg, and read the frames of clips through it."""

import subprocess
from collections.abc import Generator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import IO, NamedTuple

import numpy as np

from ultraflash_cli.errors import InputError, UsageError

__all__ = [
    "RESIZE",
    "Coding",
    "Luma",
    "Planes",
    "View",
    "read_planes",
    "read_rgb",
    "run_ffmpeg",
    "scores_of_pairs",
    "viewed",
]

Luma = np.ndarray[tuple[int, int], np.dtype[np.uint8]]
"""One 8-bit plane of a frame, height by width, in the coded range of the clip."""

RESIZE = "flags=lanczos+accurate_rnd+full_chroma_int"
"""Filter flags for resizing clips."""


class Planes(NamedTuple):
    """One frame as 8-bit 4:2:0 planes, in the coded range of the clip."""

    y_hw: Luma
    cb_hw: Luma
    cr_hw: Luma


class Coding(NamedTuple):
    """The YUV coding of RGB, by the names of ffmpeg's scale filter."""

    matrix: str
    range: str
    """`tv` or `pc`."""


class View(NamedTuple):
    """A clip, and the filters that convert its frames for measuring."""

    path: Path
    filters: str = "null"
    stream: str = "v:0"
    """Stream specifier, in ffmpeg's syntax."""


def viewed(
    path: Path,
    *,
    stream: str = "v:0",
    size_wh: tuple[int, int] | None = None,
    coding: Coding | None = None,
    wanted: Coding | None = None,
    deinterlace: bool = False,
) -> View:
    """Return a view of a clip: deinterlaced, resized by a Lanczos filter, and converted
    to
    the requested coding."""
    filters = ["bwdif=mode=send_frame"] if deinterlace else []
    recoded = coding is not None and wanted is not None and coding != wanted
    if size_wh or recoded:
        width, height = size_wh or ("iw", "ih")
        scale = f"scale={width}:{height}:{RESIZE}"
        if coding is not None and wanted is not None:
            scale += f":in_color_matrix={coding.matrix}:in_range={coding.range}"
            scale += f":out_color_matrix={wanted.matrix}:out_range={wanted.range}"
        filters.append(scale)
    return View(path, ",".join(filters) or "null", stream)


def paired(output: View, reference: View) -> str:
    """Return filters that name the frames of two inputs ``[out]`` and ``[ref]`` and pair them by number."""
    # Numbered timestamps: filters of two inputs pair by time, and containers round time differently.
    count = "format=yuv420p,settb=1/25,setpts=N"
    views = ((0, output, "out"), (1, reference, "ref"))
    return ";".join(f"[{number}:{view.stream}]{view.filters},{count}[{name}]" for number, view, name in views)


def ffmpeg_program() -> str:
    """Return the path of ffmpeg, whose filters and VMAF models depend on its build, so
    that not any one serves. Raises UsageError if its package is not installed."""
    try:
        from imageio_ffmpeg import get_ffmpeg_exe
    except ImportError as error:
        raise UsageError(
            "measuring needs the ffmpeg of the Python package imageio-ffmpeg; run pip install '.[eval]' in the source "
            "folder"
        ) from error
    return get_ffmpeg_exe()


def run_ffmpeg(arguments: Sequence[str], *, what: str, folder: Path | None = None) -> None:
    """Run ffmpeg in ``folder`` until it exits; raises InputError with ``what`` and
    ffmpeg's last message."""
    command = [ffmpeg_program(), "-v", "error", "-nostdin", "-y", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", cwd=folder, check=False)
    if done.returncode:
        raise InputError(f"{what}: {last_line(done.stderr)}")


def scores_of_pairs(output: View, reference: View, measuring: str) -> str:
    """Return the output of a filter with two inputs whose frames are paired by number;
    empty if it writes nothing. ``measuring`` is the filter with its options, ending
    with the name of the output-file option. Raises InputError if a clip cannot be read
    or the sizes differ.
    """
    graph = f"{paired(output, reference)};[out][ref]{measuring}=scores"
    inputs = ["-i", str(output.path.resolve()), "-i", str(reference.path.resolve())]
    with TemporaryDirectory(prefix="scores_") as folder:
        run_ffmpeg(
            [*inputs, "-lavfi", graph, "-fps_mode", "passthrough", "-f", "null", "-"],
            what=f"{output.path} against {reference.path}",
            folder=Path(folder),
        )
        scores = Path(folder) / "scores"
        return scores.read_text() if scores.exists() else ""


def read_rgb(view: View, numbers: Sequence[int], *, coding: Coding) -> list[np.ndarray]:
    """Return the frames with these numbers as 8-bit RGB `[H, W, 3]`; ``coding`` is that
    of the view.

    Raises InputError if the clip cannot be read.
    """
    wanted = "+".join(f"eq(n\\,{number})" for number in numbers)
    to_rgb = f"scale=iw:ih:{RESIZE}:in_color_matrix={coding.matrix}:in_range={coding.range}:out_range=pc,format=gbrp"
    # Select frames after the filter that needs neighbours and before the expensive
    # ones.
    first, _, rest = view.filters.partition(",") if view.filters.startswith("bwdif") else ("null", "", view.filters)
    graph = ",".join([first, f"select='{wanted}'", rest or "null", to_rgb, "format=rgb24"])
    arguments = ["-i", str(view.path.resolve()), "-map", f"0:{view.stream}", "-vf", graph, "-fps_mode", "passthrough"]
    with TemporaryDirectory(prefix="rgb_") as folder:
        run_ffmpeg([*arguments, "%04d.ppm"], what=str(view.path), folder=Path(folder))
        return [_read_ppm(file) for file in sorted(Path(folder).glob("*.ppm"))]


def _read_ppm(path: Path) -> np.ndarray:
    _, size, _, data = path.read_bytes().split(b"\n", 3)
    width, height = map(int, size.split())
    return np.frombuffer(data, np.uint8).reshape(height, width, 3)


def read_planes(view: View) -> Generator[Planes]:
    """Yield the planes of each frame in display order.

    Raises InputError if the file is missing or ffmpeg finds no picture in it.
    """
    path = view.path
    if not path.is_file():
        raise InputError(f"{path}: no such file")

    # yuv4mpegpipe: the stream starts with a header that states the size, so that no
    # probing is needed.
    graph = f"{view.filters},format=yuv420p"
    arguments = ["-i", str(path.resolve()), "-map", f"0:{view.stream}", "-vf", graph, "-fps_mode", "passthrough"]
    command = [ffmpeg_program(), "-v", "error", "-nostdin", *arguments, "-f", "yuv4mpegpipe", "-"]

    # stderr goes to a file, as a pipe that is not drained while reading frames would
    # block ffmpeg.
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
    """Yield the frames of a 4:2:0 y4m stream that follows its header."""
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
    """Return the last non-empty line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "ffmpeg found no video frames"
