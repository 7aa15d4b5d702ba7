"""What every job does around its model: lock the output, keep the journal, warn, put the result in place."""

import hashlib
import shutil
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from ultraflash_cli.errors import OutOfMemory, OutputCheckError
from ultraflash_cli.jobs.events import Event, Listener, Planned, Warned
from ultraflash_cli.jobs.host import keep_freed_memory
from ultraflash_cli.jobs.journal import Journal, OutputLock, count_frames, work_folder
from ultraflash_cli.jobs.stop import Stop

__all__ = ["Work", "file_facts", "library_versions", "telling_memory_errors", "working_on"]

_DIGEST_BYTES = 1 << 20
"""How much of an input's head and tail goes into its digest."""

_OUT_OF_MEMORY = "out of memory; close other programs, choose a smaller --res, or --device cpu"


class Work:
    """One locked output on its way from nothing, or from an interrupted run's segments, to its place."""

    def __init__(
        self, output: Path, folder: Path, *, name: str, label: str, resume: bool, listener: Listener, stop: Stop | None
    ) -> None:
        self.output = output
        self.folder = folder
        self.name = name
        """What events call the input."""
        self.label = label
        """What messages call it."""
        self.listener = listener
        self.stop = stop or Stop()
        self.warnings: list[str] = []
        self._resume = resume
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
        return self._resume and self._journal is not None and bool(self._journal.segments)

    @property
    def note(self) -> str | None:
        """Why the work goes on or begins again; None for a plain start."""
        if self.journal.segments:
            return f"{self.label}: going on after {self.journal.frames} finished frames of an interrupted run"
        if self.journal.fresh_because:
            return f"{self.label}: starting afresh, {self.journal.fresh_because}"
        return None

    def open_journal(self, fingerprint: Mapping[str, object]) -> Journal:
        """Open the journal, forgetting what an interrupted run left where nothing is to be resumed."""
        from ultraflash_cli.video.partial import output_errors

        with output_errors(self.output):
            if not self._resume:
                _empty(self.folder)
            self._journal = Journal(self.folder, fingerprint)
        return self._journal

    def warn(self, message: str) -> None:
        """Say something the user should know, now and in the report."""
        self.warnings.append(message)
        self.listener(Warned(input=self.name, message=message))

    def check_stop(self) -> None:
        """Raise Interrupted where a stop was requested, with what the same command will find later."""
        if not self.stop.requested:
            return
        if self.worth_keeping:
            future = f"{self.journal.frames} frames are finished, the same command goes on from there"
        else:
            future = "nothing is kept, the same command starts anew"
        raise self.stop.interruption(f"interrupted; {future}")

    def put_in_place(self, made: Mapping[Path, Callable[[Path], Sequence[str]]]) -> None:
        """Make the outputs in the work folder, each by its function, and move them to their places in this order.

        A function writes the file it is given, checks it, and returns what belongs into the warnings. So a file under
        a final name is always one that has passed its check.
        """
        from ultraflash_cli.video.partial import output_errors, sync_folder

        try:
            for output, make in made.items():
                for note in make(self.folder / output.name):
                    self.warn(f"{output.name}: {note}")
        except OutputCheckError as error:
            raise OutputCheckError(f"{error} The finished segments are kept; --resume off makes them anew.") from error
        for output in made:
            with output_errors(output):
                (self.folder / output.name).replace(output)
                sync_folder(output.parent)


@contextmanager
def working_on(
    output: Path, *, name: str, label: str, resume: bool, plan: Planned, listener: Listener, stop: Stop | None
) -> Generator[Work]:
    """Tell the `plan`, lock the output, and give its work; what was finished is kept if the block fails.

    Raises OutputError when another run has the output. The listener of the work is called by one thread at a time.
    """
    listener = _one_at_a_time(listener)
    listener(plan)
    keep_freed_memory()
    folder = work_folder(output)
    with OutputLock(folder):
        found = count_frames(folder)
        work = Work(output, folder, name=name, label=label, resume=resume, listener=listener, stop=stop)
        try:
            yield work
        except BaseException:
            if not work.worth_keeping and not (found and work.untouched):
                shutil.rmtree(folder, ignore_errors=True)
            raise
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def telling_memory_errors() -> Generator[None]:
    """Turn what the libraries raise when memory runs out into OutOfMemory."""
    try:
        yield
    except MemoryError as error:
        raise OutOfMemory(_OUT_OF_MEMORY) from error
    except RuntimeError as error:
        # torch.OutOfMemoryError by name, so that torch need not be imported to look.
        if type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error):
            raise OutOfMemory(_OUT_OF_MEMORY) from error
        raise


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
    return {f"the version of {name}": version(name) for name in ("ultraflash", "torch", "av", "numpy", *more)}


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name != "lock":
            path.unlink()


def _one_at_a_time(listener: Listener) -> Listener:
    lock = threading.Lock()

    def listen(event: Event) -> None:
        with lock:
            listener(event)

    return listen
