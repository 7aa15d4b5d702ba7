"""Random access to the frames of a stream that processes frames in order."""

from collections import OrderedDict, deque
from collections.abc import Callable
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from ultraflash_cli.video.cuts import LOOKAHEAD, CutDetector

if TYPE_CHECKING:
    from numpy import ndarray

__all__ = ["CausalStream", "Picture", "SeekableStream"]

_SEARCH_FRAMES = 32
"""Distance ahead beyond which a scene cut closer to the frame is searched for."""
_SNAPSHOT_FRAMES = 96
"""Number of frames between saved states within a scene."""
_SNAPSHOT_BYTES = 2**30
"""Maximum total bytes of saved states; a state of ``lite`` has 190 bytes per source
pixel."""


class Picture(NamedTuple):
    """A frame of the source."""

    pixels_hwc: "ndarray"
    """RGB, [H, W, 3]."""
    starts_scene: bool
    """Whether the source marks the start of a scene here."""


class CausalStream(Protocol):
    """A stream that processes frames in order, such as ``FrameStream``."""

    @property
    def frames_in(self) -> int:
        """Number of the next input frame."""
        ...

    @property
    def frames_out(self) -> int:
        """Number of the next output frame."""
        ...

    def step(self, frames_thwc: "ndarray") -> Any:
        """Process frames, return those that are finished."""
        ...

    def flush(self) -> Any:
        """End the scene, return its last frames."""
        ...

    def save(self) -> bytes:
        """Return the state."""
        ...

    def load(self, state: bytes) -> None:
        """Continue from a state."""
        ...

    def begin_scene(self, frame: int) -> None:
        """Begin a scene with this frame of the clip, dropping pending frames."""
        ...


class _Snapshot(NamedTuple):
    frames_in: int
    frames_out: int
    state: bytes


class SeekableStream:
    """Random access to the output's frames, with the same pixels as reading from the start.

    A frame is computed from the latest point before it at which the stream can start:
    its position, a saved state, or a scene cut, which is searched backwards. Memory is
    bounded: finished frames, states and one group of sources. One thread at a time.
    """

    def __init__(
        self,
        stream: CausalStream,
        read: Callable[[int], Picture],
        frames: int,
        *,
        cuts: bool = True,
        kept_frames: int = 32,
        snapshot_frames: int = _SNAPSHOT_FRAMES,
        snapshot_bytes: int = _SNAPSHOT_BYTES,
    ) -> None:
        """Args:
        stream: processes the frames; nothing else may use it.
        read: returns a frame of the source by number.
        frames: number of frames.
        cuts: whether to detect scene cuts in addition to those marked by the
            source.
        kept_frames: number of finished frames to keep, at least the latest group.
        snapshot_frames: frames between saved states.
        snapshot_bytes: maximum total bytes of saved states.
        """
        self._stream = stream
        self._read = read
        self._frames = frames
        self._cuts = cuts
        self._kept_frames = kept_frames
        self._snapshot_frames = snapshot_frames
        self._snapshot_bytes = snapshot_bytes
        self._lock = Lock()
        self._scenes = {0}
        self._searched = bytearray(frames)  # 1 if it is known whether a scene begins
        self._snapshots: OrderedDict[int, _Snapshot] = OrderedDict()  # least recently used first
        self._finished: deque[tuple[int, ndarray]] = deque()  # number of the first one, frames
        self._source: _Source | None = None  # None if the stream has no position
        self._in_scene = False

    def frame(self, number: int) -> "ndarray":
        """Return a frame of the output [H, W, 3].

        Raises the errors of the stream and the source; the next call restarts from a
        valid point.
        """
        with self._lock:
            found = self._held(number)
            if found is not None:
                return found
            try:
                self._go_near(number)
                while (found := self._held(number)) is None:
                    self._advance()
            except BaseException:
                self._source = None
                raise
            return found

    def _held(self, number: int) -> "ndarray | None":
        for first, frames in self._finished:
            if first <= number < first + len(frames):
                return frames[number - first]
        return None

    def _go_near(self, number: int) -> None:
        """Move the stream to the latest point from which it reaches a frame."""
        here = self._stream.frames_in if self._source and self._stream.frames_out <= number else -1
        usable = [each for each in self._snapshots.values() if each.frames_out <= number]
        state = max(usable, key=lambda each: each.frames_in, default=None)
        scene = max(each for each in self._scenes if each <= number)
        nearest = max(here, scene, state.frames_in if state else -1)

        if number - nearest > _SEARCH_FRAMES:
            scene = self._find_scene(nearest, number) or scene
            nearest = max(nearest, scene)

        if nearest == here:
            return
        self._source = None
        self._in_scene = nearest != scene
        if state is not None and self._in_scene:
            self._snapshots.move_to_end(nearest)
            self._stream.load(state.state)
        else:
            self._stream.begin_scene(nearest)
        self._source = _Source(self._read, self._frames, nearest, cuts=self._cuts)

    def _find_scene(self, low: int, number: int) -> int | None:
        """Return the latest scene that begins after `low` and up to a frame; None without one."""
        end = number + 1
        while end > low + 1:
            start = max(low + 1, end - _SEARCH_FRAMES)
            if not all(self._searched[start:end]):
                source = _Source(self._read, self._frames, start, cuts=self._cuts)
                for each in range(start, end):
                    self._note(each, source.take().starts_scene)
            found = max((each for each in self._scenes if start <= each < end), default=None)
            if found is not None:
                return found
            end = start
        return None

    def _advance(self) -> None:
        """Process one frame."""
        assert self._source is not None, "the stream has a position"
        stream, number = self._stream, self._stream.frames_in
        pixels, starts_scene = self._source.take()
        self._note(number, starts_scene)
        if starts_scene and self._in_scene:
            self._keep(stream.flush())
        self._in_scene = True
        is_group = self._keep(stream.step(pixels[None]))
        if number + 1 == self._frames:
            self._keep(stream.flush())
            self._source = None
        elif is_group:
            self._perhaps_save()

    def _note(self, number: int, starts_scene: bool) -> None:
        self._searched[number] = 1
        if starts_scene:
            self._scenes.add(number)

    def _keep(self, frames_thwc: "ndarray") -> bool:
        """Keep finished frames in place of older ones; returns whether there are
        any."""
        if not len(frames_thwc):
            return False
        self._finished.append((self._stream.frames_out - len(frames_thwc), frames_thwc))
        kept = sum(len(frames) for _, frames in self._finished)
        while kept > self._kept_frames and len(self._finished) > 1:
            kept -= len(self._finished.popleft()[1])
        return True

    def _perhaps_save(self) -> None:
        """Save the state if none is saved nearby, replacing the least recently used
        ones."""
        stream = self._stream
        last = max(each for each in {*self._scenes, *self._snapshots} if each <= stream.frames_in)
        if stream.frames_in - last < self._snapshot_frames or not self._snapshot_bytes:
            return
        state = stream.save()
        if len(state) > self._snapshot_bytes:
            self._snapshot_bytes = 0  # all states have the same size
            return
        self._snapshots[stream.frames_in] = _Snapshot(stream.frames_in, stream.frames_out, state)
        while sum(len(each.state) for each in self._snapshots.values()) > self._snapshot_bytes:
            self._snapshots.popitem(last=False)


class _Source:
    """Frames of the source in order, each with whether it begins a scene. That depends
    only on nearby frames, so that the result is the same from any first frame.
    """

    def __init__(self, read: Callable[[int], Picture], frames: int, first: int, *, cuts: bool) -> None:
        self._read = read
        self._frames = frames
        self._first = first
        self._detector = CutDetector() if cuts else None
        self._next = max(0, first - LOOKAHEAD) if cuts else first
        self._unanswered = self._next  # number of the detector's next decision
        self._waiting: deque[Picture] = deque()
        self._answers: deque[bool] = deque()

    def take(self) -> Picture:
        """Return the next frame."""
        if self._detector is None:
            self._next += 1
            return self._read(self._next - 1)
        while not self._answers:
            if self._next < self._frames:
                self._push(self._detector, self._read(self._next))
            else:
                self._answer(self._detector.flush())
        pixels, starts_scene = self._waiting.popleft()
        return Picture(pixels, self._answers.popleft() or starts_scene)

    def _push(self, detector: CutDetector, picture: Picture) -> None:
        if self._next >= self._first:
            self._waiting.append(picture)
        self._next += 1
        self._answer(detector.push(picture.pixels_hwc))

    def _answer(self, answers: list[bool]) -> None:
        """Keep the decisions for frames from the first one on."""
        for answer in answers:
            if self._unanswered >= self._first:
                self._answers.append(answer)
            self._unanswered += 1
