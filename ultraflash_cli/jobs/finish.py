"""The last step of a job: finished segments become a file or numbered pictures."""

import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from ultraflash_cli.errors import OutputCheckError, OutputError, UsageError
from ultraflash_cli.jobs.work import Finish

if TYPE_CHECKING:
    from ultraflash_cli.video.containers import StreamPlan
    from ultraflash_cli.video.encode import EncodeSpec
    from ultraflash_cli.video.join import Joined

__all__ = ["asked_suffix", "check_pattern", "finish_of", "first_file", "low_name", "made_name"]

_PICTURES = "%05d.png"
_PLACE = re.compile(r"%(?:0(\d+))?d")


def asked_suffix(output: Path | None, stdout: BinaryIO | None, codec: str) -> str | None:
    """Give the container that is asked for; None where it is to be chosen. Raises UsageError."""
    if stdout is None:
        return output.suffix if output is not None else None
    if codec == "png":
        raise UsageError("--codec png makes many files, stdout takes one; name them with -o DIR/%05d.png")
    return ".y4m" if codec == "y4m" else ".mkv"


def made_name(stem: str, suffix: str) -> Path:
    """Give the name of an output that nobody has named; pictures lie in a folder of their own."""
    return Path(stem, _PICTURES) if suffix == ".png" else Path(f"{stem}{suffix}")


def low_name(output: Path) -> Path:
    """Give the name of the smaller output that lies beside another one."""
    if _is_pictures(output):
        return output.parent.with_name(f"{output.parent.name}_480p") / output.name
    return output.with_stem(f"{output.stem}_480p")


def check_pattern(output: Path) -> None:
    """Raise UsageError for pictures that have no numbers in their names."""
    if _is_pictures(output) and not _PLACE.search(output.name):
        raise UsageError(f"{output} names one picture, a clip has many; name them {output.with_suffix('')}/{_PICTURES}")


def first_file(output: Path) -> Path:
    """Give the file whose existence tells that the output exists."""
    return output.with_name(_PLACE.sub(_first, output.name, count=1)) if _is_pictures(output) else output


def _is_pictures(output: Path) -> bool:
    return output.suffix.lower() == ".png"


def _first(place: re.Match[str]) -> str:
    return f"{1:0{int(place[1] or 1)}d}"


def finish_of(
    files: Sequence[Path],
    streams: "StreamPlan",
    spec: "EncodeSpec",
    *,
    frames: int,
    duration_s: Fraction,
    join: "Callable[[Path], Joined]",
    strict: bool = False,
) -> Finish:
    """Give how segments `files` become an output of so many `frames`; `join` writes the containers among them.

    A copied stream that did not come out as it was is worth a warning, or where `strict` says so an OutputCheckError.
    """
    if streams.suffix == ".png":
        return _pictures(files, spec, frames)
    if streams.suffix == ".y4m":
        return _plain(files, spec, frames)

    def make(joined: Path) -> Sequence[str]:
        from ultraflash_cli.video.check import check_output

        done = join(joined)
        faults = check_output(joined, plan=streams, frames=frames, spec=spec, duration_s=duration_s, joined=done)
        if faults and strict:
            raise OutputCheckError(f"{joined.name}: {faults[0]}")
        return [f"{joined.name}: {note}" for note in (*done.notes, *faults)]

    return Finish(make=make, move=_move_file)


def _pictures(files: Sequence[Path], spec: "EncodeSpec", frames: int) -> Finish:
    from ultraflash_cli.video.stills import check_pictures, move_pictures, numbered, write_pictures

    def make(pattern: Path) -> Sequence[str]:
        write_pictures(files, pattern)
        check_pictures(pattern, frames=frames, spec=spec)
        return ()

    def move(made: Path, target: Path) -> None:
        move_pictures(made, target, frames=frames)
        # What is left of a longer sequence that was replaced would be taken for the end of this one.
        for number in count(frames + 1):
            picture = numbered(target, number)
            if not picture.is_file():
                return
            picture.unlink()

    def ends(pattern: Path) -> Sequence[Path]:
        return numbered(pattern, 1), numbered(pattern, frames)

    return Finish(make=make, move=move, ends=ends)


def _plain(files: Sequence[Path], spec: "EncodeSpec", frames: int) -> Finish:
    from ultraflash_cli.video.partial import sync_file
    from ultraflash_cli.video.y4m import write_y4m

    def make(path: Path) -> Sequence[str]:
        try:
            with path.open("wb") as file:
                written = write_y4m(files, spec, file, name=str(path))
            sync_file(path)
        except OSError as error:
            raise OutputError(f"{path}: {error.strerror}") from error
        if written != frames:
            raise OutputCheckError(f"{path}: holds {written} frames, expected {frames}.")
        return ()

    return Finish(make=make, move=_move_file)


def _move_file(made: Path, target: Path) -> None:
    from ultraflash_cli.video.partial import sync_folder

    made.replace(target)
    sync_folder(target.parent)
