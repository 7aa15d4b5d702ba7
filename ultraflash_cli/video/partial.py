"""Output files that appear whole or not at all, and messages for write errors."""

import errno
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from av.error import FFmpegError

from ultraflash_cli.errors import MuxError, OutputError
from ultraflash_cli.files import place_file

__all__ = ["is_refusal", "output_errors", "partial_file", "partial_path"]

_REASONS = {
    errno.ENOSPC: "the disk is full; free some space and run the same command again",
    errno.EDQUOT: "the disk quota is exceeded; free some space and run the same command again",
    errno.EFBIG: "the file system does not allow files this large; write to another disk",
    errno.EACCES: "no permission to write there; choose another location with -o",
    errno.EPERM: "no permission to write there; choose another location with -o",
    errno.EROFS: "the file system is read-only; choose another location with -o",
    errno.ENOTDIR: "a part of this path is a file, not a folder; choose another location with -o",
    errno.EISDIR: "this is a folder; name a file with -o",
    errno.ENOENT: "the folder does not exist; create it or choose another location with -o",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one with -o",
    errno.ETXTBSY: "the file is in use; close the other program",
    errno.EBUSY: "the file is in use; close the other program",
    errno.EIO: "the disk reports an input/output error",
}

_SYSTEM_ERRORS = 4096
"""FFmpeg's own errors have larger numbers."""


@contextmanager
def output_errors(path: Path) -> Generator[None]:
    """Convert system and FFmpeg errors in the block to an ``OutputError`` that names
    ``path``."""
    try:
        yield
    except (OSError, FFmpegError) as error:
        reason = _REASONS.get(error.errno or 0) or (error.strerror or str(error)).lower()
        kind = MuxError if is_refusal(error) else OutputError
        raise kind(f"{path} cannot be written: {reason}") from error


def is_refusal(error: OSError | FFmpegError) -> bool:
    """Return whether the muxer rejected a stream, in contrast to a write error."""
    number = error.errno or 0
    return isinstance(error, FFmpegError) and (number == errno.EINVAL or number > _SYSTEM_ERRORS)


def partial_path(path: Path) -> Path:
    """Return the name of a file while it is being written; it keeps the suffix, which
    determines the format."""
    return path.with_name(f"{path.stem}.part{path.suffix}")


@contextmanager
def partial_file(path: Path) -> Generator[Path]:
    """Yield ``name.part.mp4`` to write; it becomes ``name.mp4``, synced to disk, when the block succeeds.

    The partial file is removed if the block fails. System errors in the block become an
    ``OutputError``.
    """
    part = partial_path(path)
    try:
        with output_errors(path):
            if part.is_symlink():
                part.unlink()  # never follow a symlink
            yield part
            place_file(part, path)
    except BaseException:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise
