"""The input of an upscale: a file, numbered images or a pipe; checked, named and identified."""

import hashlib
import math
import os
import re
from dataclasses import replace
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from ultraflash_cli.errors import InputError
from ultraflash_cli.jobs.resume.fingerprint import file_facts, pictures_digest

if TYPE_CHECKING:
    from ultraflash_cli.video.pipe import Pipe
    from ultraflash_cli.video.probe import ClipInfo
    from ultraflash_cli.video.source import Source

__all__ = [
    "as_typed",
    "check_unchanged",
    "file_head",
    "find_input",
    "first_number",
    "input_bytes",
    "input_facts",
    "input_identity",
    "is_address",
    "is_photo",
    "made_place",
    "may_be_photo",
    "missing",
    "with_what_can_be_copied",
]

_HEAD_BYTES = 1 << 20
_MAGIC_BYTES = 12
_PLAYLISTS = frozenset({".m3u", ".m3u8", ".mpd", ".pls"})


def find_input(path: Path, pipe: "Pipe | None", *, images: bool, rate: Fraction | None) -> "Source":
    """Return the input to read: `pipe` if there is one, or the file that keeps all of
    it, else the input at `path`. With `images`, a folder is an image sequence at `rate`
    frames per second. Raises InputError.
    """
    from ultraflash_cli.video.sequence import SEQUENCE_RATE, find_sequence, is_pattern

    if pipe is not None:
        return pipe.whole_file or pipe
    try:
        if is_pattern(path) or (images and path.is_dir()):
            return find_sequence(path, rate=Fraction(rate) if rate is not None else SEQUENCE_RATE)
        if path.is_dir():
            raise InputError(f"{path} is a folder, expected a video file")
        if not path.exists():
            raise InputError(f"{as_typed(path)}: {missing(path)}")
        if not path.is_file():
            raise InputError(f"{path} is a pipe or a device, expected a file; use - to read from a pipe")
        if path.suffix.lower() in _PLAYLISTS:
            raise InputError(f"{path} is a playlist, expected a video; download and join its entries first")
        if path.stat().st_size == 0:
            raise InputError(f"{path} is empty (0 bytes); copy it again from its source")
        with path.open("rb"):
            pass
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; check the path and its permissions") from error
    return path


def is_address(path: Path) -> bool:
    """Return whether a name is a URL, such as `https://...`, rather than a file
    name."""
    return re.match(r"[a-z][a-z0-9+.-]+:/", str(path), re.IGNORECASE) is not None and not os.path.lexists(path)


def may_be_photo(source: "Source") -> bool:
    """Return whether a file is called like a single picture."""
    from ultraflash_cli.video.sequence import PICTURE_SUFFIXES

    return isinstance(source, Path) and source.suffix.lower() in PICTURE_SUFFIXES


def is_photo(info: "ClipInfo") -> bool:
    """Return whether a file is a single picture, whatever its name; animations have names
    like those of pictures, too, and so have several pictures written one after the
    other."""
    from ultraflash_cli.video.piped_photo import is_lone_picture

    if not isinstance(info.source, Path):
        return False
    if may_be_photo(info.source) and (info.container == "image2" or info.frame_count_estimate == 1):
        return True
    if info.frame_count_estimate == 1:
        with info.source.open("rb") as file:
            if is_lone_picture(file.read(_MAGIC_BYTES)):
                return True
    # A packet of GIF may hold several pictures, which are counted when it is opened.
    is_still = info.container == "gif" and info.frame_count_estimate == 1
    return (is_still or info.container.endswith("_pipe")) and _pictures_up_to(2, info) == 1


def _pictures_up_to(most: int, info: "ClipInfo") -> int:
    """Count the pictures of a file, but no further than `most`."""
    from ultraflash_cli.video.source import open_input

    with open_input(info.source) as container:
        packets = (packet for packet in container.demux(video=0) if packet.size)
        return sum(1 for _ in islice(packets, most))


def as_typed(path: Path) -> str:
    """Return a name as it was typed: of an address, `Path` takes one of the two slashes away."""
    return str(path).replace(":/", "://", 1) if is_address(path) else str(path)


def missing(path: Path, *, meant_as_output: bool = False) -> str:
    """Return the message that an input does not exist, and what to do."""
    if is_address(path):
        return "URLs are not supported; download the clip first, or pipe it to -"
    return f"no such file; {f'to write it, use -o {path}' if meant_as_output else 'check the path'}"


def input_identity(source: "Source") -> str:
    """Return a unique name for the input; for a pipe it is derived from the process."""
    from ultraflash_cli.video.pipe import Pipe
    from ultraflash_cli.video.source import source_path

    return f"stdin {os.getpid()}" if isinstance(source, Pipe) else str(source_path(source).absolute())


def made_place(source: "Source") -> tuple[Path, str]:
    """Return the folder and the stem for the default output name."""
    from ultraflash_cli.video.sequence import ImageSequence
    from ultraflash_cli.video.source import source_path

    if isinstance(source, ImageSequence):
        folder = source.folder.absolute()
        return source.folder.parent, source.prefix.rstrip("_-. ") or folder.name or "pictures"
    path = source_path(source)
    return path.parent, "stdin" if path.name == "-" else path.stem


def input_bytes(source: "Source") -> int:
    """Return the size of a file; 0 for images and pipes."""
    return source.stat().st_size if isinstance(source, Path) else 0


def input_facts(source: "Source") -> dict[str, object]:
    """Return facts that identify the input, for a fingerprint."""
    from ultraflash_cli.video.sequence import ImageSequence

    if isinstance(source, Path):
        return file_facts("the input", source)
    if not isinstance(source, ImageSequence):
        return {"the start of the input": source.head_digest()}
    return {"the pictures": pictures_digest(source.pictures()), "the frame rate of the images": str(source.rate)}


def first_number(source: "Source", start_s: Fraction) -> int:
    """Return the number of the first image at `start_s`; 1 for other inputs."""
    from ultraflash_cli.video.sequence import ImageSequence

    if not isinstance(source, ImageSequence):
        return 1
    return source.first + max(0, math.ceil(start_s * source.rate))


def file_head(source: "Source") -> tuple[int, str]:
    """Return the size and first bytes of a file, to detect later whether it was
    replaced."""
    if not isinstance(source, Path):
        return 0, ""
    with source.open("rb") as file:
        return source.stat().st_size, hashlib.sha256(file.read(_HEAD_BYTES)).hexdigest()


def check_unchanged(source: "Source", head: tuple[int, str], *, frames: int) -> None:
    """Raise InputError if a file that was read is missing or was replaced; it may have
    grown."""
    kept = f"all {frames} frames are finished and kept" if frames else "nothing had been read yet"
    try:
        now = file_head(source)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise InputError(
            f"{source}: {reason}; deleted or moved during the run, {kept}; restore it and run the same command"
        ) from error
    if now[1] != head[1] or now[0] < head[0]:
        raise InputError(
            f"{source} was replaced during the run, {kept}; restore the earlier file and run the same "
            "command to finish it; with the new file the run starts over"
        )


def with_what_can_be_copied(info: "ClipInfo", *, spooled: bool) -> "tuple[ClipInfo, tuple[str, ...]]":
    """Remove the streams of a pipe from `info` unless it is `spooled`, as copying them
    needs a second reading. Returns warnings, too.
    """
    from ultraflash_cli.video.pipe import Pipe

    if not isinstance(info.source, Pipe) or spooled:
        return info, ()
    others = [stream.describe() for stream in info.streams if stream.index != info.video_index]
    if not others:
        return info, ()
    only = tuple(stream for stream in info.streams if stream.index == info.video_index)
    message = f"left out: {', '.join(others)}: stdin can only be read once; --temp-dir DIR keeps a copy"
    return replace(info, streams=only, chapters=0), (message,)
