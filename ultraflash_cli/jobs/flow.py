"""Frames on their way: a reading thread, the model in the caller's thread, a writing thread, bounded queues between."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

from ultraflash_cli.jobs.channel import Cancelled, Channel
from ultraflash_cli.jobs.journal import Journal
from ultraflash_cli.jobs.stop import Stop

if TYPE_CHECKING:
    import numpy as np

__all__ = ["SEGMENT_FRAMES", "Busy", "FrameUpscaler", "SegmentSink", "SourceFrame", "move_frames"]

SEGMENT_FRAMES = 72
"""About the frames of a segment, which ends with a group: three seconds of film, what a power cut can cost at most."""

_QUEUE_BYTES = 256 << 20
_QUEUE_FRAMES = 32
"""What a queue holds at most, whichever is less."""


class FrameUpscaler(Protocol):
    """The model as a job sees it: pictures in, pictures out, the state in the job's hands."""

    @property
    def stage_seconds(self) -> dict[str, float]:
        """Time spent so far by stage."""
        ...

    def group_frames(self, first: bool) -> int:
        """Count the frames of a group: of the first one of a scene, or of a later one."""
        ...

    def init_state(self, *, seed: int, first_frame: int) -> Any:
        """Give the state before a scene that begins at frame `first_frame` of the clip."""
        ...

    def step(self, state: Any, frames: "list[np.ndarray]") -> "tuple[Any, list[np.ndarray]]":
        """Take frames `[H, W, 3]`, give the new state and the frames that are finished."""
        ...

    def flush(self, state: Any) -> "list[np.ndarray]":
        """End the scene: give the frames that are still queued."""
        ...

    def save_state(self, state: Any) -> bytes:
        """Give the state as safetensors bytes."""
        ...

    def load_state(self, content: bytes, *, seed: int, first_frame: int) -> Any:
        """Give the state that `save_state` saved in the scene that begins at `first_frame`."""
        ...


class SegmentSink(Protocol):
    """A segment being written: `close` finalises and syncs it; leaving by an exception drops it."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None: ...

    def write(self, rgb_hwc: "np.ndarray", pts: int, duration: int) -> None: ...

    def close(self) -> object: ...


@dataclass(frozen=True)
class SourceFrame:
    """One frame of the input on its way to the model."""

    number: int
    """Counted from 0 at the start of the clip."""
    starts_scene: bool
    rgb_hwc: "np.ndarray"
    pts: int
    duration: int


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
class _Picture:
    source: SourceFrame
    rgb_hwc: "np.ndarray"


@dataclass(frozen=True)
class _SegmentEnd:
    end_frame: int
    scene_first: int
    state: bytes | None


def move_frames(
    source: Callable[[], Iterator[SourceFrame]],
    upscaler: FrameUpscaler,
    journal: Journal,
    open_segment: Callable[[Path], SegmentSink],
    *,
    output: Path,
    segment_frames: int,
    seed: int,
    output_frame_bytes: int,
    source_frame_bytes: int,
    stop: Stop,
    busy: Busy,
    on_group: Callable[[int], None],
    compose: Callable[["np.ndarray", "np.ndarray"], "np.ndarray"] | None = None,
) -> bool:
    """Bring every frame that the journal does not have yet through the model into finished segments.

    `source` is called in the reading thread and gives the whole clip from frame 0; `on_group` hears, after every
    group, how many frames are done; `output` is what failures to write are said of; `compose` makes the picture to
    write from a frame of the source and the finished one. Returns False when `stop` was requested before the end.
    Raises what any of the sides raises; finished segments stay in the journal.
    """
    from ultraflash_cli.video.partial import output_errors

    reader = _Reader(source, journal.frames, _capacity(source_frame_bytes), stop, busy)
    writer = _Writer(journal, open_segment, output, compose, _capacity(output_frame_bytes), busy)
    groups = max(1, segment_frames // upscaler.group_frames(False))
    model = _Model(upscaler, journal, writer.channel, groups, seed, busy, on_group)
    finished = False
    reader.start()
    writer.start()
    try:
        finished = model.run(reader.channel, stop)
        writer.channel.close()
        writer.join()
    except Cancelled:
        # The writer gave up; its failure is the one to tell.
        writer.join()
    except Exception:
        # What the model has finished is written before its failure is told.
        writer.channel.close()
        writer.join()
        raise
    except BaseException:
        writer.channel.cancel()
        writer.join()
        raise
    finally:
        reader.channel.cancel()
        reader.join()
    if writer.failure is not None:
        raise writer.failure
    if finished:
        with output_errors(output):
            journal.finish()
    return finished


def _capacity(frame_bytes: int) -> int:
    return max(2, min(_QUEUE_FRAMES, _QUEUE_BYTES // frame_bytes))


class _Reader(threading.Thread):
    """Decodes ahead of the model."""

    def __init__(
        self, source: Callable[[], Iterator[SourceFrame]], skip: int, capacity: int, stop: Stop, busy: Busy
    ) -> None:
        super().__init__(name="reading", daemon=True)
        self.channel: Channel[SourceFrame] = Channel(capacity)
        self._source = source
        self._skip = skip
        self._wish = stop
        self._busy = busy

    def run(self) -> None:
        started_s = time.perf_counter()
        try:
            for frame in self._source():
                if self._wish.requested:
                    break
                if frame.number >= self._skip:
                    self.channel.put(frame)
                self._busy.reading = time.perf_counter() - started_s - self.channel.put_wait_s
        except Cancelled:
            return
        except BaseException as failure:
            self.channel.close(failure)
        else:
            self.channel.close()


class _Writer(threading.Thread):
    """Encodes behind the model and enters finished segments in the journal."""

    def __init__(
        self,
        journal: Journal,
        open_segment: Callable[[Path], SegmentSink],
        output: Path,
        compose: Callable[["np.ndarray", "np.ndarray"], "np.ndarray"] | None,
        capacity: int,
        busy: Busy,
    ) -> None:
        super().__init__(name="writing", daemon=True)
        self.channel: Channel[_Picture | _SegmentEnd] = Channel(capacity)
        self.failure: BaseException | None = None
        self._journal = journal
        self._open_segment = open_segment
        self._output = output
        self._compose = compose
        self._busy = busy

    def run(self) -> None:
        from ultraflash_cli.video.partial import output_errors

        try:
            with output_errors(self._output):
                while (item := self.channel.get()) is not None:
                    assert isinstance(item, _Picture), "a segment begins with a picture"
                    self._write_segment(item)
        except Cancelled:
            return
        except BaseException as error:
            self.failure = error
        finally:
            self.channel.cancel()

    def _write_segment(self, first: _Picture) -> None:
        """Write from `first` to the segment's end; raises Cancelled when the clip was stopped before it."""
        journal = self._journal
        path = journal.segment_path()
        item: _Picture | _SegmentEnd | None = first
        with self._open_segment(path) as segment:
            while isinstance(item, _Picture):
                started_s = time.perf_counter()
                source, sharp = item.source.rgb_hwc, item.rgb_hwc
                picture = self._compose(source, sharp) if self._compose is not None else sharp
                segment.write(picture, item.source.pts, item.source.duration)
                self._busy.writing += time.perf_counter() - started_s
                item = self.channel.get()
            if item is None:
                raise Cancelled
            started_s = time.perf_counter()
            segment.close()
        journal.add(
            path, first_frame=journal.frames, end_frame=item.end_frame, scene_first=item.scene_first, state=item.state
        )
        self._busy.writing += time.perf_counter() - started_s


@dataclass
class _Model:
    """The middle: groups in, pictures and segment ends out."""

    upscaler: FrameUpscaler
    journal: Journal
    pictures: "Channel[_Picture | _SegmentEnd]"
    groups_in_segment: int
    seed: int
    busy: Busy
    on_group: Callable[[int], None]
    _state: Any = None
    _scene_first: int = 0
    _done: int = 0
    _segment_groups: int = 0
    _segment_first: int = 0
    _in_flight: deque[SourceFrame] = field(default_factory=lambda: deque[SourceFrame]())

    def run(self, source: Channel[SourceFrame], stop: Stop) -> bool:
        """Work until the source ends (True) or a stop is requested (False)."""
        self._restore()
        group: list[SourceFrame] = []
        while (frame := source.get()) is not None:
            if stop.requested:
                return False
            if self._state is not None and frame.starts_scene:
                self._end_scene(group)
                group = []
            if self._state is None:
                self._begin_scene(frame.number)
            group.append(frame)
            first = self._done == self._scene_first
            if len(group) == self.upscaler.group_frames(first):
                self._push(group)
                group = []
                self._end_group()
        if stop.requested:
            return False
        if self._state is not None:
            self._end_scene(group)
        return True

    def _restore(self) -> None:
        self._done = self._segment_first = self.journal.frames
        content = self.journal.state_bytes()
        if content is not None:
            self._scene_first = self.journal.segments[-1].scene_first
            self._state = self.upscaler.load_state(content, seed=self.seed, first_frame=self._scene_first)

    def _begin_scene(self, first_frame: int) -> None:
        self._scene_first = first_frame
        self._state = self.upscaler.init_state(seed=self.seed, first_frame=first_frame)
        self._segment_groups = 0

    def _push(self, group: list[SourceFrame]) -> None:
        self._in_flight.extend(group)
        started_s = time.perf_counter()
        self._state, pictures = self.upscaler.step(self._state, [frame.rgb_hwc for frame in group])
        self.busy.model += time.perf_counter() - started_s
        self._hand_on(pictures)

    def _end_group(self) -> None:
        assert not self._in_flight, f"a whole group left {len(self._in_flight)} frames inside the model"
        self._segment_groups += 1
        if self._segment_groups == self.groups_in_segment:
            self._end_segment(self.upscaler.save_state(self._state))
        self.on_group(self._done)

    def _end_scene(self, group: list[SourceFrame]) -> None:
        if group:
            self._push(group)
        started_s = time.perf_counter()
        pictures = self.upscaler.flush(self._state)
        self.busy.model += time.perf_counter() - started_s
        self._hand_on(pictures)
        assert not self._in_flight, f"the end of a scene left {len(self._in_flight)} frames inside the model"
        self._state = None
        if self._done > self._segment_first:
            self._end_segment(None)
        self.on_group(self._done)

    def _hand_on(self, pictures: "list[np.ndarray]") -> None:
        pictures.reverse()
        while pictures:
            self.pictures.put(_Picture(self._in_flight.popleft(), pictures.pop()))
            self._done += 1

    def _end_segment(self, state: bytes | None) -> None:
        self.pictures.put(_SegmentEnd(self._done, self._scene_first, state))
        self._segment_groups = 0
        self._segment_first = self._done
