"""The writing side of a job: a thread that encodes behind the model and enters finished segments in the journal."""

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Generic, Protocol, Self, TypeVar

from ultraflash_cli.jobs.channel import Cancelled, Channel
from ultraflash_cli.jobs.journal import Journal

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "SEGMENT_FRAMES",
    "Busy",
    "OpenSegment",
    "SegmentEnd",
    "SegmentSink",
    "SegmentThread",
    "queue_places",
    "segment_length",
]

SEGMENT_FRAMES = 72
"""About the least frames of a segment, which ends with a group: three seconds of film, what a power cut can cost."""

_STATE_BYTES_PER_FRAME = 24 << 20
"""A segment is so long that saving the state after it costs no more than this for each of its frames."""

_QUEUE_BYTES = 256 << 20
_QUEUE_FRAMES = 32
"""What a queue holds at most, whichever is less."""

T = TypeVar("T")


class SegmentSink(Protocol):
    """A segment being written: `close` finalises and syncs it; leaving by an exception drops it."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None: ...

    def write(self, rgb_hwc: "np.ndarray", pts: int, duration: int) -> None: ...

    def close(self) -> object: ...


OpenSegment = Callable[[Path], Sequence[SegmentSink]]
"""Opens a segment at a path, with further ones beside it (names that begin with the path's) where a job writes more
than one output."""


@dataclass
class Busy:
    """Seconds that each of the three sides has worked, waiting not counted; written by their own threads."""

    reading: float = 0.0
    model: float = 0.0
    writing: float = 0.0

    @property
    def limit(self) -> str:
        """Name the side that the other two wait for."""
        sides = {"reading": self.reading, "model": self.model, "writing": self.writing}
        return max(sides, key=lambda side: sides[side])


@dataclass(frozen=True)
class SegmentEnd:
    """The end of a segment on its way to the writer."""

    end_frame: int
    scene_first: int
    state: bytes | None


def segment_length(at_least: int, state_bytes: int) -> int:
    """Give the frames of a segment, from sizes alone: the same job has the same borders wherever it runs."""
    return max(at_least, -(-state_bytes // _STATE_BYTES_PER_FRAME))


def queue_places(frame_bytes: int) -> int:
    """Give how many frames of so many bytes wait in a queue at most."""
    return max(2, min(_QUEUE_FRAMES, _QUEUE_BYTES // frame_bytes))


class SegmentThread(threading.Thread, Generic[T]):
    """Encodes what its channel brings, `write` being how one item goes into the segment's sinks."""

    def __init__(
        self,
        journal: Journal,
        open_segment: OpenSegment,
        write: Callable[[Sequence[SegmentSink], T], None],
        *,
        output: Path,
        places: int,
        busy: Busy,
    ) -> None:
        super().__init__(name="writing", daemon=True)
        self.channel: Channel[T | SegmentEnd] = Channel(places)
        self.failure: BaseException | None = None
        self._journal = journal
        self._open_segment = open_segment
        self._write = write
        self._output = output
        self._busy = busy

    def serve(self, work: Callable[[], bool]) -> bool:
        """Do `work`, which fills the channel, while this thread writes; tells whether all of it was done.

        The journal is complete then. Raises what either side raises; finished segments stay in the journal.
        """
        from ultraflash_cli.video.partial import output_errors

        self.start()
        finished = False
        try:
            finished = work()
            self.channel.close()
            self.join()
        except Cancelled:
            # The writer gave up; its failure is the one to tell.
            self.join()
        except Exception:
            # What the model has finished is written before its failure is told.
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
        from ultraflash_cli.video.partial import output_errors

        try:
            with output_errors(self._output):
                while (item := self.channel.get()) is not None:
                    assert not isinstance(item, SegmentEnd), "a segment begins with a picture"
                    self._write_segment(item)
        except Cancelled:
            return
        except BaseException as error:
            self.failure = error
        finally:
            self.channel.cancel()

    def _write_segment(self, first: T) -> None:
        """Write from `first` to the segment's end; raises Cancelled when the clip was stopped before it."""
        journal = self._journal
        path = journal.segment_path()
        item: T | SegmentEnd | None = first
        with ExitStack() as stack:
            sinks = [stack.enter_context(sink) for sink in self._open_segment(path)]
            while item is not None and not isinstance(item, SegmentEnd):
                started_s = time.perf_counter()
                self._write(sinks, item)
                self._busy.writing += time.perf_counter() - started_s
                item = self.channel.get()
            if item is None:
                raise Cancelled
            started_s = time.perf_counter()
            for sink in sinks:
                sink.close()
        journal.add(
            path, first_frame=journal.frames, end_frame=item.end_frame, scene_first=item.scene_first, state=item.state
        )
        self._busy.writing += time.perf_counter() - started_s
