"""What interrupted runs have left behind."""

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ultraflash_cli.errors import InputError, OutputError
from ultraflash_cli.jobs.journal import OutputLock, count_frames, is_work_folder

__all__ = ["Leftover", "find_leftovers", "remove"]


@dataclass(frozen=True, kw_only=True)
class Leftover:
    """The work folder of a run that did not finish."""

    folder: Path
    size_bytes: int
    frames: int
    """Frames that the same command would not have to make again."""
    in_use: bool
    """A run is at work in it."""


def find_leftovers(folders: Iterable[Path], *, recursive: bool) -> list[Leftover]:
    """Find work folders in `folders`; raises InputError for one that is no folder."""
    found: list[Leftover] = []
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder; name the one that holds the outputs")
        children = folder.rglob("*") if recursive else folder.iterdir()
        found += [_describe(child) for child in sorted(children) if is_work_folder(child)]
    return found


def remove(leftover: Leftover) -> bool:
    """Remove a leftover unless a run is at work in it; tells whether it is gone. Raises OutputError."""
    try:
        lock = OutputLock(leftover.folder)
    except OutputError:
        return False
    with lock:
        try:
            shutil.rmtree(leftover.folder)
        except OSError as error:
            raise OutputError(f"cannot remove {leftover.folder}: {error.strerror}") from error
    return True


def _describe(folder: Path) -> Leftover:
    try:
        OutputLock(folder).close()
    except OutputError:
        in_use = True
    else:
        in_use = False
    return Leftover(
        folder=folder,
        size_bytes=sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
        frames=count_frames(folder),
        in_use=in_use,
    )
