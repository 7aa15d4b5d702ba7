"""Output of text: making it printable, and streams that may be closed, full, or limited
in their encoding."""

import os
import re
import sys
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, TextIO

from ultraflash_cli.errors import InputError, OutputError, UsageError

__all__ = [
    "TextOutput",
    "hold_standard_descriptors",
    "is_same_file",
    "open_log",
    "printable",
    "standard_input",
    "standard_output",
]

_UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f"  # C0, DEL, C1
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # bidirectional marks, which reorder adjacent text
    "\u2028\u2029\ufeff"
    "\ud800-\udfff]"  # bytes of a name that is not UTF-8
)
_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
_TEXT_PROBE_BYTES = 1 << 16
_NO_TEXT = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]")
"""Control characters that do not occur in text; terminal escape sequences are allowed
here."""


def printable(text: str) -> str:
    """Return ``text`` on one line, with terminal control characters replaced by
    escapes."""
    return _UNPRINTABLE.sub(_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    character, code = found[0], ord(found[0])
    if character in _SHORT:
        return _SHORT[character]
    if 0xDC80 <= code <= 0xDCFF:  # a byte that Python could not decode
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def hold_standard_descriptors() -> None:
    """Open the null device for each of stdin, stdout and stderr that is closed.

    Otherwise the next opened file would get its descriptor, and library output would be
    written to that file.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def open_log(path: Path) -> TextIO:
    """Open a log for appending. Raises OutputError if that fails, UsageError for a file that holds no text."""
    from ultraflash_cli.jobs.planning.clips import VIDEO_SUFFIXES
    from ultraflash_cli.video.sequence import PICTURE_SUFFIXES

    try:
        if path.suffix.lower() in VIDEO_SUFFIXES | PICTURE_SUFFIXES:
            raise UsageError(f"--log-file {path} has the name of a video or image; choose another file")
        if path.is_file():
            with path.open("rb") as file:
                if _NO_TEXT.search(file.read(_TEXT_PROBE_BYTES)):
                    raise UsageError(f"--log-file {path} is not a text file; choose another file")
        return path.open("a", encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise OutputError(f"log file {path}: {error.strerror}; choose a writable file") from error


def is_same_file(path: Path, other: Path) -> bool:
    """Return whether two paths are the same file, existing or not."""
    try:
        return path.samefile(other)
    except (OSError, ValueError):
        return os.path.realpath(path) == os.path.realpath(other)


def standard_input(what: str) -> BinaryIO:
    """Return the binary stdin. Raises InputError, naming the expected content, if it is
    closed."""
    stream = getattr(sys.stdin, "buffer", None)
    if stream is None or stream.closed:
        raise InputError(f"stdin is closed; pipe {what} into it, or give a file")
    return stream


def standard_output() -> BinaryIO:
    """Return the binary stdout. Raises OutputError if it is closed."""
    stream = getattr(sys.stdout, "buffer", None)
    if stream is None or stream.closed:
        raise OutputError("stdout is closed; choose a file with -o, or pipe the clip into a program")
    return stream


class TextOutput:
    """A text stream that does not raise on failure; `failure` is the reason why nothing
    more is written. It implements enough of a file for rich.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self.failure: str | None = None
        """Reason why it cannot be written; None while it can."""
        if stream is None or stream.closed:
            self.failure = "it is closed"

    @property
    def encoding(self) -> str:
        return getattr(self._stream, "encoding", None) or "utf-8"

    @property
    def closed(self) -> bool:
        return self.failure is not None

    def isatty(self) -> bool:
        return self._stream is not None and self.failure is None and self._stream.isatty()

    def fileno(self) -> int:
        if self._stream is None:
            raise OSError("no file behind it")
        return self._stream.fileno()

    def can_show(self, characters: str) -> bool:
        """Return whether the stream's encoding has these characters."""
        try:
            characters.encode(self.encoding)
        except UnicodeError:
            return False
        return True

    def write(self, text: str) -> int:
        """Write text, escaping characters that the encoding lacks."""
        if self._stream is not None and self.failure is None:
            try:
                self._stream.write(text if self.can_show(text) else self._encodable(text))
            except (OSError, ValueError) as error:
                self._give_up(error)
        return len(text)

    def flush(self) -> None:
        if self._stream is not None and self.failure is None:
            try:
                self._stream.flush()
            except (OSError, ValueError) as error:
                self._give_up(error)

    def write_line(self, line: str) -> bool:
        """Write a line and flush it; return whether that succeeded."""
        self.write(line + "\n")
        self.flush()
        return self.failure is None

    def close(self) -> None:
        if self._stream is not None:
            with suppress(OSError, ValueError):
                self._stream.close()

    def _encodable(self, text: str) -> str:
        return text.encode(self.encoding, "backslashreplace").decode(self.encoding)

    def _give_up(self, error: OSError | ValueError) -> None:
        closed = isinstance(error, BrokenPipeError | ValueError)
        self.failure = "it was closed" if closed else getattr(error, "strerror", None) or str(error)
        # Python flushes buffered data at exit, and would report the error again.
        with suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.fileno())
            os.close(null)
