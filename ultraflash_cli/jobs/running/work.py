"""The work on one locked output: journal, warnings, stopping, and moving it into
place."""

import os
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from ultraflash_cli.errors import OutputCheckError
from ultraflash_cli.jobs.events import Listener, Warned
from ultraflash_cli.jobs.planning.target import exists_error
from ultraflash_cli.jobs.resume.entries import MovedFile, Placement, count_frames, moved_files, version_change
from ultraflash_cli.jobs.resume.journal import Journal, discard, empty
from ultraflash_cli.jobs.resume.owned_files import make_folder_anew, sweep
from ultraflash_cli.jobs.resume.work_folder import (
    OutputLock,
    fitted,
    leave_private_folder,
    unfinished_work,
    work_folder,
)
from ultraflash_cli.jobs.running.live import LiveStream, ReaderGone
from ultraflash_cli.jobs.running.stop import Stop, StopNow
from ultraflash_cli.video.partial import output_errors

__all__ = ["Finish", "Work", "locked_work"]


@dataclass(frozen=True, kw_only=True)
class Finish:
    """The functions that finish one output."""

    make: Callable[[Path], Sequence[str]]
    """Writes the output to a path and checks it; returns warnings."""
    move: Callable[[Path, Path], None]
    """Moves it into place, whole or not at all."""
    files: Callable[[Path], Sequence[Path]] = lambda path: (path,)
    """Returns the files to move, for a path."""
    remarks: Callable[[Path], Sequence[str]] = lambda path: ()
    """Returns further warnings once everything is in place."""


class Work:
    """The work on one locked output, from scratch or from an interrupted run."""

    def __init__(
        self,
        output: Path,
        lock: OutputLock,
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
        self._lock = lock
        self.folder = lock.folder
        """Folder of the journal and the segments."""
        self.place = place
        """Folder in which the output is written: next to its final path, so that it can
        be moved atomically."""
        self.name = name
        """Name of the input in events."""
        self.label = label
        """Name of the input in messages."""
        self.listener = listener
        self.stop = stop or Stop()
        self.warnings: list[str] = []
        self._resume = resume
        self._overwrite = overwrite
        self._journal: Journal | None = None
        self._kept_aside = ""
        self._unkept = ""
        self._moved: list[Path] = []

    @property
    def journal(self) -> Journal:
        """The journal, after `open_journal`."""
        assert self._journal is not None, "the journal is open"
        return self._journal

    @property
    def untouched(self) -> bool:
        """Whether the remains of an earlier run have not been examined yet."""
        return self._journal is None

    @property
    def worth_keeping(self) -> bool:
        """Whether there is finished work that the same command can use later."""
        journal = self._journal
        return self._resume and journal is not None and journal.safe_frames > journal.first_frame

    @property
    def note(self) -> str | None:
        """Reason why the work resumes or starts over; None for a plain start."""
        if self.journal.placed:
            return f"{self.label}: already finished, {self.output} is in place (only the cleanup was interrupted)"
        if frames := self.journal.safe_frames - self.journal.first_frame:
            return f"{self.label}: resuming after {frames} finished frames of an interrupted run"
        if self.journal.fresh_because:
            return f"{self.label}: starting over, {self.journal.fresh_because}"
        return self._kept_aside or self._unkept or None

    def open_journal(self, fingerprint: Mapping[str, object], *, first_frame: int = 0) -> Journal:
        """Open the journal, discarding the remains of an interrupted run unless it is
        to be resumed. Raises UsageError if that run had a different task and its output
        is in place and must not be replaced.
        """
        with output_errors(self.output):
            if not self._resume:
                empty(self.folder)
            self._moved = moved_files(self.folder)
            change = version_change(self.folder, fingerprint) if self._resume else None
            if change is not None:
                self._set_aside(change)
            self._journal = Journal(self.folder, fingerprint, first_frame=first_frame)
        is_fresh = self._journal.fresh_because is not None or self._kept_aside
        if is_fresh and self._moved and not self._overwrite:
            raise exists_error(self._moved[0])
        return self._journal

    def _set_aside(self, change: str) -> None:
        """Set aside work that only a different version of the program or of a library
        can resume."""
        frames, name = count_frames(self.folder), self.folder.name
        kept = self._lock.set_aside()
        self._kept_aside = (
            f"{self.label}: starting over, {change}; the {frames} finished frames are kept in {kept}, "
            f"which that version resumes as {name} and `ultraflash clean` removes"
        )

    def keep_nothing(self, why: str) -> None:
        """Neither resume an earlier run nor allow resuming this one; to be called
        before the journal is open."""
        self._resume = False
        self._unkept = f"{self.label}: {why}; it cannot be resumed"

    def warn(self, message: str) -> None:
        """Warn once, now and in the report."""
        message = message.removesuffix(".")
        if message not in self.warnings:
            self.warnings.append(message)
            self.listener(Warned(input=self.name, message=message))

    def check_stop(self) -> None:
        """Raise Interrupted if a stop was requested, with a message on how much the
        same command can resume."""
        if self.stop.requested:
            raise self.stop.interruption(f"interrupted; {self._future}")

    @property
    def _future(self) -> str:
        """The message on how much the same command can resume."""
        kept = count_frames(self.folder) if self._resume else 0
        if kept:
            return f"{kept} frames are finished, the same command resumes there"
        return "nothing was kept, the same command starts over"

    def check_stream(self, stream: LiveStream) -> None:
        """Raise the error that ended the stream; if its reader closed it, state what is
        kept."""
        try:
            stream.check()
        except ReaderGone as error:
            raise ReaderGone(f"{error}; {self._future}") from error

    def stream_out(self, stream: LiveStream) -> int:
        """Wait until the stream has written everything; returns its number of frames. A
        stop takes effect at once."""
        try:
            with self.stop.at_once():
                stream.finish()
        except StopNow:
            self.check_stop()
        self.check_stream(stream)
        for note in stream.streamed.notes:
            self.warn(f"{stream.called}: {note}")
        return stream.streamed.frames

    def put_in_place(self, finishes: Mapping[Path, Finish], *, frames: int) -> None:
        """Write all outputs next to their final paths, then move them there in the
        given order; `frames` is the number of frames of the main one. A file with a
        final name has therefore always passed its check. Until all are written, a stop
        takes effect at once.
        """
        made = {output: self._made_path(number, output) for number, output in enumerate(finishes)}
        try:
            with self.stop.at_once():
                for output, finish in finishes.items():
                    with output_errors(self.output):
                        make_folder_anew(made[output].parent)
                    for note in finish.make(made[output]):
                        self.warn(note)
        except StopNow:
            self.check_stop()
        except OutputCheckError as error:
            found = str(error).removesuffix(".")
            raise OutputCheckError(f"{found}; the finished segments are kept, --no-resume starts over") from error

        with output_errors(self.output):
            moves = [
                (ready, target)
                for output, finish in finishes.items()
                for ready, target in zip(finish.files(made[output]), finish.files(output), strict=True)
            ]
            self._check_nothing_came_between([target for _, target in moves])
            if moves:
                files = tuple(MovedFile.of(ready, target) for ready, target in moves)
                self.journal.place(Placement(frames=frames, files=files))

        for output, finish in finishes.items():
            with output_errors(output):
                finish.move(made[output], output)
                for note in finish.remarks(output):
                    self.warn(note)

    def _made_path(self, number: int, output: Path) -> Path:
        """Return the path for writing an output; each has its own folder, as images
        have the same names."""
        return self.place / f"made-{number}" / fitted(output.name)

    def _check_nothing_came_between(self, targets: Sequence[Path]) -> None:
        """Raise an error rather than replace a file that has appeared since the run
        began."""
        if self._overwrite:
            return
        ours = set(self._moved)
        for target in targets:
            if os.path.lexists(target) and Path(os.path.abspath(target)) not in ours:
                raise exists_error(target)


@contextmanager
def locked_work(
    output: Path,
    *,
    temp: Path | None,
    name: str,
    label: str,
    resume: bool,
    overwrite: bool,
    listener: Listener,
    stop: Stop | None,
) -> Generator[Work]:
    """Lock the output and yield its work; finished work is kept if the block fails. It
    is kept in `temp` if that is given, else next to the output, where the lock always
    is. Raises OutputError if another run has locked the output.
    """
    place, folder = work_folder(output), unfinished_work(output, temp)
    with ExitStack() as stack:
        stack.callback(leave_private_folder, output.parent)
        lock = stack.enter_context(OutputLock(place))
        if folder != place:
            stack.callback(discard, place)
            lock = stack.enter_context(OutputLock(folder))
            sweep(place)

        found = count_frames(folder)
        work = Work(
            output,
            lock,
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
                discard(folder)
            raise

        for each in {folder, place}:
            if not discard(each) and each.is_dir():
                work.warn(
                    f"{each} was not removed: it contains files that ultraflash did not create; check and remove it"
                )
