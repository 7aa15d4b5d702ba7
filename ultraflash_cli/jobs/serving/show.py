"""The view of a running job for browsers: its state as events, its latest pictures as
fragments of a stream."""

import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from ultraflash_cli.jobs.events import Chunk, Done, Event, GenerationPlanned, Planned, Retrying, Started, Warned
from ultraflash_cli.video.frame import Frame
from ultraflash_cli.video.segment_file import SegmentSink

if TYPE_CHECKING:
    import numpy as np

    from ultraflash_cli.video.encode import EncodeSpec
    from ultraflash_cli.video.fragments import Fragment
    from ultraflash_cli.video.segment_file import SegmentFile

__all__ = ["Clip", "Show", "ShownSegment"]

_QUEUED = 12
"""Maximum number of pictures queued for encoding; further ones are dropped, as a job
never waits for its viewers."""
_KEPT_BYTES = 48 << 20
"""Maximum number of bytes of a clip kept in memory, enough for minutes."""
_WARNINGS = 20


class Clip:
    """The stream of one clip; its oldest parts are dropped."""

    def __init__(self, number: int, changed: threading.Condition) -> None:
        self.number = number
        self.head = b""
        self.codec = ""
        self.ended = False
        self._changed = changed
        self._kept: deque[tuple[int, Fragment]] = deque()
        self._numbers = count()
        self._bytes = 0

    def begin(self, head: bytes, codec: str) -> None:
        """Set the head, which every player needs first."""
        with self._changed:
            self.head, self.codec = head, codec
            self._changed.notify_all()

    def add(self, fragment: "Fragment") -> None:
        """Add the next part."""
        with self._changed:
            self._kept.append((next(self._numbers), fragment))
            self._bytes += len(fragment.content)
            while self._bytes > _KEPT_BYTES and len(self._kept) > 1:
                self._bytes -= len(self._kept.popleft()[1].content)
            self._changed.notify_all()

    def end(self) -> None:
        """Mark the end of the stream."""
        with self._changed:
            self.ended = True
            self._changed.notify_all()

    def parts(self) -> Iterator[bytes]:
        """Yield the head and all parts from the oldest possible starting point, waiting
        for later ones until the end."""
        with self._changed:
            self._changed.wait_for(lambda: self.head or self.ended)
            head = self.head
        if not head:
            return
        yield head
        following, begun = 0, False
        while True:
            with self._changed:
                self._changed.wait_for(partial(self._is_past, following))
                ready = [(number, each) for number, each in self._kept if number >= following]
            if not ready:
                return
            if ready[0][0] != following:
                begun = False  # too slow: the next part was dropped
            for number, fragment in ready:
                following = number + 1
                begun = begun or fragment.starts
                if begun:
                    yield fragment.content

    def _is_past(self, number: int) -> bool:
        return self.ended or (bool(self._kept) and self._kept[-1][0] >= number)


class Show:
    """Collects the progress of a command's jobs, clip by clip; events are passed on to
    `listener`."""

    def __init__(self, listener: Callable[[Event], None], *, on_begin: Callable[[], None]) -> None:
        self.changed = threading.Condition()
        self.version = 0
        """Counter that increases with every change of the state."""
        self.ended = False
        self.clip: Clip | None = None
        self._listener = listener
        self._on_begin = on_begin
        self._has_begun = False
        self._state: dict[str, Any] = {"state": "waiting", "warnings": []}
        self._times: Callable[[], Mapping[str, float]] | None = None
        self._numbers = count(1)
        self._encoding: _Encoding | None = None
        self._folders: set[str] = set()

    def on_event(self, event: Event) -> None:
        """Receive an event of a job (a `Listener`)."""
        if isinstance(event, Planned) and not self._has_begun:
            self._has_begun = True
            self._on_begin()

        self._listener(event)
        match event:
            case Planned():
                fields = ("input", "output", "model", "width", "height", "frames_total")
                known = asdict(event)
                facts = {name: known[name] for name in fields} | {"output": Path(event.output).name}
                self._folders = {str(Path(event.output).parent)}
                if not isinstance(event, GenerationPlanned):
                    facts["input"] = Path(event.input).name
                    self._folders.add(str(Path(event.input).parent))
                self._set(**facts, state="loading", frames_done=0, fps=None, eta_s=None, limit=None, seconds={})
            case Started():
                self._set(
                    state="running",
                    device=event.device,
                    precision=event.precision,
                    note=self._without_folders(event.note or ""),
                )
            case Chunk():
                times = {name: round(value, 3) for name, value in (self._times or dict)().items()}
                self._set(
                    frames_done=event.frames_done,
                    frames_total=event.frames_total,
                    fps=event.fps,
                    eta_s=event.eta_s,
                    limit=event.limit,
                    seconds=times,
                )
            case Warned() | Retrying():
                with self.changed:
                    warnings = [*self._state["warnings"], self._without_folders(event.message)][-_WARNINGS:]
                self._set(warnings=warnings)
            case Done():
                self.end_clip()
                self._set(state="done", frames_done=event.frames)
            case _:
                pass

    def begin(self, spec: "EncodeSpec", times: Callable[[], Mapping[str, float]]) -> None:
        """Begin a clip with the output `spec`; `times` returns seconds by stage, in the
        model's thread."""
        self.end_clip()
        self._times = times
        clip = Clip(next(self._numbers), self.changed)
        self._encoding = _Encoding(clip, spec, lambda codec: self._set(clip=clip.number, codec=codec))
        with self.changed:
            self.clip = clip
        self._set(clip_fps=float(spec.rate))
        self._encoding.start()

    def shown(self, sink: SegmentSink) -> SegmentSink:
        """Return a sink of a segment that also shows its pictures."""
        return ShownSegment(sink, self)

    def add(self, picture: "np.ndarray", pts: int) -> None:
        """Show a finished picture, unless the queue is full."""
        if self._encoding is not None:
            self._encoding.offer(picture, pts)

    def end_clip(self) -> None:
        """Encode the queued pictures, and end the clip's stream."""
        encoding, self._encoding = self._encoding, None
        if encoding is not None:
            encoding.finish()

    def end(self, state: str, message: str = "") -> None:
        """Mark the end of all clips, with the reason."""
        self.end_clip()
        self._times = None
        self._set(state=state, message=self._without_folders(message))
        with self.changed:
            self.ended = True
            self.changed.notify_all()

    def states(self) -> Iterator[dict[str, Any]]:
        """Yield the current state and, until the end, the latest one after changes."""
        seen = -1
        while True:
            with self.changed:
                self.changed.wait_for(partial(self._differs, seen))
                if self.version == seen:
                    return
                seen, state = self.version, dict(self._state)
            yield state

    def _differs(self, version: int) -> bool:
        return self.ended or self.version != version

    def _without_folders(self, text: str) -> str:
        """Return a message without folders, which viewers need not know."""
        for folder in sorted(self._folders - {"."}, key=len, reverse=True):
            text = text.replace(f"{folder}{os.sep}", "").replace(folder, "…")
        return text

    def _set(self, **facts: Any) -> None:
        with self.changed:
            self._state |= facts
            self.version += 1
            self.changed.notify_all()


class ShownSegment:
    """A segment whose pictures are also shown."""

    def __init__(self, sink: SegmentSink, show: Show) -> None:
        self._sink = sink
        self._show = show

    def __enter__(self) -> Self:
        self._sink.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        return self._sink.__exit__(kind, error, trace)

    def write(self, frame: Frame) -> None:
        self._sink.write(frame)
        self._show.add(frame.rgb_hwc, frame.pts)

    def close(self) -> "SegmentFile | None":
        return self._sink.close()


class _Encoding(threading.Thread):
    """Encodes a clip's pictures in a separate thread."""

    def __init__(self, clip: Clip, spec: "EncodeSpec", on_codec: Callable[[str], None]) -> None:
        super().__init__(name="showing", daemon=True)
        self._clip = clip
        self._spec = spec
        self._on_codec = on_codec
        self._queue: queue.Queue[tuple[np.ndarray, int] | None] = queue.Queue(_QUEUED)

    def offer(self, picture: "np.ndarray", pts: int) -> None:
        try:
            self._queue.put_nowait((picture, pts))
        except queue.Full:
            return

    def finish(self) -> None:
        while self.is_alive():
            try:
                self._queue.put(None, timeout=1)
                break
            except queue.Full:
                continue
        self.join()

    def run(self) -> None:
        with suppress(Exception):  # the display fails alone; the job continues
            self._encode()
        self._clip.end()
        while self._queue.get() is not None:
            continue

    def _encode(self) -> None:
        from ultraflash_cli.video.fragments import FragmentWriter

        writer = FragmentWriter(self._spec)
        try:
            while (item := self._queue.get()) is not None:
                self._give(writer, writer.write(*item))
            self._queue.put(None)  # for `run`, which drains the queue after a failure
        finally:
            self._give(writer, writer.close())

    def _give(self, writer: Any, fragments: "Iterator[Fragment]") -> None:
        for fragment in fragments:
            if not self._clip.head:
                self._clip.begin(writer.head, writer.codec)
                self._on_codec(writer.codec)
            self._clip.add(fragment)
