"""The unencoded pictures of the current segment, kept so that a stop does not lose
them."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from struct import Struct
from types import TracebackType
from typing import BinaryIO, Self

from ultraflash_cli.buffers import SPOOL_BYTES
from ultraflash_cli.files import sync
from ultraflash_cli.jobs.resume.owned_files import edit_existing, make_new, open_existing, truncate
from ultraflash_cli.video.frame import Frame

__all__ = ["Spool", "Spooled", "spooled"]

_HEAD = Struct("<HqqIIBB")
"""Fields of a record's head: sink, timestamp, duration, height, width, bytes per
sample, planes."""


@dataclass(frozen=True)
class Spooled:
    """One call of a sink's `write`."""

    sink: int
    frame: Frame


class Spool:
    """Keeps the encoders' input until the segment is finished; use as a context
    manager. An encoder cannot be suspended, so a stopped segment is re-encoded from
    here. Calls stay in memory, and are written to disk when the work stops or when they
    exceed `SPOOL_BYTES`: writing them constantly would wear out the disk for a stop
    that may never come. If the disk fails, nothing is kept, and the segment has to be
    computed again.
    """

    def __init__(self, path: Path, *, keep_bytes: int = 0) -> None:
        """Keep the first `keep_bytes` of the file at `path`, and append new calls to
        them."""
        self._path = path
        self._keep_bytes = keep_bytes
        self._held: list[Spooled] | None = []
        self._held_bytes = 0
        self._file: BinaryIO | None = None
        self._finished = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held = None
        if not self._finished:
            # It will not be read again, and on a full disk every byte counts.
            self._give_up()
        if self._file is not None:
            with suppress(OSError):
                self._file.close()

    def record(self, call: Spooled) -> None:
        """Add one call; its arrays must no longer be modified."""
        try:
            if self._held is not None:
                self._held.append(call)
                self._held_bytes += call.frame.nbytes
                if self._held_bytes > SPOOL_BYTES:
                    self._pour()
            elif self._file is not None:
                self._write(call)
        except OSError:
            self._give_up()

    def finish(self) -> int | None:
        """Wait until everything is on disk; return the size in bytes, or None if the
        disk failed."""
        try:
            if self._held is not None:
                self._pour()
            if self._file is None:
                return None
            sync(self._file)
            size_bytes = self._file.tell()
        except OSError:
            self._give_up()
            return None
        self._finished = True
        return size_bytes

    def _pour(self) -> None:
        """Write the calls held in memory; raises OSError."""
        held, self._held = self._held or [], None
        if self._keep_bytes:
            self._file = edit_existing(self._path)
        else:
            self._file = make_new(self._path)
        self._file.truncate(self._keep_bytes)
        self._file.seek(self._keep_bytes)
        for call in held:
            self._write(call)

    def _write(self, call: Spooled) -> None:
        assert self._file is not None, "what is held is poured first"
        import numpy as np

        frame = call.frame
        height, width = frame.rgb_hwc.shape[:2]
        planes = 3 if frame.alpha_hw is None else 4
        sample_bytes = frame.rgb_hwc.itemsize
        self._file.write(_HEAD.pack(call.sink, frame.pts, frame.duration, height, width, sample_bytes, planes))
        for array in (frame.rgb_hwc, frame.alpha_hw):
            if array is not None:
                self._file.write(np.ascontiguousarray(array).data)

    def _give_up(self) -> None:
        self._held = None
        if self._file is None:
            return
        with suppress(OSError):
            self._file.close()
        with suppress(OSError):
            truncate(self._path, self._keep_bytes)
        self._file = None


def spooled(path: Path, size_bytes: int) -> Iterator[Spooled]:
    """Read the calls in the first `size_bytes` of a spool; raises OSError."""
    import numpy as np

    with open(open_existing(path), "rb") as file:
        while file.tell() < size_bytes:
            sink, pts, duration, height, width, sample_bytes, planes = _HEAD.unpack(file.read(_HEAD.size))
            dtype = np.uint8 if sample_bytes == 1 else np.uint16
            pixels = height * width
            rgb = np.frombuffer(file.read(3 * pixels * sample_bytes), dtype).reshape(height, width, 3)
            alpha = None
            if planes == 4:
                alpha = np.frombuffer(file.read(pixels * sample_bytes), dtype).reshape(height, width)
            yield Spooled(sink, Frame(pts, duration, rgb, alpha))
