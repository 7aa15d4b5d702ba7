"""Numbered images in a folder as the frames of a clip."""

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from struct import unpack

from ultraflash_cli.errors import InputError

__all__ = [
    "PICTURE_SUFFIXES",
    "SEQUENCE_RATE",
    "WRITTEN_PICTURES",
    "ImageSequence",
    "existing_pictures",
    "find_sequence",
    "is_pattern",
    "numbered",
    "wrong_size",
]

SEQUENCE_RATE = Fraction(24)
"""Default frames per second of image sequences."""

PICTURE_SUFFIXES = frozenset(
    f".{name}"
    for name in (
        *("avif", "bmp", "dpx", "exr", "heic", "heif", "jp2", "jpe", "jpeg", "jpg", "jxl", "pam", "pbm", "pcx", "pgm"),
        *("png", "ppm", "qoi", "sgi", "tga", "tif", "tiff", "webp"),
    )
)
"""Extensions of images in a folder; other files are ignored."""

WRITTEN_PICTURES = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg"}
"""Codec of the images that are written, by suffix."""

_PLACE = re.compile(r"%(?:0(\d+))?d")
_NUMBER = re.compile(r"^(.*?)(\d+)$")
_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True, kw_only=True)
class ImageSequence:
    """Images whose names differ in one number that increases without gaps."""

    folder: Path
    prefix: str
    digits: int
    """Number of digits to which numbers are zero-padded; 1 for no padding."""
    suffix: str
    first: int
    count: int
    rate: Fraction = SEQUENCE_RATE
    """Frames per second."""

    @property
    def path(self) -> Path:
        """The pattern as users write it: ``folder/%05d.png``."""
        return self.folder / f"{self.prefix}{self._place}{self.suffix}"

    @property
    def pattern(self) -> str:
        """The pattern for libavformat, with all other percent signs doubled."""
        folder = str(self.folder).replace("%", "%%")
        return f"{folder}/{self.prefix.replace('%', '%%')}{self._place}{self.suffix.replace('%', '%%')}"

    def picture(self, number: int) -> Path:
        """Return the file of the frame ``number``, counted from 0."""
        return self.folder / f"{self.prefix}{self.first + number:0{self.digits}d}{self.suffix}"

    def pictures(self) -> tuple[Path, ...]:
        """Return all files, in order."""
        return tuple(self.picture(number) for number in range(self.count))

    def check_sizes(self) -> None:
        """Read the headers of PNG files; raises ``InputError`` if two differ in size.
        Other formats are checked when decoded."""
        known: tuple[int, int] | None = None
        for path in self.pictures():
            size = _png_size(path)
            if size is not None and known is not None and size != known:
                raise wrong_size(path, size, known)
            known = known or size

    @property
    def _place(self) -> str:
        return "%d" if self.digits == 1 else f"%0{self.digits}d"


def wrong_size(path: Path, size: tuple[int, int], known: tuple[int, int]) -> InputError:
    """Return the error for a picture whose size differs from the previous ones; sizes
    are (width, height)."""
    return InputError(
        f"{path}: {size[0]}x{size[1]} pixels, but the images before it are {known[0]}x{known[1]}; "
        "all images of a sequence must have the same size"
    )


def is_pattern(path: Path) -> bool:
    """Return whether ``path`` is a pattern for many files: its name contains ``%d`` or
    ``%05d``, and no file has that exact name."""
    return _PLACE.search(path.name) is not None and not path.exists()


def numbered(pattern: Path, number: int) -> Path:
    """Return the file for ``number`` of a pattern such as ``folder/%05d.png``."""
    return pattern.with_name(_PLACE.sub(lambda place: f"{number:0{int(place[1] or 1)}d}", pattern.name, count=1))


def existing_pictures(pattern: Path) -> dict[int, Path]:
    """Return all files that match a pattern, in numerical order; none if the folder is
    missing. A name without a placeholder is that of a single image, number 1. Dangling
    symlinks are included. Raises ``OSError``.
    """
    if _PLACE.search(pattern.name) is None:
        return {1: pattern} if os.path.lexists(pattern) else {}
    sequence = _sequence_of(pattern)
    try:
        names = os.listdir(sequence.folder)
    except FileNotFoundError:
        return {}
    return {number: sequence.folder / name for number, name in sorted(_fitting(sequence, names))}


def find_sequence(path: Path, *, rate: Fraction = SEQUENCE_RATE) -> ImageSequence:
    """Find the images in a folder, or those matching a pattern such as
    ``folder/%05d.png``. Raises ``InputError`` if there are none, if a number is
    missing, or if a folder contains more than one sequence. Other files and hidden ones
    are ignored.
    """
    if path.is_dir():
        sequence, numbers = _in_folder(path)
    else:
        sequence, numbers = _of_pattern(path)
    ordered = sorted(numbers)
    first, last = ordered[0], ordered[-1]
    if last - first + 1 != len(ordered):
        missing = next(number for number in range(first, last) if number not in numbers)
        lost = last - first + 1 - len(ordered)
        name = replace(sequence, first=missing).picture(0).name
        raise InputError(
            f"{path}: {name} is missing ({lost} of {last - first + 1} images); a sequence must not have gaps"
        )
    return replace(sequence, first=first, count=len(ordered), rate=rate)


def _of_pattern(path: Path) -> tuple[ImageSequence, set[int]]:
    sequence = _sequence_of(path)
    numbers = {number for number, _ in _fitting(sequence, _names(path.parent))}
    if not numbers:
        raise InputError(f"{path}: no file matches this pattern")
    return sequence, numbers


def _sequence_of(path: Path) -> ImageSequence:
    place = _PLACE.search(path.name)
    if place is None or _PLACE.search(path.name, place.end()):
        raise InputError(f"{path}: expected one number in the name of an image sequence, such as %05d")
    digits = max(1, int(place[1] or 1))
    sequence = ImageSequence(
        folder=path.parent,
        prefix=path.name[: place.start()],
        digits=digits,
        suffix=path.name[place.end() :],
        first=0,
        count=0,
    )
    return sequence


def _fitting(sequence: ImageSequence, names: Iterable[str]) -> Iterator[tuple[int, str]]:
    """Return number and name of the files that match the pattern of a sequence."""
    prefix, suffix = sequence.prefix, sequence.suffix
    for name in names:
        middle = name[len(prefix) : len(name) - len(suffix)]
        fits = name.startswith(prefix) and name.endswith(suffix) and re.fullmatch("[0-9]+", middle)
        if fits and f"{int(middle):0{sequence.digits}d}" == middle:
            yield int(middle), name


def _in_folder(folder: Path) -> tuple[ImageSequence, set[int]]:
    series: dict[tuple[str, str], list[str]] = {}
    for name in _names(folder):
        path = Path(name)
        if path.suffix.lower() not in PICTURE_SUFFIXES or name.startswith("."):
            continue
        parts = _NUMBER.match(path.stem)
        if parts is None:
            raise InputError(f"{folder}: {name} does not end in a number, so its position in the sequence is unknown")
        series.setdefault((parts[1], path.suffix), []).append(parts[2])

    if not series:
        raise InputError(f"{folder}: no numbered images found")
    if len(series) > 1:
        names = [f"{prefix}{numbers[0]}{suffix}" for (prefix, suffix), numbers in sorted(series.items())]
        raise InputError(f"{folder}: several image sequences ({', '.join(names[:3])}); select one with a pattern")

    ((prefix, suffix), texts) = next(iter(series.items()))
    digits = min(len(text) for text in texts)
    if digits > 1 and not any(text.startswith("0") for text in texts):
        digits = 1 if len({len(text) for text in texts}) > 1 else digits
    odd = [text for text in texts if f"{int(text):0{digits}d}" != text]
    if odd:
        raise InputError(f"{folder}: {prefix}{odd[0]}{suffix} is numbered differently from the other images")

    sequence = ImageSequence(folder=folder, prefix=prefix, digits=digits, suffix=suffix, first=0, count=0)
    return sequence, {int(text) for text in texts}


def _names(folder: Path) -> Iterable[str]:
    try:
        return sorted(path.name for path in folder.iterdir() if path.is_file())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"{folder}: no such folder") from error
    except OSError as error:
        raise InputError(f"{folder} cannot be listed ({(error.strerror or str(error)).lower()})") from error


def _png_size(path: Path) -> tuple[int, int] | None:
    try:
        with open(path, "rb") as file:
            head = file.read(24)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({(error.strerror or str(error)).lower()})") from error
    if len(head) < 24 or not head.startswith(_PNG):
        return None
    width, height = unpack(">II", head[16:24])
    return width, height
