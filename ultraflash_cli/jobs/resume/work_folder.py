"""The folder of unfinished work, and its lock."""

import errno
import hashlib
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Self

from ultraflash_cli.errors import OutputError
from ultraflash_cli.jobs.resume.owned_files import LOCK, claim, is_plain, open_existing

__all__ = [
    "OutputLock",
    "fitted",
    "is_work_folder",
    "leave_private_folder",
    "lock_descriptor",
    "looks_like_work",
    "private_folder",
    "temp_work_folder",
    "unfinished_work",
    "work_folder",
]

_PREFIX, _SUFFIX = ".", ".ultraflash"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""Errors of file systems without locks, as on some clusters; the work then continues
without a lock."""
_LONGEST_NAME = 220
"""Longest file name in bytes that leaves room for our prefix and suffix on every file
system."""


def work_folder(output: Path) -> Path:
    """Return the hidden folder next to `output` for its unfinished work."""
    return output.with_name(f"{_PREFIX}{fitted(output.name)}{_SUFFIX}")


def fitted(name: str) -> str:
    """Shorten a file name that leaves no room for our prefix and suffix; different
    names remain different."""
    if len(os.fsencode(name)) <= _LONGEST_NAME:
        return name
    path = Path(name)
    start = os.fsencode(path.stem)[: _LONGEST_NAME - 40].decode(errors="ignore")
    return f"{start}~{hashlib.sha256(os.fsencode(name)).hexdigest()[:12]}{path.suffix}"


def temp_work_folder(output: Path, temp: Path) -> Path:
    """Return the folder in `temp` for the unfinished work of `output`; outputs of the
    same name have different ones."""
    place = hashlib.sha256(os.fsencode(output.absolute())).hexdigest()[:8]
    return temp / f"{_PREFIX}{fitted(output.name)}.{place}{_SUFFIX}"


def unfinished_work(output: Path, temp: Path | None) -> Path:
    """Return the folder for the unfinished work of `output`, in `temp` if that is
    given."""
    return work_folder(output) if temp is None else temp_work_folder(output, temp)


def is_work_folder(path: Path) -> bool:
    """Return whether `path` is a folder created by an unfinished run, and not a symlink
    to one."""
    return looks_like_work(path.name) and path.is_dir() and not path.is_symlink() and is_plain(path / LOCK)


def looks_like_work(name: str) -> bool:
    """Return whether this is the name of a folder for unfinished work."""
    return name.startswith(_PREFIX) and name.endswith(_SUFFIX)


def private_folder() -> Path:
    """Return this user's private folder for work that belongs to no output folder; it
    is not created here."""
    user = f"-{os.getuid()}" if hasattr(os, "getuid") else ""
    return Path(tempfile.gettempdir()) / f"ultraflash{user}"


def leave_private_folder(folder: Path) -> None:
    """Remove `folder` if it is the private one and is empty."""
    if folder == private_folder():
        with suppress(OSError):
            folder.rmdir()


class OutputLock:
    """An exclusive lock on a work folder while the object is open; the system releases
    it if the process dies."""

    def __init__(self, folder: Path) -> None:
        """Create `folder` if necessary and lock it. Raises OutputError if another
        process has locked it, and for a folder that is a symlink or not ours.
        """
        self.folder = folder
        self._descriptor = self._take()

    def _take(self) -> int:
        folder, path = self.folder, self.folder / LOCK
        while True:
            try:
                if folder.parent == private_folder():
                    claim(folder.parent)
                claim(folder)
                descriptor = open_existing(path, os.O_RDWR, create=True)
            except OSError as error:
                raise OutputError(f"cannot write in {folder.parent}: {error.strerror}") from error
            if not lock_descriptor(descriptor):
                os.close(descriptor)
                raise OutputError(
                    f"another run is writing {_output_name(folder)} in {folder.parent}; wait for it or stop it"
                )
            # The previous holder of the lock may have deleted the folder while we were
            # opening it.
            if path.exists() and path.stat().st_ino == os.fstat(descriptor).st_ino:
                return descriptor
            os.close(descriptor)

    def set_aside(self) -> Path:
        """Rename the folder with its contents, and lock a new one in its place; returns
        the new path of the old one.

        Raises OSError, OutputError.
        """
        name = self.folder.name.removesuffix(_SUFFIX)
        number = 1
        while os.path.lexists(kept := self.folder.with_name(f"{name}.kept{number}{_SUFFIX}")):
            number += 1
        self.folder.rename(kept)
        old, self._descriptor = self._descriptor, self._take()
        os.close(old)
        return kept

    def close(self) -> None:
        """Release the lock."""
        os.close(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _output_name(folder: Path) -> str:
    return folder.name.removeprefix(_PREFIX).removesuffix(_SUFFIX)


def lock_descriptor(descriptor: int, *, shared: bool = False) -> bool:
    """Lock an open file until it is closed; return whether that succeeded, or the file
    system has no locks."""
    try:
        import fcntl
    except ImportError:
        import msvcrt

        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # pyright: ignore[reportAttributeAccessIssue]
        except OSError:
            return False
        return True
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in _NO_LOCKS
    return True
