"""Work folders: private, never accessed through a symlink, and only cleared of files
that the program creates."""

import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from ultraflash_cli.errors import OutputError

__all__ = [
    "BEGUN",
    "BEGUN_STATE",
    "JOURNAL",
    "JOURNAL_DRAFT",
    "LOCK",
    "MADE",
    "SEGMENT_FILE",
    "SPOOL",
    "STATE",
    "check_ours",
    "claim",
    "edit_existing",
    "is_own_name",
    "is_plain",
    "make_folder_anew",
    "make_new",
    "open_existing",
    "read_text",
    "remove_own",
    "segment_name",
    "size_bytes",
    "sweep",
    "take_away",
    "truncate",
]

LOCK = "lock"
JOURNAL = "journal.jsonl"
JOURNAL_DRAFT = "journal.new"
SPOOL = "stdin"
"""Name of the copy of a pipe's content."""
SEGMENT_FILE = re.compile(r"segment-\d{6,}\.video(\.[a-z0-9.]+)?")
"""A segment of the main output or of another one; earlier versions also used such names
for records."""
STATE = re.compile(r"state-\d{6,}\.safetensors")
BEGUN = re.compile(r"begun-\d{6,}\.frames")
BEGUN_STATE = re.compile(r"begun-\d{6,}-\d+\.safetensors")
MADE = re.compile(r"made-\d+")
"""Folder of a finished output being moved into place; everything in it is ours."""

_OWN = re.compile(
    "|".join(
        (
            *map(re.escape, (LOCK, JOURNAL, JOURNAL_DRAFT, SPOOL)),
            *(each.pattern for each in (SEGMENT_FILE, STATE, BEGUN, BEGUN_STATE, MADE)),
        )
    )
)
"""Names that the program creates in a work folder; nothing else in it is ever
deleted."""

_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)
_BINARY = getattr(os, "O_BINARY", 0)


def segment_name(number: int, output: int = 0) -> str:
    """Return the name of a segment's file for the main output or for another one."""
    return f"segment-{number:06d}.video" + (f".{output}" if output else "")


def is_own_name(name: str) -> bool:
    """Return whether the program creates a file or folder of this name in a work
    folder."""
    return _OWN.fullmatch(name) is not None


def check_ours(folder: Path) -> None:
    """Raise OutputError for a work folder that is a symlink, a file or another user's;
    a missing one is fine."""
    try:
        found = folder.lstat()
    except FileNotFoundError:
        return
    except OSError as error:
        raise OutputError(f"{folder}: {error.strerror}; choose another location with -o or --temp-dir") from error
    if not stat.S_ISDIR(found.st_mode):
        kind = "a symlink" if stat.S_ISLNK(found.st_mode) else "a file"
        raise OutputError(
            f"{folder} is {kind}, expected a folder created by ultraflash; remove it, or choose another location "
            "with -o or --temp-dir"
        )
    if not _is_mine(found.st_uid, folder.parent):
        raise OutputError(
            f"{folder} belongs to another user (uid {found.st_uid}); choose another location with -o or --temp-dir"
        )


def claim(folder: Path) -> None:
    """Create `folder`, private to this user, if it is missing; an existing one must be
    ours. Raises OutputError if it is not, and OSError from the file system.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        check_ours(folder)
        if stat.S_IMODE(folder.lstat().st_mode) & 0o077:
            # File systems without modes reject this.
            with suppress(OSError):
                folder.chmod(0o700)


def open_existing(path: Path, flags: int = os.O_RDONLY, *, create: bool = False) -> int:
    """Open a regular file that is not a symlink, and return its descriptor; `create`
    creates a missing one.

    Raises OSError, and OutputError for anything but a regular file.
    """
    try:
        descriptor = os.open(path, flags | _NO_FOLLOW | _BINARY | (os.O_CREAT if create else 0), 0o600)
    except OSError as error:
        if path.is_symlink():
            raise OutputError(f"{path} is a symlink, expected a file created by ultraflash; remove it") from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OutputError(f"{path} is not a regular file; remove it")
    return descriptor


def edit_existing(path: Path) -> BinaryIO:
    """Open a regular file to read and write, keeping its content. Raises OSError, OutputError."""
    return open(open_existing(path, os.O_RDWR), "r+b")


def take_away(path: Path) -> None:
    """Delete a regular file or a symlink (not its target); devices and folders are left
    alone. Raises OSError."""
    with suppress(FileNotFoundError):
        mode = path.lstat().st_mode
        if stat.S_ISREG(mode) or stat.S_ISLNK(mode):
            path.unlink()


def make_new(path: Path) -> BinaryIO:
    """Return a new, empty file for writing and reading; an existing file is unlinked,
    not truncated.

    Raises OSError.
    """
    take_away(path)
    return open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | _NO_FOLLOW | _BINARY, 0o600), "w+b")


def make_folder_anew(folder: Path) -> None:
    """Create an empty folder, deleting any existing one. Raises OSError."""
    if folder.is_symlink() or not folder.is_dir():
        take_away(folder)
    else:
        shutil.rmtree(folder)
    folder.mkdir(mode=0o700)


def read_text(path: Path) -> str:
    """Read a regular file as UTF-8. Raises OSError, OutputError, UnicodeDecodeError."""
    with open(open_existing(path), encoding="utf-8") as file:
        return file.read()


def truncate(path: Path, size: int) -> None:
    """Truncate a regular file to `size` bytes. Raises OSError or OutputError."""
    descriptor = open_existing(path, os.O_RDWR)
    try:
        os.ftruncate(descriptor, size)
    finally:
        os.close(descriptor)


def is_plain(path: Path) -> bool:
    """Return whether `path` is a regular file rather than a symlink."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def sweep(folder: Path) -> list[str]:
    """Remove entries of `folder` that have one of our names but are symlinks, devices
    or another user's; return their names. Targets of symlinks are left alone. Raises
    OSError.
    """
    owner = folder.lstat().st_uid
    swept: list[str] = []
    for path in sorted(folder.iterdir()):
        if not is_own_name(path.name):
            continue
        found = path.lstat()
        wanted = stat.S_ISDIR if MADE.fullmatch(path.name) else stat.S_ISREG
        if wanted(found.st_mode) and found.st_uid == owner:
            continue
        if not (stat.S_ISREG(found.st_mode) or stat.S_ISLNK(found.st_mode)):
            raise OutputError(f"{path} is not a regular file created by ultraflash; move it away")
        path.unlink()
        swept.append(path.name)
    return swept


def remove_own(folder: Path, keep: Callable[[str], bool] = lambda name: False) -> None:
    """Delete the program's files in `folder`, except names to `keep`; symlinks are not
    followed.

    Raises OSError.
    """
    for path in folder.iterdir():
        if not is_own_name(path.name) or keep(path.name):
            continue
        mode = path.lstat().st_mode
        if not stat.S_ISDIR(mode):
            take_away(path)
        elif MADE.fullmatch(path.name):
            shutil.rmtree(path)


def size_bytes(folder: Path) -> int:
    """Count the bytes of the files in a work folder, not counting symlinks."""
    total = 0
    for base, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                found = os.lstat(os.path.join(base, name))
                total += found.st_size if stat.S_ISREG(found.st_mode) else 0
    return total


def _is_mine(uid: int, parent: Path) -> bool:
    if not hasattr(os, "geteuid") or uid == os.geteuid():
        return True
    # Some file systems assign all files to one user, or map users, so test with a file
    # of our own.
    try:
        sample = Path(tempfile.mkdtemp(prefix=".ultraflash-", dir=parent))
    except OSError:
        return False
    try:
        return sample.lstat().st_uid == uid
    finally:
        sample.rmdir()
