"""Stream the output: write finished segments to stdout while later ones are being
computed."""

import select
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from io import RawIOBase
from queue import SimpleQueue
from types import TracebackType
from typing import BinaryIO, Self, cast

from ultraflash_cli.errors import OutputError
from ultraflash_cli.jobs.resume.entries import SegmentEntry
from ultraflash_cli.jobs.running.stop import Stop
from ultraflash_cli.video.live import Streamed
from ultraflash_cli.video.segment_file import SegmentFile
from ultraflash_cli.video.y4m import ByteSink

__all__ = ["STREAM_SEGMENT_FRAMES", "LiveStream", "ReaderGone"]

STREAM_SEGMENT_FRAMES = 24
"""Approximate minimum number of frames in a segment of a stream; its reader lags by
about one second."""


class ReaderGone(OutputError):
    """The reader of a stream has closed it."""


class _Abandoned(Exception):
    """The work has ended before the stream."""


class LiveStream(threading.Thread):
    """Writes segments to `stdout` in a separate thread, so that a slow reader does not
    block the work. `write` writes the segments of an iterator to a sink, whose name in
    messages is `name`. Unless `keeps` is set, the run cannot be resumed, and segments
    are deleted once written.
    """

    def __init__(
        self,
        write: Callable[[Iterator[SegmentFile], ByteSink], Streamed],
        stdout: BinaryIO,
        *,
        name: str = "-",
        stop: Stop,
        keeps: bool,
    ) -> None:
        super().__init__(name="streaming", daemon=True)
        self.stop: Stop = _StopOrFailure(stop, self)
        """Stop request of the work: from the user, or because the stream has failed."""
        self.failure: BaseException | None = None
        self.has_begun = False
        """Whether something may have been written, which cannot be undone."""
        self._write = write
        self.called = "stdout" if name == "-" else name
        """Name of the stream in messages."""
        self._sink = _Sink(stdout, self.called)
        self._keeps = keeps
        self._segments: SimpleQueue[SegmentEntry | _Abandoned | None] = SimpleQueue()
        self._streamed: Streamed | None = None

    def begin(self, finished: Iterable[SegmentEntry]) -> None:
        """Start with the segments of an interrupted run; called again if the job starts
        over."""
        for segment in finished:
            self.add(segment)
        if not self.is_alive() and self.failure is None:
            self.start()

    def add(self, segment: SegmentEntry) -> None:
        """Write a finished segment after the others."""
        self._segments.put(segment)

    def keep_nothing(self) -> None:
        """From now on, delete segments once they are written; to be called before the
        first one is."""
        self._keeps = False

    def finish(self) -> None:
        """Wait until everything is written, or writing has failed."""
        self._segments.put(None)
        self.join()

    @property
    def streamed(self) -> Streamed:
        """The record of everything written. Raises the writer's error."""
        self.check()
        assert self._streamed is not None, "what is finished and has not failed has a result"
        return self._streamed

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give up if the block failed, rather than wait for a stalled reader."""
        if error is not None:
            self._segments.put(_Abandoned())

    def check(self) -> None:
        """Raise the writer's error."""
        if self.failure is not None:
            raise self.failure

    def run(self) -> None:
        try:
            self._streamed = self._write(self._waited_for(), self._sink)
        except BaseException as error:
            self.failure = error

    def _waited_for(self) -> Iterator[SegmentFile]:
        while (segment := self._segments.get()) is not None:
            if isinstance(segment, _Abandoned):
                raise segment
            main = segment.files[0]
            if main is not None:
                self.has_begun = True
                yield main
            if not self._keeps:
                _delete(segment)


class _StopOrFailure(Stop):
    """A stop that is requested if another one is, or if the stream has failed."""

    def __init__(self, stop: Stop, stream: LiveStream) -> None:
        super().__init__()
        self._stop = stop
        self._stream = stream

    @property
    def requested(self) -> bool:
        return self._stop.requested or self._stream.failure is not None


class _Sink:
    """Unbuffered standard output: a thread waiting for a reader must not hold a lock at exit."""

    def __init__(self, stdout: BinaryIO, name: str) -> None:
        self._name = name
        self._raw = cast(RawIOBase | BinaryIO, getattr(stdout, "raw", stdout))
        stdout.flush()

    def write(self, content: bytes, /) -> int:
        left = memoryview(content)
        try:
            while left:
                taken = self._raw.write(left)
                if taken is None:  # a non-blocking pipe that is full
                    select.select([], [self._raw], [])
                else:
                    left = left[taken:]
        except BrokenPipeError as error:
            raise ReaderGone(f"{self._name} was closed by its reader") from error
        return len(content)

    def flush(self) -> None:
        """Do nothing: writes are unbuffered."""


def _delete(segment: SegmentEntry) -> None:
    for file in segment.files:
        if file is not None:
            with suppress(OSError):
                file.path.unlink()
