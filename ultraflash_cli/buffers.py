"""What waits between the threads of a job, and how much."""

from collections.abc import Iterator
from typing import Protocol

__all__ = ["SEGMENT_FRAMES", "SPOOL_BYTES", "PendingState", "StateContent", "queue_places", "segment_length"]

SEGMENT_FRAMES = 72
"""About the least frames of a segment, which ends with a group: three seconds of film, what a power cut can cost."""

_STATE_BYTES_PER_FRAME = 24 << 20
"""A segment is so long that saving the state after it costs no more than this for each of its frames."""

_QUEUE_BYTES = 256 << 20
_QUEUE_FRAMES = 32
"""What a queue holds at most, whichever is less."""

SPOOL_BYTES = 384 << 20
"""What a spool holds in memory at most: a segment of 72 frames at 1K."""


class PendingState(Protocol):
    """The content of a state's file, still on its way from a device."""

    def pieces(self) -> Iterator[bytes | memoryview]:
        """Wait for the content and yield it piece by piece."""
        ...

    def release(self) -> None:
        """Let go of the content once it is written."""
        ...


StateContent = bytes | PendingState
"""The content of a state's file."""


def segment_length(at_least: int, state_bytes: int) -> int:
    """Return the frames of a segment, from sizes alone: the same job has the same borders wherever it runs."""
    return max(at_least, -(-state_bytes // _STATE_BYTES_PER_FRAME))


def queue_places(frame_bytes: int, *, group_frames: int = 0) -> int:
    """Return how many frames of this many bytes wait in a queue at most.

    Where frames come in groups there is room for two: with less, whoever makes them waits inside a group until the
    whole of it is on its way, and a GPU idles.
    """
    return max(2, 2 * group_frames, min(_QUEUE_FRAMES, _QUEUE_BYTES // frame_bytes))
