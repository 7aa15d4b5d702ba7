"""The loop of an upscaled clip: a reading thread, the model in the caller's thread, a
writing thread, and bounded queues between them."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ultraflash_cli.buffers import SEGMENT_FRAMES, StateContent, queue_places, segment_length
from ultraflash_cli.engine.gpu_streams import PendingPicture
from ultraflash_cli.jobs.resume.entries import SegmentEntry
from ultraflash_cli.jobs.resume.journal import Journal
from ultraflash_cli.jobs.running.channel import Cancelled, Channel
from ultraflash_cli.jobs.running.segments import (
    Busy,
    Guarded,
    OpenSegment,
    Pause,
    SegmentEnd,
    SegmentThread,
)
from ultraflash_cli.jobs.running.stop import Stop
from ultraflash_cli.models.frames import FrameUpscaler, finished_picture
from ultraflash_cli.video.frame import Frame
from ultraflash_cli.video.segment_file import SegmentSink

__all__ = ["SourceFrame", "move_frames"]


@dataclass(frozen=True)
class SourceFrame:
    """A frame of the input for the model."""

    number: int
    """Number of the frame, counted from 0 at the start of the clip."""
    starts_scene: bool
    frame: Frame
    times: tuple[tuple[int, int], ...] | None = None
    """Timestamp and duration of each output frame made from it; None if it yields one frame with its own timing."""


@dataclass(frozen=True)
class _Picture:
    source: SourceFrame
    rgb_hwc: np.ndarray | PendingPicture


def move_frames(
    source: Callable[[], Iterator[SourceFrame]],
    upscaler: FrameUpscaler,
    journal: Journal,
    open_segment: OpenSegment,
    *,
    output: Path,
    seed: int,
    output_frame_bytes: int,
    source_frame_bytes: int,
    stop: Stop,
    busy: Busy,
    on_group: Callable[[int], None],
    write: Callable[[SegmentSink, SourceFrame, np.ndarray], None] | None = None,
    pausable: bool = True,
    keep_states: bool = True,
    segment_frames: int = SEGMENT_FRAMES,
    on_segment: Callable[[SegmentEntry], None] | None = None,
) -> bool:
    """Process every frame that the journal does not have yet with the model, and write
    finished segments. `source` is called in the reading thread and yields the whole
    clip from frame 0; `on_group` is called after every group with the number of
    finished frames; `output` names the output in errors; `write` writes a frame of the
    source and its finished picture to a segment. Returns False when `stop` was
    requested before the end; with `pausable` every group finished by then is kept, else
    only whole segments; without `keep_states` the run cannot be resumed. `on_segment`
    is called for every finished segment. Raises the errors of all stages; finished
    segments stay in the journal.
    """
    write_one = write or _write_as_it_is

    def write_all(sinks: Sequence[SegmentSink], item: _Picture) -> None:
        rgb_hwc = finished_picture(item.rgb_hwc)
        for sink in sinks:
            write_one(sink, item.source, rgb_hwc)

    reader = _Reader(source, journal.safe_frames, queue_places(source_frame_bytes), stop, busy)
    writer = SegmentThread(
        journal,
        open_segment,
        write_all,
        output=output,
        places=queue_places(output_frame_bytes, group_frames=upscaler.group_frames(False)),
        busy=busy,
        pausable=pausable,
        on_segment=on_segment,
    )
    model = _Model(upscaler, journal, writer.channel, segment_frames, seed, busy, on_group, pausable, keep_states)
    reader.start()
    try:
        return writer.serve(lambda: model.run(reader.channel, stop))
    finally:
        reader.channel.cancel()
        reader.join()


def _write_as_it_is(sink: SegmentSink, source: SourceFrame, rgb_hwc: np.ndarray) -> None:
    sink.write(Frame(source.frame.pts, source.frame.duration, rgb_hwc))


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


@dataclass
class _Model:
    """The middle stage: takes groups, passes on pictures and segment ends."""

    upscaler: FrameUpscaler
    journal: Journal
    pictures: "Channel[_Picture | SegmentEnd | Pause]"
    segment_frames: int
    seed: int
    busy: Busy
    on_group: Callable[[int], None]
    pausable: bool
    keep_states: bool
    _state: Any = None
    _scene_first: int = 0
    _scene_groups: int = 0
    _done: int = 0
    _begun: int = 0
    _kept: int = 0
    _groups_in_segment: int = 1
    _segment_groups: int = 0
    _segment_first: int = 0
    _guarded_before: tuple[int, int] | None = (0, 0)
    _in_flight: deque[SourceFrame] = field(default_factory=lambda: deque[SourceFrame]())

    def run(self, source: Channel[SourceFrame], stop: Stop) -> bool:
        """Work until the source ends (True) or a stop is requested (False)."""
        self._restore()
        held = self.upscaler.held(self._state) if self._state is not None else 0
        group: list[SourceFrame] = []
        while (frame := source.get()) is not None:
            if stop.requested:
                return self._pause()
            if len(self._in_flight) < held:
                # The saved state already includes this frame; only its picture is
                # pending.
                self._in_flight.append(frame)
                continue

            held = 0
            if self._state is not None and frame.starts_scene:
                self._end_scene(group)
                group = []

            if self._state is None:
                self._begin_scene(frame.number)
            group.append(frame)
            if len(group) == self.upscaler.group_frames(self._scene_groups == 0):
                self._push(group)
                group = []
                self._end_group()
        if stop.requested:
            return self._pause()
        if self._state is not None:
            self._end_scene(group)
        return True

    def _pause(self) -> bool:
        """Keep the current segment as far as it is finished; returns False."""
        if self.pausable and self._state is not None and self._done > self._kept:
            state = self.upscaler.save_state(self._state)
            self.pictures.put(Pause(self._done, self._scene_first, self._segment_groups, state, self._guarded()))
        return False

    def _restore(self) -> None:
        journal = self.journal
        self._done = self._kept = self._begun = journal.safe_frames
        self._segment_first = journal.frames
        self._guarded_before = journal.guarded if self._done > journal.first_frame else (0, 0)
        # A model that was used for another part of the clip has counted that part as
        # well.
        if self._guarded_before is not None and (counting := self.upscaler.guarded()) is not None:
            strayed, compared = counting()
            self._guarded_before = self._guarded_before[0] - strayed, self._guarded_before[1] - compared
        content = journal.state_bytes()
        if content is not None:
            self._scene_first = journal.scene_first
            self._state = self.upscaler.load_state(content, seed=self.seed, first_frame=self._scene_first)
            self._scene_groups = 1
            self._segment_groups = journal.begun.groups if journal.begun is not None else 0
            self._plan_segments()

    def _begin_scene(self, first_frame: int) -> None:
        self._scene_first = first_frame
        self._state = self.upscaler.init_state(seed=self.seed, first_frame=first_frame)
        self._scene_groups = 0
        self._segment_groups = 0
        self._plan_segments()

    def _plan_segments(self) -> None:
        saved_bytes = self.upscaler.state_bytes(self._state) if self.keep_states else 0
        frames = segment_length(self.segment_frames, saved_bytes)
        self._groups_in_segment = max(1, frames // self.upscaler.group_frames(False))

    def _push(self, group: list[SourceFrame]) -> None:
        self._in_flight.extend(group)
        started_s = time.perf_counter()
        self._state, pictures = self.upscaler.step(self._state, [each.frame.rgb_hwc for each in group])
        self.busy.model += time.perf_counter() - started_s
        finished = deque(pictures)
        del pictures
        self._hand_on(finished)

    def _end_group(self) -> None:
        held = self.upscaler.held(self._state)
        assert len(self._in_flight) == held, f"a group left {len(self._in_flight)} frames inside the model, not {held}"
        self._scene_groups += 1
        self._segment_groups += 1
        if self._segment_groups >= self._groups_in_segment and self._done > self._segment_first:
            self._end_segment(self.upscaler.save_state(self._state) if self.keep_states else None)
        self.on_group(self._done)

    def _end_scene(self, group: list[SourceFrame]) -> None:
        self._in_flight.extend(group)
        started_s = time.perf_counter()
        finished = deque(self.upscaler.end(self._state, [each.frame.rgb_hwc for each in group]))
        self.busy.model += time.perf_counter() - started_s
        self._hand_on(finished)
        assert not self._in_flight, f"the end of a scene left {len(self._in_flight)} frames inside the model"
        self._state = None
        if self._done > self._segment_first:
            self._end_segment(None)
        self.on_group(self._done)

    def _hand_on(self, pictures: deque[np.ndarray | PendingPicture]) -> None:
        """Pass finished pictures on, releasing each."""
        if pictures and self._done == self._begun:
            finished_picture(pictures[0])  # so that the time to the first frame is exact
        while pictures:
            self.pictures.put(_Picture(self._in_flight.popleft(), pictures.popleft()))
            self._done += 1

    def _guarded(self) -> Guarded | None:
        """Return the number of pixels blended back so far, including earlier runs; None
        without a guard, or if unknown for one of them."""
        before, counting = self._guarded_before, self.upscaler.guarded()
        if before is None or counting is None:
            return None
        return lambda: (before[0] + counting()[0], before[1] + counting()[1])

    def _end_segment(self, state: StateContent | None) -> None:
        self.pictures.put(SegmentEnd(self._done, self._scene_first, state, self._guarded()))
        self._segment_groups = 0
        self._segment_first = self._kept = self._done
