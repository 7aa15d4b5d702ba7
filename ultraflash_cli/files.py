"""Files that appear whole and survive a power failure."""

import os
from contextlib import suppress
from pathlib import Path
from typing import IO

__all__ = ["names_folder", "place_file", "sync", "sync_file", "sync_folder", "write_whole"]


def names_folder(name: str | os.PathLike[str]) -> bool:
    """Return whether an output is a folder: an existing one, or one to be created, whose
    name ends in a slash."""
    return os.path.basename(name) == "" or os.path.isdir(name)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file atomically. Raises OSError."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.unlink(missing_ok=True)
    try:
        with part.open("xb") as file:
            file.write(content)
            sync(file)
        part.replace(path)
    except OSError:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def place_file(part: Path, path: Path) -> None:
    """Move a finished file into place, durably. Raises OSError."""
    sync_file(part)
    part.replace(path)
    sync_folder(path.parent)


def sync(file: IO[bytes]) -> None:
    """Wait until everything written to an open file is on disk. Raises OSError."""
    file.flush()
    os.fsync(file.fileno())


def sync_file(path: Path) -> None:
    """Wait until the content of a file is on disk. Raises OSError."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Wait until the entries of a folder are on disk, if the file system supports
    that."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)
