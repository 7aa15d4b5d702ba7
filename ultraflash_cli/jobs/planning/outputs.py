"""Names of outputs."""

import re
from pathlib import Path
from typing import BinaryIO

from ultraflash_cli.errors import UsageError
from ultraflash_cli.jobs.planning.target import is_pictures
from ultraflash_cli.video.sequence import WRITTEN_PICTURES

__all__ = ["asked_suffix", "check_pattern", "example_suffix", "low_name", "made_name", "makes_pictures"]

_NUMBERED = "%05d"
_PLACE = re.compile(r"%(?:0(\d+))?d")


def asked_suffix(output: Path | None, stdout: BinaryIO | None, codec: str, *, photo: bool = False) -> str | None:
    """Return the requested container; None to choose one. Raises UsageError."""
    if stdout is None:
        return output.suffix if output is not None else None
    if codec in WRITTEN_PICTURES.values():
        suffix = next(suffix for suffix, written in WRITTEN_PICTURES.items() if written == codec)
        if photo:
            raise UsageError(f"--codec {codec} makes a file, but stdout is a stream of video; use -o NAME{suffix}")
        raise UsageError(f"--codec {codec} makes many files, but stdout is one stream; use -o DIR/{_NUMBERED}{suffix}")
    return ".y4m" if codec == "y4m" else ".mkv"


def made_name(stem: str, suffix: str, *, single: bool = False) -> Path:
    """Return the default name of an output; images get their own folder, but for a
    `single` one, whose name is no pattern."""
    if suffix not in WRITTEN_PICTURES:
        return Path(f"{stem}{suffix}")
    if not single:
        return Path(stem, f"{_NUMBERED}{suffix}")
    return Path(_PLACE.sub(lambda place: place[0].replace("%", "_"), stem) + suffix)


def example_suffix(codec: str, *, photo: bool = False) -> str:
    """Return what an output name without an extension may lack."""
    wanted = "png" if photo and codec == "auto" else codec
    suffix = next((suffix for suffix, written in WRITTEN_PICTURES.items() if written == wanted), None)
    if suffix is None:
        return ".mp4"
    return suffix if photo else f"/{_NUMBERED}{suffix}"


def makes_pictures(suffix: str | None, codec: str) -> bool:
    """Return whether a requested container, or else `codec`, is that of images."""
    return suffix in WRITTEN_PICTURES if suffix is not None else codec in WRITTEN_PICTURES.values()


def low_name(output: Path) -> Path:
    """Return the name of the smaller output next to a main one."""
    if is_pictures(output):
        return output.parent.with_name(f"{output.parent.name}_480p") / output.name
    return output.with_stem(f"{output.stem}_480p")


def check_pattern(output: Path, *, single: bool = False, two_fields: bool = False) -> None:
    """Raise UsageError for image names without exactly one number; a `single` image
    needs none, unless it becomes `two_fields`."""
    pictures = f"{_NUMBERED}{output.suffix}"
    places = len(_PLACE.findall(output.name)) if is_pictures(output) else 1
    if places > 1:
        raise UsageError(f"{output} has {places} placeholders for a number, expected one, such as {pictures}")
    if not places and two_fields:
        raise UsageError(
            f"{output} is a single image, but --deinterlace field makes two of a photo; use --deinterlace frame, or "
            f"{output.with_suffix('')}/{pictures}"
        )
    if not places and not single:
        raise UsageError(
            f"{output} is a single image, but a clip has many frames; use {output.with_suffix('')}/{pictures}"
        )
