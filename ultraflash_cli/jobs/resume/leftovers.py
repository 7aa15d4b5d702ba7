"""Leftovers of interrupted runs."""

import os
import secrets
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ultraflash_cli.errors import InputError, OutputError
from ultraflash_cli.jobs.resume.entries import count_frames
from ultraflash_cli.jobs.resume.journal import discard
from ultraflash_cli.jobs.resume.owned_files import check_ours, size_bytes
from ultraflash_cli.jobs.resume.work_folder import (
    OutputLock,
    is_work_folder,
    leave_private_folder,
    looks_like_work,
    private_folder,
    work_folder,
)

__all__ = ["Leftover", "find_leftovers", "folder_of_copy", "remove", "usual_places"]


@dataclass(frozen=True, kw_only=True)
class Leftover:
    """The work folder of a run that did not finish."""

    folder: Path
    size_bytes: int
    frames: int
    """Number of frames after which the same command would resume."""
    in_use: bool
    """Whether a run is using it."""
    refusal: str | None = None
    """Reason to skip it: a symlink, a file or another user's folder; None for a folder
    of ours."""


@contextmanager
def folder_of_copy(temp: Path | None) -> Generator[Path]:
    """Yield a new folder for the copy of a pipe, in `temp` or in this user's private
    folder. It is removed at the end; that of a process that was killed is a leftover.
    Raises OutputError.
    """
    place = temp if temp is not None and temp.is_dir() else private_folder()
    work = work_folder(place / f"stdin-{secrets.token_hex(4)}")
    try:
        with OutputLock(work):
            copies = work / "made-0"
            try:
                copies.mkdir(mode=0o700)
            except OSError as error:
                raise OutputError(f"{place}: {error.strerror}; choose a folder for a copy with --temp-dir") from error
            try:
                yield copies
            finally:
                discard(work)
    finally:
        leave_private_folder(place)


def usual_places() -> list[Path]:
    """Return where leftovers are searched by default: the current folder, and the
    private one of this user, for streams, if there is one."""
    private = private_folder()
    try:
        check_ours(private)
    except OutputError:
        return [Path()]
    return [Path(), private] if private.is_dir() and not private.samefile(Path()) else [Path()]


def find_leftovers(folders: Iterable[Path], *, recursive: bool) -> list[Leftover]:
    """Find work folders in `folders`, without following symlinks; raises InputError if
    one is not a folder."""
    found: list[Leftover] = []
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder; give the folder of the outputs")
        for child in _children(folder, recursive=recursive):
            try:
                check_ours(child)
            except OutputError as error:
                found.append(Leftover(folder=child, size_bytes=0, frames=0, in_use=False, refusal=str(error)))
            else:
                found += [_describe(child)] if is_work_folder(child) else []
    return found


def _children(folder: Path, *, recursive: bool) -> list[Path]:
    """List everything named like a work folder in `folder` and, if `recursive`, its
    subfolders, except inside work folders."""
    found: list[Path] = []
    for base, names, files in os.walk(folder):
        found += [Path(base, name) for name in sorted([*names, *files]) if looks_like_work(name)]
        names[:] = sorted(name for name in names if recursive and not looks_like_work(name))
    return found


def remove(leftover: Leftover) -> bool:
    """Remove a leftover unless a run is using it; returns whether it is gone.

    Only files created by the program are deleted; a folder with other files is kept.
    Raises OutputError.
    """
    if leftover.refusal is not None:
        return False
    try:
        lock = OutputLock(leftover.folder)
    except OutputError:
        return False
    with lock:
        return discard(leftover.folder)


def _describe(folder: Path) -> Leftover:
    try:
        OutputLock(folder).close()
    except OutputError:
        in_use = True
    else:
        in_use = False
    return Leftover(
        folder=folder,
        size_bytes=size_bytes(folder),
        frames=count_frames(folder),
        in_use=in_use,
    )
