"""A polite request to stop, and the signals that make it."""

import os
import signal
import sys
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType

from ultraflash_cli.errors import Interrupted

__all__ = ["Stop", "StopNow", "ending_on_sigterm", "stopping_on_signals"]


class StopNow(BaseException):
    """A stop was requested inside `Stop.at_once`."""


class Stop:
    """A request to stop at the next good moment; jobs look at it between groups."""

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._at_once = False

    @property
    def requested(self) -> bool:
        return self.signal_number is not None

    def request(self, signal_number: int = signal.SIGINT) -> None:
        """Ask for a stop on behalf of this signal."""
        self.signal_number = signal_number
        if self._at_once:
            raise StopNow

    @contextmanager
    def at_once(self) -> Generator[None]:
        """Let a request inside the block raise StopNow where it comes, which for a signal is the main thread.

        For work without good moments that may be dropped at any.
        """
        self._at_once = True
        try:
            if self.requested:
                raise StopNow
            yield
        finally:
            self._at_once = False

    def interruption(self, message: str) -> Interrupted:
        """Give the error that ends the run: exit code 130 for SIGINT, 143 for SIGTERM."""
        return Interrupted(message, exit_code=128 + (self.signal_number or signal.SIGINT))


@contextmanager
def ending_on_sigterm() -> Generator[None]:
    """Let SIGTERM raise Interrupted inside the block, as SIGINT raises KeyboardInterrupt; main thread only."""

    def handle(number: int, _frame: FrameType | None) -> None:
        raise Interrupted("terminated", exit_code=128 + number)

    previous = signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextmanager
def stopping_on_signals() -> Generator[Stop]:
    """Give a `Stop` that the first SIGINT or SIGTERM requests; a second one ends the process at once.

    Works in the main thread only, like every Python signal handler; the old handlers come back at the end.
    """
    stop = Stop()

    def handle(number: int, _frame: FrameType | None) -> None:
        if stop.requested:
            sys.stderr.flush()
            os._exit(128 + number)
        stop.request(number)

    numbers = (signal.SIGINT, signal.SIGTERM)
    previous = [signal.signal(number, handle) for number in numbers]
    try:
        yield stop
    finally:
        for number, handler in zip(numbers, previous, strict=True):
            signal.signal(number, handler)
