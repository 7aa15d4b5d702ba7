"""The pictures of the segment in hand, kept on the disk as they are, so that a stop loses none of them."""

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from struct import Struct
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO, Protocol, Self

if TYPE_CHECKING:
    import numpy as np

__all__ = ["SegmentSink", "Spool", "Spooled", "spooled"]

_HEAD = Struct("<HqqIIBB")
"""Sink, time stamp, duration, height, width, bytes a sample, planes."""


@dataclass(frozen=True)
class Spooled:
    """One call of a sink's `write`."""

    sink: int
    rgb_hwc: "np.ndarray"
    pts: int
    duration: int
    alpha_hw: "np.ndarray | None"

    def write_to(self, sink: "SegmentSink") -> None:
        """Make the call."""
        if self.alpha_hw is None:
            sink.write(self.rgb_hwc, self.pts, self.duration)
        else:
            sink.write(self.rgb_hwc, self.pts, self.duration, self.alpha_hw)


class SegmentSink(Protocol):
    """A segment being written: `close` finalises and syncs it; leaving by an exception drops it."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None: ...

    def write(self, rgb_hwc: "np.ndarray", pts: int, duration: int, alpha_hw: "np.ndarray | None" = None) -> None: ...

    def close(self) -> object: ...


class Spool:
    """Records what goes into the encoders; use as a context manager, which closes the file.

    An encoder cannot be stopped and gone on with, so that a stopped segment is encoded again, from here. A disk that
    refuses is no reason to fail: then nothing is recorded, and the segment would have to be made again.
    """

    def __init__(self, path: Path, *, keep_bytes: int = 0) -> None:
        """Write behind the first `keep_bytes` of the file at `path`, or a new file."""
        self._path = path
        self._keep_bytes = keep_bytes
        self._file: BinaryIO | None = None
        self._finished = False
        with suppress(OSError):
            self._file = path.open("r+b" if keep_bytes else "wb")
            self._file.truncate(keep_bytes)
            self._file.seek(keep_bytes)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._finished:
            # Nobody will read it, and where the disk is full every byte counts.
            self._give_up()
        if self._file is not None:
            with suppress(OSError):
                self._file.close()

    def record(self, call: Spooled) -> None:
        """Add one call."""
        if self._file is None:
            return
        import numpy as np

        height, width = call.rgb_hwc.shape[:2]
        planes = 3 if call.alpha_hw is None else 4
        try:
            self._file.write(
                _HEAD.pack(call.sink, call.pts, call.duration, height, width, call.rgb_hwc.itemsize, planes)
            )
            for array in (call.rgb_hwc, call.alpha_hw):
                if array is not None:
                    self._file.write(np.ascontiguousarray(array).data)
        except OSError:
            self._give_up()

    def finish(self) -> int | None:
        """Wait until all is on the disk; gives the size in bytes, None where the disk refused."""
        if self._file is None:
            return None
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            size_bytes = self._file.tell()
        except OSError:
            self._give_up()
            return None
        self._finished = True
        return size_bytes

    def _give_up(self) -> None:
        if self._file is None:
            return
        with suppress(OSError):
            self._file.close()
        with suppress(OSError):
            os.truncate(self._path, self._keep_bytes)
        self._file = None


def spooled(path: Path, size_bytes: int) -> Iterator[Spooled]:
    """Read the calls in the first `size_bytes` of a spool; raises OSError."""
    import numpy as np

    with path.open("rb") as file:
        while file.tell() < size_bytes:
            sink, pts, duration, height, width, sample_bytes, planes = _HEAD.unpack(file.read(_HEAD.size))
            dtype = np.uint8 if sample_bytes == 1 else np.uint16
            pixels = height * width
            rgb = np.frombuffer(file.read(3 * pixels * sample_bytes), dtype).reshape(height, width, 3)
            alpha = None
            if planes == 4:
                alpha = np.frombuffer(file.read(pixels * sample_bytes), dtype).reshape(height, width)
            yield Spooled(sink, rgb, pts, duration, alpha)
