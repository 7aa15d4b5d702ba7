"""Sizes of the buffers between the threads of a job."""

from collections.abc import Iterator
from typing import Protocol

__all__ = ["SEGMENT_FRAMES", "SPOOL_BYTES", "PendingState", "StateContent", "queue_places", "segment_length"]

SEGMENT_FRAMES = 72
"""Approximate minimum number of frames in a segment, which ends with a group: three
seconds of film, the possible loss in a power cut."""

_STATE_BYTES_PER_FRAME = 24 << 20
"""Maximum cost of saving the state after a segment, per frame of the segment."""

_QUEUE_BYTES = 256 << 20
_QUEUE_FRAMES = 32
"""Maximum frames and bytes in a queue, whichever is less."""

SPOOL_BYTES = 384 << 20
"""Maximum bytes that a spool keeps in memory: a segment of 72 frames at 1K."""


class PendingState(Protocol):
    """The content of a state's file, still being copied from a device."""

    def pieces(self) -> Iterator[bytes | memoryview]:
        """Wait for the content and yield it piece by piece."""
        ...

    def release(self) -> None:
        """Release the content once it is written."""
        ...


StateContent = bytes | PendingState
"""The content of a state's file."""


def segment_length(at_least: int, state_bytes: int) -> int:
    """Return the number of frames in a segment, computed only from sizes, so that a job
    has the same borders everywhere."""
    return max(at_least, -(-state_bytes // _STATE_BYTES_PER_FRAME))


def queue_places(frame_bytes: int, *, group_frames: int = 0) -> int:
    """Return the maximum number of frames of this size in a queue. For frames in groups
    there is room for two groups: with less, the producer would block inside a group,
    and a GPU would idle.
    """
    return max(2, 2 * group_frames, min(_QUEUE_FRAMES, _QUEUE_BYTES // frame_bytes))
