"""Find the clips of a command's inputs: files, globs, folders."""

import glob
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ultraflash_cli.errors import InputError
from ultraflash_cli.jobs.planning.inputs import as_typed, is_address, missing
from ultraflash_cli.video.sequence import PICTURE_SUFFIXES, WRITTEN_PICTURES

__all__ = ["VIDEO_SUFFIXES", "FoundClip", "find_clips", "is_several", "missing_inputs", "names_a_file"]

VIDEO_SUFFIXES = frozenset(
    {
        ".3g2",
        ".3gp",
        ".asf",
        ".avi",
        ".dv",
        ".f4v",
        ".flv",
        ".gif",
        ".m2ts",
        ".m2v",
        ".m4v",
        ".mkv",
        ".mov",
        ".mp4",
        ".mpeg",
        ".mpg",
        ".mts",
        ".mxf",
        ".nut",
        ".ogv",
        ".ts",
        ".vob",
        ".webm",
        ".wmv",
        ".y4m",
    }
)
"""Extensions of videos in folders; files named explicitly are always tried."""

_RESULT = re.compile(r"_(\d+(k|p|(\.\d+)?x)|\d+x\d+)(_part|_preview)?(_side_by_side)?$")
_NAMED = 3
"""Maximum number of skipped files that a message names."""


@dataclass(frozen=True, kw_only=True)
class FoundClip:
    """An input clip, and its relative path below the named folder."""

    source: Path
    below: Path = Path()
    failure: InputError | None = None
    """The error if this is a subfolder that cannot be searched for lack of
    permission."""


def is_several(inputs: Sequence[Path], *, images: bool) -> bool:
    """Return whether the inputs make a batch, whatever the number of clips."""
    # os.path instead of Path: an unreadable path must not raise here; it is rejected
    # with a message later.
    return len(inputs) > 1 or _is_glob(inputs[0]) or (os.path.isdir(inputs[0]) and not images)


def names_a_file(output: Path) -> bool:
    """Return whether an output for several clips looks like a file name and is not a
    folder."""
    return not os.path.isdir(output) and output.suffix.lower() in (*VIDEO_SUFFIXES, *WRITTEN_PICTURES)


def missing_inputs(inputs: Sequence[Path], *, asks_output: bool) -> list[InputError]:
    """Return an error for each input that does not exist; `asks_output` means that no
    `-o` was given."""
    found: list[InputError] = []
    for path in inputs:
        if "%" in path.name or path == Path("-") or _is_glob(path):
            continue
        try:
            os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            meant = asks_output and path is inputs[-1] and path.suffix.lower() in VIDEO_SUFFIXES
            error = InputError(f"{as_typed(path)}: {missing(path, meant_as_output=meant)}")
            error.source = str(path)
            found.append(error)
        except OSError:
            continue  # rejected with a message when its turn comes
    return found


def find_clips(
    inputs: Sequence[Path],
    *,
    images: bool = False,
    recursive: bool = False,
    outputs: Path | None = None,
    warn: Callable[[Path, str], None] = lambda path, message: None,
) -> list[FoundClip]:
    """Expand globs, and replace folders by the videos in them, sorted by name. With
    `images` a folder is one clip. With `recursive`, videos in subfolders are included,
    except those in `outputs`, the destination of the results. Hidden files are ignored.
    A warning reports everything else that is skipped: photos, results of `upscale` for another
    file in the folder (`in_1k.mp4` next to `in.mp4`), symlinks to folders, and
    unreadable folders; the latter come last, with their errors. Raises InputError for a
    folder without videos and a glob without matches.
    """
    clips: list[FoundClip] = []
    failed: list[FoundClip] = []
    several = len(inputs) > 1
    for path in _expanded(inputs):
        if images or not os.path.isdir(path):
            clips.append(FoundClip(source=path))
            continue
        if several and outputs is not None and os.path.realpath(path) == os.path.realpath(outputs):
            warn(path, f"{path} is the output folder; it is not used as an input")
            continue
        search = _Search(path, recursive=recursive, outputs=outputs, warn=warn)
        found = search.clips()
        if found and search.passed_over:
            names = _some([path.name for path in search.passed_over])
            warn(path, f"{path}: photos in a folder are skipped: {names}; name them to upscale them")
        if not found and not search.failed:
            hint = "" if recursive else ", or use --recursive for subfolders"
            if search.pictures:
                hint += f"; to upscale the images in it as one clip ({search.pictures}, ...), use --images"
            elif search.photos:
                hint += f"; to upscale the photos in it, name them ({path / search.photos}, ...)"
            raise InputError(f"{path} is a folder without video files; name a file or another folder{hint}")
        clips += found
        failed += search.failed
    return clips + failed


class _Search:
    """The videos in a folder."""

    def __init__(self, top: Path, *, recursive: bool, outputs: Path | None, warn: Callable[[Path, str], None]) -> None:
        self._top = top
        self._recursive = recursive
        self._outputs = os.path.realpath(outputs) if outputs is not None else None
        self._warn = partial(warn, top)
        self.failed: list[FoundClip] = []
        self.pictures = ""
        """The name of the first numbered image in the folder itself, where there is one."""
        self.photos = ""
        """The name of the first other image there."""
        self.passed_over: list[Path] = []
        """Images next to videos; those named after a video, such as its poster and its
        frames, are not among them."""

    def clips(self) -> list[FoundClip]:
        """Return the videos. Raises InputError if the folder itself is not readable."""
        found: list[FoundClip] = []
        folders = [self._top]
        while folders:
            folder = folders.pop()
            try:
                videos, inner = self._look(folder)
            except OSError as error:
                failure = InputError(f"{folder}: {error.strerror}; check the folder and its permissions")
                if folder == self._top:
                    raise failure from error
                self._warn(f"{folder}: {error.strerror}; skipping the folder")
                self.failed.append(FoundClip(source=folder, failure=failure))
                continue
            found += [FoundClip(source=child, below=folder.relative_to(self._top)) for child in videos]
            folders += reversed(inner)
        return found

    def _look(self, folder: Path) -> tuple[list[Path], list[Path]]:
        """Return the videos and subfolders of a folder. Raises OSError if it is not
        readable."""
        videos: list[Path] = []
        images: list[Path] = []
        inner: list[Path] = []
        links: list[str] = []
        for name in sorted(os.listdir(folder)):
            child = folder / name
            if name.startswith("."):
                continue

            is_video = child.suffix.lower() in VIDEO_SUFFIXES
            is_numbered = child.stem[-1:].isdecimal() and child.suffix.lower() in PICTURE_SUFFIXES
            if is_numbered and folder == self._top:
                self.pictures = self.pictures or name
            elif child.suffix.lower() in PICTURE_SUFFIXES and folder == self._top:
                self.photos = self.photos or name
            if child.suffix.lower() in PICTURE_SUFFIXES:
                images.append(child)
            if not is_video and not self._recursive:
                continue

            try:
                mode = os.stat(child).st_mode
            except PermissionError:
                raise
            except OSError:
                if is_video:
                    self._warn(f"{child} skipped: it cannot be read or is a broken link")
                continue

            if stat.S_ISDIR(mode):
                if os.path.islink(child):
                    links.append(name)
                elif os.path.realpath(child) != self._outputs:
                    inner.append(child)
            elif is_video and stat.S_ISREG(mode):
                videos.append(child)
        if links and self._recursive:
            self._warn(f"{folder}: links to folders are not followed: {_some(links)}; give a folder to include it")
        stems = tuple(child.stem for child in videos)
        self.passed_over += [child for child in images if not child.stem.startswith(stems)]
        return self._without_results(folder, videos), inner if self._recursive else []

    def _without_results(self, folder: Path, videos: list[Path]) -> list[Path]:
        stems = {child.stem for child in videos}
        results = [child for child in videos if _RESULT.sub("", child.stem) in stems - {child.stem}]
        if results:
            names = _some([child.name for child in results])
            self._warn(f"{folder}: skipped as results of earlier runs: {names}; give a file to upscale it anyway")
        return [child for child in videos if child not in set(results)]


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _is_glob(path: Path) -> bool:
    return glob.has_magic(str(path)) and not os.path.lexists(path) and not is_address(path)


def _expanded(inputs: Iterable[Path]) -> Iterator[Path]:
    for path in inputs:
        if not _is_glob(path):
            yield path
            continue
        found = sorted(glob.glob(str(path), recursive=True))
        if not found:
            raise InputError(f"no files match '{path}'; check the folder and the pattern")
        yield from map(Path, found)
