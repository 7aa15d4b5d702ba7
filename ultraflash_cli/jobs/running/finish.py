"""The last step of a job: turn finished segments into a file or numbered images."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path

from ultraflash_cli.errors import MuxError, OutputCheckError, OutputError
from ultraflash_cli.files import sync_file, sync_folder
from ultraflash_cli.jobs.running.work import Finish
from ultraflash_cli.video.check import check_output
from ultraflash_cli.video.containers import StreamPlan
from ultraflash_cli.video.encode import EncodeSpec
from ultraflash_cli.video.join import Joined
from ultraflash_cli.video.segment_file import SegmentFile
from ultraflash_cli.video.sequence import WRITTEN_PICTURES, existing_pictures, numbered
from ultraflash_cli.video.stills import check_pictures, move_pictures, write_pictures
from ultraflash_cli.video.y4m import write_y4m

__all__ = ["finish_of"]


def finish_of(
    files: Sequence[SegmentFile],
    streams: StreamPlan,
    spec: EncodeSpec,
    *,
    frames: int,
    duration_s: Fraction,
    join: Callable[[Path, StreamPlan], Joined],
    first_number: int = 1,
    made: str | None = None,
    photo: Callable[[int], Mapping[str, bytes]] | None = None,
    strict: bool = False,
) -> Finish:
    """Return how to turn the segments `files` into an output of `frames` frames; `join`
    writes containers. Images are numbered from `first_number`, `made` is the tag of
    each, and `photo` returns what the input of each frame carries beside its pixels. A
    copied stream that has changed causes a warning; one with which the file cannot be
    written or fails its check is dropped. With `strict` both raise OutputCheckError.
    """
    if streams.suffix in WRITTEN_PICTURES:
        return _pictures(files, spec, frames, first_number, made, photo)
    if streams.suffix == ".y4m":
        return _plain(files, spec, frames)

    def make(joined: Path) -> Sequence[str]:
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


def _fewer(streams: StreamPlan) -> Iterator[StreamPlan]:
    """Yield the plan, then fallbacks: without each one of the streams, and without all
    of them."""
    yield streams
    for stream in streams.beside:
        yield streams.without([stream], "the file cannot be made with it")
    if len(streams.beside) > 1:
        yield streams.without(streams.beside, "the file cannot be made with all of these")


def _pictures(
    files: Sequence[SegmentFile],
    spec: EncodeSpec,
    frames: int,
    first: int,
    made: str | None,
    photo: Callable[[int], Mapping[str, bytes]] | None,
) -> Finish:
    def make(pattern: Path) -> Sequence[str]:
        if frames > 1 and numbered(pattern, 1) == numbered(pattern, 2):
            raise OutputCheckError(
                f"{pattern.name}: the input has {frames} frames; use DIR/%05d{pattern.suffix} for all of them"
            )
        write_pictures(files, pattern, first=first, made=made, photo=photo)
        check_pictures(pattern, frames=frames, spec=spec, first=first)
        return ()

    def move(ready: Path, target: Path) -> None:
        move_pictures(ready, target, frames=frames, first=first)

    def each(pattern: Path) -> Sequence[Path]:
        return [numbered(pattern, number) for number in range(first, first + frames)]

    def remarks(target: Path) -> Sequence[str]:
        others = [path for number, path in existing_pictures(target).items() if not first <= number < first + frames]
        if not others:
            return ()
        names = others[0].name if len(others) == 1 else f"{others[0].name} to {others[-1].name}"
        left = "was not made by this run and is kept" if len(others) == 1 else "were not made by this run and are kept"
        return [f"{target.parent}: {names} {left}; programs reading the folder take them for the same clip"]

    return Finish(make=make, move=move, files=each, remarks=remarks)


def _plain(files: Sequence[SegmentFile], spec: EncodeSpec, frames: int) -> Finish:
    def make(path: Path) -> Sequence[str]:
        try:
            with path.open("wb") as file:
                written = write_y4m(files, spec, file, name=str(path))
            sync_file(path)
        except OSError as error:
            raise OutputError(f"{path}: {error.strerror}") from error
        if written != frames:
            raise OutputCheckError(f"{path}: has {written} frames, expected {frames}")
        return ()

    return Finish(make=make, move=_move_file)


def _move_file(made: Path, target: Path) -> None:
    made.replace(target)
    sync_folder(target.parent)
