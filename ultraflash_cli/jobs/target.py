"""The place of an output: what can be refused before any work is done."""

import hashlib
import os
import tempfile
from pathlib import Path

from ultraflash_cli.errors import OutputError, UsageError
from ultraflash_cli.jobs.host import free_bytes
from ultraflash_cli.jobs.journal import moved_files

__all__ = [
    "check_folder",
    "check_space",
    "check_target",
    "encoded_bytes",
    "exists_error",
    "stream_target",
    "used_bytes",
]

_BITS_PER_PIXEL = {
    "h264": 0.05,
    "hevc": 0.03,
    "av1": 0.03,
    "vp9": 0.03,
    "prores": 1.5,
    "ffv1": 4.0,
    "png": 5.0,
    "y4m": 4.0,
}
"""A low guess, so that only a hopeless disk is refused; a disk that fills up after all stops the run later."""


def check_target(
    output: Path,
    *,
    source: Path | None = None,
    overwrite: bool,
    skip_existing: bool,
    work: Path | None = None,
) -> bool:
    """Refuse a target that cannot be written; tell whether it exists and is to be skipped.

    What a run that was killed in its very last step has put there is no obstacle to the same command; `work` is the
    folder where such a run leaves word, None where nothing is to be resumed.

    Raises OutputError where the system refuses, UsageError for a folder, a name without extension, the `source`
    itself, and for a file that exists unless one of the two wishes says what to do.
    """
    try:
        check_folder(output)
        if output.is_dir():
            raise UsageError(f"{output} is a folder, expected a file name")
        if not output.suffix:
            hint = f"name a file such as {output.name}.mp4, or a folder that exists"
            raise UsageError(f"{output} has no extension; {hint}")
        if not output.exists():
            return False
        if source is not None and output.samefile(source):
            raise UsageError(f"{output} is the input itself; name another output")
    except OSError as error:
        raise OutputError(f"cannot write {output}: {error.strerror}; choose another place with -o") from error
    if work is not None and output.absolute() in moved_files(work):
        return False
    if not skip_existing and not overwrite:
        raise exists_error(output)
    return skip_existing


def exists_error(output: Path) -> UsageError:
    """Say that an output exists."""
    return UsageError(f"{output} exists; -y replaces it, -n skips it, -o names another file")


def encoded_bytes(codec: str, *, width_px: int, height_px: int, frames: int) -> int:
    """Guess low how large the encoded picture gets."""
    return int(_BITS_PER_PIXEL[codec] * width_px * height_px * frames / 8)


def stream_target(identity: str, temp: Path | None, suffix: str) -> Path:
    """Give the file that stands for stdout while it is made: in `temp`, else where the system keeps such files.

    One `identity` has one file, so that an interrupted run is found again.
    """
    digest = hashlib.sha256(os.fsencode(identity)).hexdigest()[:12]
    return (temp or Path(tempfile.gettempdir())) / f"ultraflash-{digest}{suffix}"


def used_bytes(*folders: Path) -> int:
    """Count the bytes of what an interrupted run has left in its folders."""
    return sum(path.stat().st_size for folder in set(folders) for path in folder.glob("*") if path.is_file())


def check_space(folder: Path, needed_bytes: int) -> None:
    """Raise OutputError where the disk of `folder` has less room than is needed at least."""
    free = free_bytes(folder)
    if free < needed_bytes:
        raise OutputError(
            f"disk full: {folder} has {free / 1e6:.0f} MB free, about {needed_bytes / 1e6:.0f} MB are needed; "
            "free some space or name another place"
        )


def check_folder(output: Path) -> None:
    """Raise OutputError where nothing can be written in the folder of `output`, made or not made yet."""
    for parent in output.parents:
        if parent.exists():
            if not parent.is_dir():
                raise OutputError(f"cannot write {output}: {parent} is a file, expected a folder")
            if not os.access(parent, os.W_OK | os.X_OK):
                raise OutputError(f"cannot write {output}: no permission to write in {parent}")
            return
