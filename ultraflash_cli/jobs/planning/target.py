"""Check the path of an output before any work is done."""

import hashlib
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from ultraflash_cli.errors import OutputError, OutputExists, UsageError
from ultraflash_cli.host import free_bytes, is_virtual, shortage
from ultraflash_cli.jobs.resume.entries import moved_files
from ultraflash_cli.jobs.resume.owned_files import check_ours, size_bytes
from ultraflash_cli.jobs.resume.work_folder import private_folder, work_folder
from ultraflash_cli.video.sequence import WRITTEN_PICTURES

if TYPE_CHECKING:
    from ultraflash_cli.video.source import Source

__all__ = [
    "check_folder",
    "check_made_names",
    "check_space",
    "check_target",
    "check_temp",
    "encoded_bytes",
    "existing_files",
    "exists_error",
    "followed",
    "is_pictures",
    "link_notes",
    "output_label",
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
    "jpeg": 0.5,
    "y4m": 4.0,
}
"""Low estimates of bits per pixel, so that a disk is rejected only if it is certainly
too small; a disk that fills up stops the run later."""


def check_target(
    output: Path,
    *,
    source: "Source | None" = None,
    overwrite: bool,
    skip_existing: bool,
    work: Path | None = None,
    example: str = ".mp4",
) -> bool:
    """Reject a target that cannot be written; return whether it exists and should be
    skipped. Numbered images exist if any file matches their pattern, as the numbers to
    be written are not known yet. Files of a run that was killed in its very last step
    do not block the same command; `work` is the folder where such a run leaves a
    record, None if nothing can be resumed; a name without extension is answered with
    `example` behind it. Raises OutputError for system errors,
    UsageError for a folder, a name without extension, anything but a regular file, the
    `source` itself or one of its images, and for an existing file unless `overwrite` or
    `skip_existing` is set.
    """
    try:
        check_folder(output)
        check_ours(work_folder(output))
        if work is not None:
            check_ours(work)
        if output.is_dir():
            raise UsageError(f"{output} is a folder, expected a file")
        if not output.suffix:
            hint = f"choose a file such as {output.name}{example}, or a folder such as {output}{os.sep}"
            raise UsageError(f"{output} has no extension; {hint}")

        found = existing_files(output)
        _refuse_special(found)
        _refuse_input(found, source)
    except OSError as error:
        raise OutputError(f"cannot write {output}: {error.strerror}; choose another location with -o") from error
    if found and work is not None:
        moved = set(moved_files(work))
        found = [path for path in found if Path(os.path.abspath(path)) not in moved]
    if found and not skip_existing and not overwrite:
        raise exists_error(found[0])
    if found and skip_existing and is_pictures(output):
        _refuse_gaps(output)
    return bool(found) and skip_existing


def _refuse_gaps(output: Path) -> None:
    """Raise UsageError if the existing images of an output have gaps, as an incomplete
    output cannot be skipped."""
    from ultraflash_cli.video.sequence import existing_pictures

    numbers = list(existing_pictures(output))
    wanted = numbers[-1] - numbers[0] + 1
    if len(numbers) < wanted:
        there = f"{len(numbers)} of the numbers {numbers[0]} to {numbers[-1]} are there"
        raise UsageError(f"{output}: only {there}, so -n cannot skip it; use -y to make all")


def check_made_names(*outputs: Path) -> None:
    """Raise UsageError if a default output (a file, or the folder of an image sequence) is a symlink."""
    for output in outputs:
        place = output.parent if is_pictures(output) and "%" in output.name else output
        if os.path.islink(place):
            raise UsageError(f"{place} is a symlink at a default name; choose the output with -o")


def followed(output: Path) -> Path:
    """Return the file to write for a given output: if that is a symlink, the file it
    points to. Raises UsageError for a dangling symlink, one to a file of a different
    type, or one created by another user in a world-writable folder.
    """
    if not os.path.islink(output):
        return output
    target = Path(os.path.realpath(output))
    if os.path.islink(target):
        raise UsageError(f"{output} is a symlink that points to itself; choose another output")
    if not output.suffix and not target.suffix and not os.path.lexists(target):
        raise UsageError(
            f"{output} is a symlink to {target}, which does not exist; create that folder first, or choose another "
            "output"
        )
    if target.suffix.lower() != output.suffix.lower():
        raise UsageError(f"{output} is a symlink to {target}, which has another extension; name that file with -o")
    link, folder = output.lstat(), output.absolute().parent.stat()
    is_shared = folder.st_mode & stat.S_ISVTX and folder.st_mode & stat.S_IWOTH
    if is_shared and hasattr(os, "geteuid") and link.st_uid not in (os.geteuid(), folder.st_uid):
        raise UsageError(f"{output} is a symlink created by another user (uid {link.st_uid}); choose another output")
    return target


def link_notes(output: Path | None) -> tuple[str, ...]:
    """Return a note about the file to write if the given output is a symlink."""
    if output is None or not os.path.islink(output):
        return ()
    return (f"{output} is a symlink to {os.path.realpath(output)}, which is written",)


def output_label(output: Path, stream: str | None) -> str:
    """Return the name of an output in messages: that of its stream, if it is
    streamed."""
    if stream is None:
        return output.name
    return "stdout" if stream == "-" else Path(stream).name


def is_pictures(output: Path) -> bool:
    """Return whether an output consists of numbered images."""
    return output.suffix.lower() in WRITTEN_PICTURES


def existing_files(output: Path) -> list[Path]:
    """List the existing files of an output: the file, or all images that match its
    pattern. Raises OSError."""
    if is_pictures(output):
        from ultraflash_cli.video.sequence import existing_pictures

        return list(existing_pictures(output).values())
    return [output] if os.path.lexists(output) else []


def _refuse_special(found: list[Path]) -> None:
    for path in found:
        mode = os.lstat(path).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
            raise UsageError(f"{path} is not a regular file; choose another output")


def _refuse_input(found: list[Path], source: "Source | None") -> None:
    """Raise UsageError if one of the files is the input or one of its images, under any
    name."""
    from ultraflash_cli.video.sequence import ImageSequence

    if not found or not isinstance(source, Path | ImageSequence):
        return
    inputs = {_identity(path) for path in (source.pictures() if isinstance(source, ImageSequence) else (source,))}
    for path in found:
        if _identity(path) in inputs - {None}:
            raise UsageError(f"{path} is the input itself; choose another output")


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def exists_error(output: Path) -> OutputExists:
    """Return the error for an output that exists."""
    return OutputExists(f"{output} exists; use -y to replace it, -n to skip it, or -o for another file")


def encoded_bytes(codec: str, *, width_px: int, height_px: int, frames: int) -> int:
    """Return a low estimate of the size of the encoded video."""
    return int(_BITS_PER_PIXEL[codec] * width_px * height_px * frames / 8)


def stream_target(identity: str, temp: Path | None, suffix: str) -> Path:
    """Return the file that represents stdout during the run, in `temp` or else in a
    private folder of this user. It depends only on `identity`, so that an interrupted
    run can be resumed.
    """
    digest = hashlib.sha256(os.fsencode(identity)).hexdigest()[:12]
    return (temp or private_folder()) / f"ultraflash-{digest}{suffix}"


def used_bytes(*folders: Path) -> int:
    """Count the bytes that an interrupted run has left in its folders."""
    return sum(map(size_bytes, set(folders)))


def check_space(folder: Path, needed_bytes: int, *, option: str = "-o") -> None:
    """Raise OutputError if the disk of `folder` has less than `needed_bytes` free;
    `option` chooses another folder."""
    if is_virtual(folder):
        raise OutputError(
            f"cannot write in {folder}: files cannot be created there; choose another location with {option}"
        )
    free = free_bytes(folder)
    if free < needed_bytes:
        where = f" with {option}" if option != "-o" else ""
        raise OutputError(
            f"disk full: {folder} has {shortage(free, needed_bytes)}; free some space or choose another location{where}"
        )


def check_folder(output: Path) -> None:
    """Raise OutputError if the folder of `output`, which may not exist yet, is not
    writable."""
    if obstacle := _obstacle(output.parent):
        raise OutputError(f"cannot write {output}: {obstacle}")


def check_temp(temp: Path | None) -> None:
    """Raise OutputError if the folder of `--temp-dir`, which may not exist yet, is not
    a writable one."""
    if temp is not None and (obstacle := _obstacle(temp)):
        raise OutputError(f"--temp-dir {temp}: {obstacle}; choose another folder with --temp-dir")


def _obstacle(folder: Path) -> str | None:
    """Return why files cannot be created in a folder that may not exist yet; None if
    they can."""
    for each in (folder, *folder.parents):
        if os.path.islink(each) and not each.exists():
            return f"{each} is a symlink to {os.path.realpath(each)}, which does not exist; create that folder first"
        if each.exists():
            if not each.is_dir():
                return f"{each} is a file, expected a folder"
            return None if os.access(each, os.W_OK | os.X_OK) else f"no permission to write in {each}"
    return None
