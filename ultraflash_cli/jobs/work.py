"""What every job does around its model: lock the output, keep the journal, warn, put the result in place."""

import gc
import hashlib
import shutil
import sys
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

from ultraflash_cli.errors import OutOfMemory, OutputCheckError
from ultraflash_cli.jobs.events import Event, Listener, Planned, Retrying, Warned
from ultraflash_cli.jobs.host import keep_freed_memory
from ultraflash_cli.jobs.journal import (
    Journal,
    MovedFile,
    OutputLock,
    Placement,
    count_frames,
    discard,
    empty,
    fitted,
    moved_files,
    unfinished_work,
    work_folder,
)
from ultraflash_cli.jobs.live import LiveStream, ReaderGone
from ultraflash_cli.jobs.stop import Stop, StopNow
from ultraflash_cli.jobs.target import exists_error

__all__ = [
    "Finish",
    "Work",
    "file_facts",
    "library_versions",
    "telling_memory_errors",
    "with_smaller_plans",
    "working_on",
]

T = TypeVar("T")

_DIGEST_BYTES = 1 << 20
"""How much of an input's head and tail goes into its digest."""

_OUT_OF_MEMORY = "out of memory; close other programs, choose a smaller --res, or --device cpu"


@dataclass(frozen=True, kw_only=True)
class Finish:
    """How one output comes about."""

    make: Callable[[Path], Sequence[str]]
    """Makes what belongs under the path and checks it; gives what belongs into the warnings."""
    move: Callable[[Path, Path], None]
    """Brings it to its place, whole or not at all."""
    ends: Callable[[Path], Sequence[Path]] = lambda path: (path,)
    """Names the first and the last file that are moved, for a path."""


class Work:
    """One locked output on its way from nothing, or from an interrupted run's segments, to its place."""

    def __init__(
        self,
        output: Path,
        folder: Path,
        place: Path,
        *,
        name: str,
        label: str,
        resume: bool,
        overwrite: bool,
        listener: Listener,
        stop: Stop | None,
    ) -> None:
        self.output = output
        self.folder = folder
        """Where journal and segments lie."""
        self.place = place
        """Where the finished file is made: beside the output, so that it moves there whole."""
        self.name = name
        """What events call the input."""
        self.label = label
        """What messages call it."""
        self.listener = listener
        self.stop = stop or Stop()
        self.warnings: list[str] = []
        self._resume = resume
        self._overwrite = overwrite
        self._journal: Journal | None = None

    @property
    def journal(self) -> Journal:
        """The journal that `open_journal` has opened."""
        assert self._journal is not None, "the journal is open"
        return self._journal

    @property
    def untouched(self) -> bool:
        """What an earlier run left has not been looked at yet."""
        return self._journal is None

    @property
    def worth_keeping(self) -> bool:
        """Something is finished that the same command can use later."""
        return self._resume and self._journal is not None and self._journal.safe_frames > 0

    @property
    def note(self) -> str | None:
        """Why the work goes on or begins again; None for a plain start."""
        if self.journal.placed:
            return f"{self.label}: done already, {self.output} is in place; only the tidying up was interrupted"
        if self.journal.safe_frames:
            return f"{self.label}: going on after {self.journal.safe_frames} finished frames of an interrupted run"
        if self.journal.fresh_because:
            return f"{self.label}: starting afresh, {self.journal.fresh_because}"
        return None

    def open_journal(self, fingerprint: Mapping[str, object]) -> Journal:
        """Open the journal, forgetting what an interrupted run left where nothing is to be resumed.

        Raises UsageError where that run had another task and its output, which must not be replaced, in place.
        """
        from ultraflash_cli.video.partial import output_errors

        with output_errors(self.output):
            if not self._resume:
                empty(self.folder)
            moved = moved_files(self.folder)
            self._journal = Journal(self.folder, fingerprint)
        if self._journal.fresh_because is not None and moved and not self._overwrite:
            raise exists_error(moved[0])
        return self._journal

    def warn(self, message: str) -> None:
        """Say something the user should know, once, now and in the report."""
        if message not in self.warnings:
            self.warnings.append(message)
            self.listener(Warned(input=self.name, message=message))

    def check_stop(self) -> None:
        """Raise Interrupted where a stop was requested, with what the same command will find later."""
        if self.stop.requested:
            raise self.stop.interruption(f"interrupted; {self._future}")

    @property
    def _future(self) -> str:
        """What the same command will find."""
        kept = count_frames(self.folder) if self._resume else 0
        if kept:
            return f"{kept} frames are finished, the same command goes on from there"
        return "nothing is kept, the same command starts anew"

    def check_stream(self, stream: LiveStream) -> None:
        """Raise what has ended the stream, with what is kept where its reader has left."""
        try:
            stream.check()
        except ReaderGone as error:
            raise ReaderGone(f"{error}; {self._future}") from error

    def stream_out(self, stream: LiveStream) -> int:
        """Wait until the stream has taken everything; gives its frames. A stop is obeyed at once."""
        try:
            with self.stop.at_once():
                stream.finish()
        except StopNow:
            self.check_stop()
        self.check_stream(stream)
        for note in stream.streamed.notes:
            self.warn(f"stdout: {note}")
        return stream.streamed.frames

    def put_in_place(self, finishes: Mapping[Path, "Finish"], *, frames: int) -> None:
        """Make the outputs, the main one of so many frames, beside their places and move them there, in this order.

        So a file under a final name is always one that has passed its check. A stop is obeyed at once until all are
        made.
        """
        from ultraflash_cli.video.partial import output_errors

        try:
            with self.stop.at_once():
                for output, finish in finishes.items():
                    for note in finish.make(self.place / fitted(output.name)):
                        self.warn(note)
        except StopNow:
            self.check_stop()
        except OutputCheckError as error:
            raise OutputCheckError(f"{error} The finished segments are kept; --resume off makes them anew.") from error
        with output_errors(self.output):
            ends = [
                MovedFile.of(made, target)
                for output, finish in finishes.items()
                for made, target in zip(finish.ends(self.place / fitted(output.name)), finish.ends(output), strict=True)
            ]
            if ends:
                self.journal.place(Placement(frames=frames, files=tuple(ends)))
        for output, finish in finishes.items():
            with output_errors(output):
                finish.move(self.place / fitted(output.name), output)


@contextmanager
def working_on(
    output: Path,
    *,
    name: str,
    label: str,
    resume: bool,
    overwrite: bool,
    plan: Planned,
    listener: Listener,
    stop: Stop | None,
    temp: Path | None = None,
) -> Generator[Work]:
    """Tell the `plan`, lock the output, and give its work; what was finished is kept if the block fails.

    It is kept in `temp` where that is given, else beside the output; the lock is always there.
    Raises OutputError when another run has the output. The listener of the work is called by one thread at a time.
    """
    listener = _one_at_a_time(listener)
    listener(plan)
    keep_freed_memory()
    place = work_folder(output)
    folder = unfinished_work(output, temp)
    with ExitStack() as stack:
        stack.enter_context(OutputLock(place))
        if folder != place:
            stack.callback(shutil.rmtree, place, ignore_errors=True)
            stack.enter_context(OutputLock(folder))
        found = count_frames(folder)
        work = Work(
            output,
            folder,
            place,
            name=name,
            label=label,
            resume=resume,
            overwrite=overwrite,
            listener=listener,
            stop=stop,
        )
        try:
            yield work
        except BaseException:
            if not work.worth_keeping and not (found and work.untouched):
                shutil.rmtree(folder, ignore_errors=True)
            raise
        if folder != place:
            shutil.rmtree(place, ignore_errors=True)
        discard(folder)


@contextmanager
def telling_memory_errors(planned_bytes: int | None = None) -> Generator[None]:
    """Turn what the libraries raise when memory runs out into OutOfMemory; the plan was for so many bytes."""
    try:
        yield
    except MemoryError as error:
        raise OutOfMemory(_OUT_OF_MEMORY, planned_bytes=planned_bytes) from error
    except RuntimeError as error:
        # torch.OutOfMemoryError by name, so that torch need not be imported to look.
        if type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error):
            raise OutOfMemory(_OUT_OF_MEMORY, planned_bytes=planned_bytes) from error
        raise


def with_smaller_plans(
    attempt: Callable[[str | None], T], max_memory: str | None, work: Work, *, stream: LiveStream | None = None
) -> T:
    """Try `attempt` with the `--max-memory` given, and while memory runs out with what gives a smaller plan.

    Raises OutOfMemory once there is no smaller plan, or a part made under this one has gone into a `stream`.
    """
    while True:
        try:
            return attempt(max_memory)
        except OutOfMemory as error:
            if error.planned_bytes is None or (stream is not None and stream.has_begun):
                raise
            planned_bytes = error.planned_bytes
        # Only now, with the failure and its traceback gone, is what it held free.
        _free_memory()
        message = f"{work.label}: memory ran out under a plan for {planned_bytes / 1e9:.2f} GB; trying a smaller one"
        work.listener(Retrying(input=work.name, message=message, planned_bytes=planned_bytes))
        max_memory = str(planned_bytes - 1)


def _free_memory() -> None:
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def file_facts(name: str, path: Path) -> dict[str, object]:
    """Give what tells whether a file is still the same, for a fingerprint; `name` is what people call it."""
    stat = path.stat()
    digest = hashlib.sha256()
    with path.open("rb") as file:
        digest.update(file.read(_DIGEST_BYTES))
        file.seek(max(file.tell(), stat.st_size - _DIGEST_BYTES))
        digest.update(file.read(_DIGEST_BYTES))
    return {
        f"{name}'s size": stat.st_size,
        f"{name}'s time of change": stat.st_mtime_ns,
        f"{name}'s content": digest.hexdigest(),
    }


def library_versions(*more: str) -> dict[str, object]:
    """Give the versions of what makes pixels and packets, for a fingerprint."""
    return {f"the version of {name}": _version(name) for name in ("ultraflash", "torch", "av", "numpy", *more)}


@cache
def _version(name: str) -> str:
    return version(name)


def _one_at_a_time(listener: Listener) -> Listener:
    lock = threading.Lock()

    def listen(event: Event) -> None:
        with lock:
            listener(event)

    return listen
