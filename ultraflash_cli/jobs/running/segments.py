"""The writer thread of a job, which encodes the model's output and enters finished
segments in the journal."""

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Generic, Self, TypeVar

from ultraflash_cli.buffers import StateContent
from ultraflash_cli.jobs.resume.entries import SegmentEntry
from ultraflash_cli.jobs.resume.journal import Journal
from ultraflash_cli.jobs.resume.spool import Spool, Spooled, spooled
from ultraflash_cli.jobs.running.channel import Cancelled, Channel
from ultraflash_cli.video.frame import Frame
from ultraflash_cli.video.partial import output_errors
from ultraflash_cli.video.segment_file import SegmentFile, SegmentSink

__all__ = [
    "Busy",
    "Guarded",
    "OpenSegment",
    "Pause",
    "SegmentEnd",
    "SegmentThread",
]

T = TypeVar("T")


OpenSegment = Callable[[Path], Sequence[SegmentSink]]
"""Opens a segment at a path, and one for each additional output of the job."""


Guarded = Callable[[], tuple[int, int]]
"""Returns the number of pixels of the clip so far that were blended back, and the
number of all."""


@dataclass
class Busy:
    """Busy seconds of the three stages, excluding waiting; each is written by its own
    thread."""

    reading: float = 0.0
    model: float = 0.0
    writing: float = 0.0

    @property
    def limit(self) -> str:
        """Return the name of the bottleneck."""
        sides = {"reading": self.reading, "model": self.model, "writing": self.writing}
        return max(sides, key=lambda side: sides[side])


@dataclass(frozen=True)
class SegmentEnd:
    """Marks the end of a segment for the writer."""

    end_frame: int
    scene_first: int
    state: StateContent | None
    guarded: Guarded | None = None


@dataclass(frozen=True)
class Pause:
    """Marks a stop between two groups of a segment for the writer."""

    end_frame: int
    scene_first: int
    groups: int
    """Number of groups in the segment so far."""
    state: StateContent
    guarded: Guarded | None = None


class SegmentThread(threading.Thread, Generic[T]):
    """Encodes the items of its channel; `write` writes one item to the segment's sinks.
    `pausable` keeps the pictures of the current segment on disk, as a `Pause` requires.
    `on_segment` is called for every finished segment.
    """

    def __init__(
        self,
        journal: Journal,
        open_segment: OpenSegment,
        write: Callable[[Sequence[SegmentSink], T], None],
        *,
        output: Path,
        places: int,
        busy: Busy,
        pausable: bool,
        on_segment: Callable[[SegmentEntry], None] | None = None,
    ) -> None:
        super().__init__(name="writing", daemon=True)
        self.channel: Channel[T | SegmentEnd | Pause] = Channel(places)
        self.failure: BaseException | None = None
        self._journal = journal
        self._open_segment = open_segment
        self._write = write
        self._output = output
        self._busy = busy
        self._pausable = pausable
        self._on_segment = on_segment

    def serve(self, work: Callable[[], bool]) -> bool:
        """Run `work`, which fills the channel, while this thread writes; return whether
        it was completed, in which case the journal is complete. Raises the errors of
        either side; finished segments stay in the journal.
        """
        self.start()
        finished = False
        try:
            finished = work()

            self.channel.close()
            self.join()
        except Cancelled:
            # The writer gave up; report its failure instead.
            self.join()
        except Exception:
            # Write what the model has finished before reporting its failure.
            self.channel.close()
            self.join()
            raise
        except BaseException:
            self.channel.cancel()
            self.join()
            raise
        if self.failure is not None:
            raise self.failure
        if finished:
            with output_errors(self._output):
                self._journal.finish()
        return finished

    def run(self) -> None:
        try:
            with output_errors(self._output):
                if self._journal.begun is not None:
                    self._write_segment(None)
                while (item := self.channel.get()) is not None:
                    assert not isinstance(item, SegmentEnd | Pause), "a segment begins with a picture"
                    self._write_segment(item)
        except Cancelled:
            pass
        except BaseException as error:
            self.failure = error
        finally:
            self.channel.cancel()

    def _write_segment(self, first: T | None) -> None:
        """Write from `first`, or from the remains of a stopped run, to the end of the
        segment. Raises Cancelled if the clip was stopped before that.
        """
        journal = self._journal
        begun = journal.begun_path()
        with ExitStack() as stack:
            sinks: Sequence[SegmentSink] = [
                stack.enter_context(sink) for sink in self._open_segment(journal.segment_path())
            ]
            self._write_begun(sinks)
            end = self._fill(sinks, first)

            started_s = time.perf_counter()
            entry = journal.add(
                [sink.close() for sink in sinks],
                first_frame=journal.frames,
                end_frame=end.end_frame,
                scene_first=end.scene_first,
                state=end.state,
                guarded=end.guarded() if end.guarded is not None else None,
            )
        begun.unlink(missing_ok=True)
        self._busy.writing += time.perf_counter() - started_s
        if self._on_segment is not None:
            self._on_segment(entry)

    def _fill(self, sinks: Sequence[SegmentSink], first: T | None) -> SegmentEnd:
        """Write from `first` to the end of the segment; raises Cancelled if the clip
        was stopped before that."""
        journal = self._journal
        with ExitStack() as stack:
            spool = None
            recorded = sinks
            if self._pausable:
                keep_bytes = journal.begun.size_bytes if journal.begun is not None else 0
                spool = stack.enter_context(Spool(journal.begun_path(), keep_bytes=keep_bytes))
                recorded = [_Recorded(number, sink, spool) for number, sink in enumerate(sinks)]

            item = first if first is not None else self.channel.get()
            while item is not None and not isinstance(item, SegmentEnd | Pause):
                started_s = time.perf_counter()
                self._write(recorded, item)
                self._busy.writing += time.perf_counter() - started_s
                item = self.channel.get()

            if isinstance(item, Pause) and spool is not None:
                self._keep_begun(item, spool)
            if not isinstance(item, SegmentEnd):
                raise Cancelled
            return item

    def _write_begun(self, sinks: Sequence[SegmentSink]) -> None:
        """Re-encode the pictures that a stopped run kept of this segment."""
        begun = self._journal.begun
        if begun is None:
            return
        started_s = time.perf_counter()
        for call in spooled(self._journal.begun_path(), begun.size_bytes):
            sinks[call.sink].write(call.frame)
        self._busy.writing += time.perf_counter() - started_s

    def _keep_begun(self, pause: Pause, spool: Spool) -> None:
        size_bytes = spool.finish()
        if size_bytes is not None:
            self._journal.begin(
                size_bytes,
                end_frame=pause.end_frame,
                scene_first=pause.scene_first,
                groups=pause.groups,
                state=pause.state,
                guarded=pause.guarded() if pause.guarded is not None else None,
            )


class _Recorded:
    """A sink whose calls are also spooled; opening and closing are left to the sink's
    owner."""

    def __init__(self, number: int, sink: SegmentSink, spool: Spool) -> None:
        self._number = number
        self._sink = sink
        self._spool = spool

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def write(self, frame: Frame) -> None:
        self._sink.write(frame)
        self._spool.record(Spooled(self._number, frame))

    def close(self) -> SegmentFile | None:
        return self._sink.close()
