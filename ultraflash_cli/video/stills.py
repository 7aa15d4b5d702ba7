"""PNG and JPEG files: a single image, or all frames of a clip, numbered."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.error import FFmpegError
from av.video.reformatter import ColorRange, Colorspace

from ultraflash_cli.errors import OutputCheckError, OutputError
from ultraflash_cli.files import sync_file, sync_folder
from ultraflash_cli.video.color import Picture, as_frame
from ultraflash_cli.video.encode import EncodeSpec
from ultraflash_cli.video.made_tag import with_made_chunk
from ultraflash_cli.video.partial import output_errors, partial_file
from ultraflash_cli.video.photos import with_photo_data
from ultraflash_cli.video.segment import open_segment
from ultraflash_cli.video.segment_file import SegmentFile
from ultraflash_cli.video.sequence import numbered

__all__ = ["check_pictures", "move_pictures", "webp_bytes", "write_pictures", "write_png"]


def write_png(path: Path, rgb_hwc: Picture) -> None:
    """Write a picture ``[height, width, 3]``, uint8 or uint16, as PNG; the file appears whole."""
    deep = rgb_hwc.dtype == np.uint16
    encoder = av.CodecContext.create("png", "w")
    assert isinstance(encoder, av.VideoCodecContext), "png is a video encoder"
    encoder.height, encoder.width = rgb_hwc.shape[:2]
    encoder.pix_fmt = "rgb48be" if deep else "rgb24"
    encoder.time_base = Fraction(1, 25)
    frame = as_frame(rgb_hwc, "rgb48le" if deep else "rgb24")
    data = b"".join(bytes(packet) for packet in encoder.encode(frame) + encoder.encode(None))
    with partial_file(path) as part, output_errors(path):
        part.write_bytes(data)


def webp_bytes(rgb_hwc: Picture, *, quality: int) -> bytes:
    """Return an 8-bit picture ``[height, width, 3]`` as WebP."""
    encoder = av.CodecContext.create("libwebp", "w")
    assert isinstance(encoder, av.VideoCodecContext), "webp is a video encoder"
    encoder.height, encoder.width = rgb_hwc.shape[:2]
    encoder.pix_fmt, encoder.time_base = "yuv420p", Fraction(1, 25)
    encoder.options = {"quality": str(quality)}
    frame = as_frame(rgb_hwc, "rgb24").reformat(
        format="yuv420p", dst_colorspace=Colorspace.ITU601, dst_color_range=ColorRange.MPEG
    )
    return b"".join(bytes(packet) for packet in encoder.encode(frame) + encoder.encode(None))


def write_pictures(
    segments: Sequence[SegmentFile],
    pattern: Path,
    *,
    first: int = 1,
    made: str | None = None,
    photo: Callable[[int], Mapping[str, bytes]] | None = None,
) -> int:
    """Write every frame of finished PNG or JPEG segments to its own file and return the frame count.

    Creates the private folder of ``pattern``; ``move_pictures`` moves the files into place. ``made`` is the tag written
    to each picture; ``photo`` returns what the input of a frame, counted from 0, carries
    beside its pixels. Raises ``OutputError``.
    """
    with output_errors(pattern.parent):
        pattern.parent.mkdir(parents=True, exist_ok=True)
    number = first
    for segment in segments:
        count = 0
        for data in _packets(segment.path):
            picture = numbered(pattern, number)
            if photo is not None:
                data = with_photo_data(data, photo(number - first))
            with output_errors(picture):
                picture.write_bytes(with_made_chunk(data, made))
                sync_file(picture)
            count, number = count + 1, number + 1
        if count != segment.frames:
            raise OutputError(f"{segment.path}: this segment is damaged; start over with --no-resume")
    with output_errors(pattern.parent):
        sync_folder(pattern.parent)
    return number - first


def check_pictures(pattern: Path, *, frames: int, spec: EncodeSpec, first: int = 1) -> None:
    """Check that all pictures exist and that the first and the last can be decoded at
    the spec's size.

    Raises ``OutputCheckError``.
    """
    for number in range(first, first + frames):
        path = numbered(pattern, number)
        if not path.is_file() or not path.stat().st_size:
            raise OutputCheckError(f"{path}: this image is missing")
    for number in {first, first + frames - 1}:
        path = numbered(pattern, number)
        try:
            with av.open(f"file:{path}") as container:
                frame = next(container.decode(video=0))
        except (OSError, FFmpegError, StopIteration) as error:
            raise OutputCheckError(f"{path}: the finished image cannot be read back ({error})") from error
        if (frame.width, frame.height) != spec.coded_size_px:
            size = "{}x{}".format(*spec.coded_size_px)
            raise OutputCheckError(f"{path}: the image is {frame.width}x{frame.height}, expected {size}")


def move_pictures(made: Path, target: Path, *, frames: int, first: int = 1) -> None:
    """Move the pictures of the pattern ``made`` to the pattern ``target`` in order, all
    or none. Files of the same name are replaced. Raises ``OutputError`` after removing
    the pictures moved so far.
    """
    moved: list[Path] = []
    try:
        with output_errors(target.parent):
            target.parent.mkdir(parents=True, exist_ok=True)
            for number in range(first, first + frames):
                path = numbered(target, number)
                os.replace(numbered(made, number), path)
                moved.append(path)
            sync_folder(target.parent)
    except BaseException:
        for path in moved:
            path.unlink(missing_ok=True)
        raise


def _packets(path: Path) -> Iterator[bytes]:
    with output_errors(path), open_segment(path) as container:
        for packet in container.demux(container.streams.video[0]):
            if packet.size:
                yield bytes(packet)
