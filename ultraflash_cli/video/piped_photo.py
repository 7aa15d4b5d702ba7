"""A photo that comes through a pipe: recognised, and kept in a file, as it is read more
than once."""

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from itertools import islice
from pathlib import Path

from av.error import FFmpegError

from ultraflash_cli.errors import InputError
from ultraflash_cli.video.jpeg import JPEG_HEAD
from ultraflash_cli.video.pipe import Pipe
from ultraflash_cli.video.source import open_input
from ultraflash_cli.video.tiff import TIFF_HEADS

__all__ = ["is_lone_picture", "kept_photo"]

_STREAMED = (
    *(JPEG_HEAD, b"\x89PNG", b"GIF8", b"BM", b"DPX", b"SDPX", b"XPDS", b"qoif", b"\x76\x2f\x31\x01"),
    *(b"\xff\x0a", b"\xff\x4f\xff\x51", b"P1", b"P2", b"P3", b"P4", b"P5", b"P6", b"P7"),
)
"""First bytes of formats whose pictures can be concatenated, as by ``ffmpeg -f
image2pipe``."""
_BRANDS = (b"avif", b"heic", b"heix", b"mif1")
_BOXES = (b"JXL ", b"jP  ")
_HEAD_BYTES = 12
_PNG = b"\x89PNG"
_PNG_HEAD_BYTES = 1 << 16


@contextmanager
def kept_photo(pipe: Pipe, new_folder: Callable[[], AbstractContextManager[Path]]) -> Generator[None]:
    """Keep what comes through ``pipe`` in a file in a new folder for the duration of
    the block, if it is one picture, or an animated PNG, which libavformat reads only
    from files; ``pipe.whole_file`` is that file. Raises ``InputError``,
    ``OutputError``."""
    if not (_is_animated_png(pipe) or _is_picture(pipe)):
        yield
        return
    with new_folder() as kept:
        # Messages name the file as the pipe.
        pipe.spool_to(kept / pipe.name)
        pipe.read_to_end()
        yield


def is_lone_picture(head: bytes) -> bool:
    """Return whether ``head`` begins a picture in a format that is never concatenated:
    TIFF, AVIF, HEIC, JPEG XL or JPEG 2000."""
    return head[:4] in TIFF_HEADS or head[4:8] in _BOXES or (head[4:8] == b"ftyp" and head[8:12] in _BRANDS)


def _is_animated_png(pipe: Pipe) -> bool:
    if pipe.head(_HEAD_BYTES)[:4] != _PNG:
        return False
    before_pixels, _, _ = pipe.head(_PNG_HEAD_BYTES).partition(b"IDAT")
    return b"acTL" in before_pixels


def _is_picture(pipe: Pipe) -> bool:
    head = pipe.head(_HEAD_BYTES)
    if is_lone_picture(head):
        return True
    if not head.startswith(_STREAMED) and not (head[:4] == b"RIFF" and head[8:12] == b"WEBP"):
        return False
    try:
        with open_input(pipe) as container:
            packets = (packet for packet in container.demux(video=0) if packet.size)
            return sum(1 for _ in islice(packets, 2)) == 1
    except (InputError, FFmpegError):
        return False  # the message comes later
