"""The last step of a job: finished segments become a file or numbered pictures."""

import re
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from ultraflash_cli.errors import MuxError, OutputCheckError, OutputError, UsageError
from ultraflash_cli.jobs.target import is_pictures
from ultraflash_cli.jobs.work import Finish

if TYPE_CHECKING:
    from ultraflash_cli.video.containers import StreamPlan
    from ultraflash_cli.video.encode import EncodeSpec
    from ultraflash_cli.video.join import Joined

__all__ = ["asked_suffix", "check_pattern", "finish_of", "low_name", "made_name"]

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
    if is_pictures(output):
        return output.parent.with_name(f"{output.parent.name}_480p") / output.name
    return output.with_stem(f"{output.stem}_480p")


def check_pattern(output: Path) -> None:
    """Raise UsageError for pictures that do not have one number in their names."""
    places = len(_PLACE.findall(output.name)) if is_pictures(output) else 1
    if places > 1:
        raise UsageError(f"{output} has {places} places for a number, expected one, such as {_PICTURES}")
    if not places:
        raise UsageError(f"{output} names one picture, a clip has many; name them {output.with_suffix('')}/{_PICTURES}")


def finish_of(
    files: Sequence[Path],
    streams: "StreamPlan",
    spec: "EncodeSpec",
    *,
    frames: int,
    duration_s: Fraction,
    join: "Callable[[Path, StreamPlan], Joined]",
    first_number: int = 1,
    strict: bool = False,
) -> Finish:
    """Give how segments `files` become an output of so many `frames`; `join` writes the containers among them.

    Pictures are numbered from `first_number` on. A copied stream that did not come out as it was is worth a warning,
    and one with which the file cannot be made or fails its check is left out; with `strict` both are an
    OutputCheckError.
    """
    if streams.suffix == ".png":
        return _pictures(files, spec, frames, first_number)
    if streams.suffix == ".y4m":
        return _plain(files, spec, frames)

    def make(joined: Path) -> Sequence[str]:
        from ultraflash_cli.video.check import check_output

        failure: OutputCheckError | MuxError | None = None
        for plan in _fewer(streams) if not strict else (streams,):
            try:
                done = join(joined, plan)
                faults = check_output(joined, plan=plan, frames=frames, spec=spec, duration_s=duration_s, joined=done)
            except (OutputCheckError, MuxError) as error:
                failure = failure or error
                continue
            if faults and strict:
                raise OutputCheckError(f"{joined.name}: {faults[0]}")
            lost = [f"left out: {dropped}" for dropped in plan.dropped[len(streams.dropped) :]]
            return [f"{joined.name}: {note}" for note in (*done.notes, *faults, *lost)]
        assert failure is not None, "one way at least was tried"
        raise failure

    return Finish(make=make, move=_move_file)


def _fewer(streams: "StreamPlan") -> "Iterator[StreamPlan]":
    """Give the plan, then plans for the case that it fails: without each one of the streams, without all of them."""
    yield streams
    for stream in streams.beside:
        yield streams.without([stream], "the file cannot be made with it")
    if len(streams.beside) > 1:
        yield streams.without(streams.beside, "the file cannot be made with all of these")


def _pictures(files: Sequence[Path], spec: "EncodeSpec", frames: int, first: int) -> Finish:
    from ultraflash_cli.video.sequence import existing_pictures, numbered
    from ultraflash_cli.video.stills import check_pictures, move_pictures, write_pictures

    def make(pattern: Path) -> Sequence[str]:
        write_pictures(files, pattern, first=first)
        check_pictures(pattern, frames=frames, spec=spec, first=first)
        return ()

    def move(made: Path, target: Path) -> None:
        move_pictures(made, target, frames=frames, first=first)

    def each(pattern: Path) -> Sequence[Path]:
        return [numbered(pattern, number) for number in range(first, first + frames)]

    def remarks(target: Path) -> Sequence[str]:
        others = [path for number, path in existing_pictures(target).items() if not first <= number < first + frames]
        if not others:
            return ()
        names = others[0].name if len(others) == 1 else f"{others[0].name} to {others[-1].name}"
        left = "was not made by this run and is left" if len(others) == 1 else "were not made by this run and are left"
        return [f"{target.parent}: {names} {left}; whoever reads the folder takes them for the same clip"]

    return Finish(make=make, move=move, files=each, remarks=remarks)


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
