"""The loop of a generated clip: the model in the caller's thread, a writing thread, and
a bounded queue between them."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np

from ultraflash_cli.buffers import SEGMENT_FRAMES, queue_places, segment_length
from ultraflash_cli.jobs.resume.entries import SegmentEntry
from ultraflash_cli.jobs.resume.journal import Journal
from ultraflash_cli.jobs.running.segments import Busy, OpenSegment, Pause, SegmentEnd, SegmentThread
from ultraflash_cli.jobs.running.stop import Stop
from ultraflash_cli.models.frames import FrameGenerator, Pictures, finished_picture
from ultraflash_cli.video.frame import Frame
from ultraflash_cli.video.segment_file import SegmentSink

__all__ = ["make_frames", "segment_ends"]


@dataclass(frozen=True)
class _Made:
    number: int
    pictures: Pictures


def make_frames(
    generator: FrameGenerator,
    journal: Journal,
    open_segment: OpenSegment,
    *,
    output: Path,
    frames: int,
    show: Callable[[int], Iterator[tuple[int, int]]],
    seed: int,
    clip: list[np.ndarray] | None,
    frame_bytes: int,
    stop: Stop,
    busy: Busy,
    on_group: Callable[[int], None],
    keep_states: bool = True,
    segment_frames: int = SEGMENT_FRAMES,
    on_segment: Callable[[SegmentEntry], None] | None = None,
) -> dict[str, int]:
    """Generate every group that the journal does not have yet, and write finished
    segments. The clip consists of the first `frames` frames of the groups. `show`
    returns timestamp and duration of each picture for a frame: one, none if the frame
    is dropped, several if it is repeated. `clip` is the clip to continue; `on_group` is
    called after every group with the number of finished frames; `output` names the
    output in errors; `keep_states` saves the states needed for resuming; `on_segment`
    is called for every finished segment. Returns the model's counters. The journal is
    not complete when `stop` was requested before the end. Raises what either side
    raises; finished segments stay in it.
    """

    def write(sinks: Sequence[SegmentSink], item: _Made) -> None:
        pictures = [finished_picture(picture) for picture in item.pictures]
        for pts, duration in show(item.number):
            for sink, picture in zip(sinks, pictures, strict=True):
                sink.write(Frame(pts, duration, picture))

    writer = SegmentThread(
        journal,
        open_segment,
        write,
        output=output,
        places=queue_places(frame_bytes, group_frames=max(generator.group_frames)),
        busy=busy,
        pausable=keep_states,
        on_segment=on_segment,
    )
    counters: dict[str, int] = {}

    def work() -> bool:
        borders = [min(end, frames) for end in accumulate(generator.group_frames)]
        done = kept = begun = journal.safe_frames
        assert borders[-1] == frames, f"the groups give {borders[-1]} frames, {frames} are wanted"
        if done == frames:
            return True

        assert done in (0, *borders), f"{done} frames are no whole groups"
        content = journal.state_bytes()
        started_s = time.perf_counter()
        if content is None:
            state = generator.init_state(seed=seed, clip=clip)
        else:
            state = generator.load_state(content, seed=seed)

        busy.model += time.perf_counter() - started_s
        del content
        saved_bytes = generator.state_bytes(state) if keep_states else 0
        ends = segment_ends(borders, segment_length(segment_frames, saved_bytes))
        for border in borders[borders.index(done) + 1 if done else 0 :]:
            if stop.requested:
                if keep_states and done > kept:
                    writer.channel.put(Pause(done, 0, 0, generator.save_state(state)))
                return False
            started_s = time.perf_counter()
            state, sharp, low = generator.step(state)
            busy.model += time.perf_counter() - started_s
            counters.update(generator.counters(state))
            if done == begun and sharp:
                finished_picture(sharp[0])  # so that the time to the first frame is exact
            on_group(border)
            assert not low or len(low) == len(sharp), "there is a small picture for each large one or for none"
            for number in range(done, border):
                at = number - done
                writer.channel.put(_Made(number, (sharp[at], low[at]) if low else (sharp[at],)))
            del sharp, low
            done = border
            if done in ends:
                kept = done
                to_keep = keep_states and done < frames
                writer.channel.put(SegmentEnd(done, 0, generator.save_state(state) if to_keep else None))

        return True

    writer.serve(work)
    return counters


def segment_ends(borders: Sequence[int], segment_frames: int) -> list[int]:
    """Choose the group `borders` at which segments end, so that none is shorter than
    `segment_frames`, unless the whole clip is.
    """
    ends: list[int] = []
    for border in borders:
        start = ends[-1] if ends else 0
        if border - start >= segment_frames and borders[-1] - border >= segment_frames:
            ends.append(border)
    return [*ends, borders[-1]]
