"""Streams that can be read only once, such as stdin: first probed, then read from the
start."""

import hashlib
import os
import threading
from pathlib import Path
from typing import Protocol

from ultraflash_cli.errors import InputError, Interrupted, OutputError

__all__ = ["ByteStream", "Pipe", "PipeReader", "SpoolReader"]

_HEAD_BYTES = 1 << 16


class ByteStream(Protocol):
    """The source of a pipe: a binary file open for reading."""

    def read(self, size: int = -1, /) -> bytes | None:
        """Return up to ``size`` bytes, none at the end."""
        ...


class Pipe:
    """Buffers a stream, so that it can be read from the start again. What ``probe``
    reads is kept in memory. ``read_frames`` releases it while reading, after which the
    stream is used up, unless ``spool_to`` was called: then everything is kept in a
    file, for any number of readers.
    """

    def __init__(self, stream: ByteStream, *, name: str = "-") -> None:
        self.name = name
        self._stream = stream
        self._memory = bytearray()
        self._spool: Path | None = None
        self._dropped = 0  # bytes at the start that have been released
        self._length = 0  # bytes taken from the stream
        self._ended = False
        self._reader: PipeReader | None = None
        self._grown = threading.Condition()

    @property
    def is_spooled(self) -> bool:
        """Whether all data read are kept in a file."""
        return self._spool is not None

    @property
    def keeps_start(self) -> bool:
        """Whether the start of the stream can still be read."""
        return not self._dropped

    @property
    def whole_file(self) -> Path | None:
        """The spool file, once the stream has been read to its end."""
        return self._spool if self._ended else None

    def head(self, size: int) -> bytes:
        """Return the first ``size`` bytes, or fewer at the end; they are read again
        later."""
        assert not self._dropped, "the head is asked for before the frames are read"
        while self._length < size and not self._ended:
            self._take(size - self._length)
        return self._recorded(0, size)

    def head_digest(self) -> str:
        """SHA-256 of the first 65,536 bytes: the only identification of a pipe's
        content available in advance."""
        return hashlib.sha256(self.head(_HEAD_BYTES)).hexdigest()

    def spool_to(self, path: Path) -> None:
        """Keep the whole stream in a new file at ``path``, which the caller removes.
        Raises ``OutputError``.
        """
        assert self._spool is None and not self._dropped, "the spool is chosen once, before the frames are read"
        try:
            # Never write to an existing file of this name.
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
            with open(os.open(path, flags, 0o600), "wb") as file:
                file.write(self._memory)
        except OSError as error:
            raise OutputError(f"{path} cannot be written ({(error.strerror or str(error)).lower()})") from error
        self._spool = path
        self._memory.clear()

    def read_to_end(self) -> None:
        """Read the rest of the stream, so that ``whole_file`` exists; only with a spool."""
        assert self._spool is not None, "a spool to fill"
        while not self._ended:
            self._take(1 << 20)

    def reader(self, *, last: bool) -> "PipeReader":
        """Return a reader that starts at the first byte. Without a spool, none can
        follow the ``last`` one."""
        if self._dropped:
            raise InputError(f"{self.name}: a pipe can only be read once; use a file instead")
        self._reader = PipeReader(self, last=last and self._spool is None)
        return self._reader

    def follower(self) -> "SpoolReader":
        """Return a second reader, which follows the first and never overtakes it; only
        with a spool."""
        assert self._spool is not None, "a spool to follow"
        return SpoolReader(self)

    def follow_at(self, place: int, size: int) -> bytes:
        """Return up to ``size`` bytes of the spool from offset ``place``, waiting for
        them if necessary; none at the end."""
        with self._grown:
            self._grown.wait_for(lambda: place < self._length or self._ended)
        return self._recorded(place, size)

    def release(self) -> None:
        """End the following readers at the position of the first one."""
        with self._grown:
            self._ended = True
            self._grown.notify_all()

    def read_at(self, place: int, size: int, *, drop: bool) -> bytes:
        """Return up to ``size`` bytes from offset ``place``, none at the end; ``drop``
        releases everything before it."""
        if place >= self._length and not self._ended:
            self._take(size)
        content = self._recorded(place, size)
        if drop:
            done = place + len(content) - self._dropped
            del self._memory[:done]
            self._dropped += done
        return content

    def is_read_by(self, reader: "PipeReader") -> bool:
        """Return whether ``reader`` is the latest reader."""
        return self._reader is reader

    def _recorded(self, place: int, size: int) -> bytes:
        if self._spool is None:
            return bytes(self._memory[place - self._dropped : place - self._dropped + size])
        with open(self._spool, "rb") as file:
            file.seek(place)
            return file.read(size)

    def _take(self, size: int) -> None:
        try:
            content = self._stream.read(size) or b""
        except (OSError, ValueError) as error:
            raise InputError(f"{self.name}: the pipe cannot be read ({error})") from error
        except KeyboardInterrupt as error:
            # Within a read for libavformat, PyAV would ignore it: it is no `Exception`.
            raise Interrupted("interrupted") from error
        if self._spool is None:
            self._memory += content
            self._advance(content)
            return
        try:
            with open(self._spool, "ab") as file:
                file.write(content)
            self._advance(content)
        except OSError as error:
            raise OutputError(
                f"{self._spool} cannot be written ({(error.strerror or str(error)).lower()}); "
                "choose another folder with --temp-dir"
            ) from error

    def _advance(self, content: bytes) -> None:
        """Account for the kept bytes, and wake the following readers."""
        with self._grown:
            self._ended = not content
            self._length += len(content)
            self._grown.notify_all()


class SpoolReader:
    """Reads what a pipe has spooled so far and waits for more; without ``seek``, as
    libavformat expects of a stream."""

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe
        self._place = 0

    def read(self, size: int) -> bytes:
        """Return up to ``size`` bytes, none at the end."""
        content = self._pipe.follow_at(self._place, size)
        self._place += len(content)
        return content


class PipeReader:
    """Reads a pipe once; without ``seek``, as libavformat expects of a stream."""

    def __init__(self, pipe: Pipe, *, last: bool) -> None:
        self._pipe = pipe
        self._last = last
        self._place = 0

    def read(self, size: int) -> bytes:
        """Return up to ``size`` bytes, none at the end."""
        assert self._pipe.is_read_by(self), "one reading of a pipe at a time"
        content = self._pipe.read_at(self._place, size, drop=self._last)
        self._place += len(content)
        return content
