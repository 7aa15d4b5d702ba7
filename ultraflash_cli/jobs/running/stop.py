"""Graceful stop requests, and the signals that trigger them."""

import os
import signal
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from types import FrameType

from ultraflash_cli.errors import Interrupted

__all__ = ["Stop", "StopNow", "ending_on_signals", "stopping_on_signals"]

_HANG_UP: int | None = getattr(signal, "SIGHUP", None)
"""SIGHUP, which Windows does not have."""


class StopNow(BaseException):
    """A stop was requested inside `Stop.at_once`."""


class Stop:
    """A request to stop at the next suitable moment; jobs check it between groups."""

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._at_once = False

    @property
    def requested(self) -> bool:
        return self.signal_number is not None

    def request(self, signal_number: int = signal.SIGINT) -> None:
        """Request a stop on behalf of this signal."""
        self.signal_number = signal_number
        if self._at_once:
            raise StopNow

    @contextmanager
    def at_once(self) -> Generator[None]:
        """Make a request inside the block raise StopNow immediately, in the main thread
        for a signal. For work that may be abandoned at any point.
        """
        self._at_once = True
        try:
            if self.requested:
                raise StopNow
            yield
        finally:
            self._at_once = False

    def interruption(self, message: str) -> Interrupted:
        """Return the error that ends the run: exit code 130 for SIGINT, 143 for SIGTERM, 129 for SIGHUP."""
        return Interrupted(message, exit_code=128 + (self.signal_number or signal.SIGINT))


@contextmanager
def ending_on_signals() -> Generator[None]:
    """Make SIGTERM and SIGHUP raise Interrupted inside the block, as SIGINT raises
    KeyboardInterrupt; main thread only. SIGHUP stays ignored under `nohup`.
    """

    def handle(number: int, _frame: FrameType | None) -> None:
        raise Interrupted("hung up" if number == _HANG_UP else "terminated", exit_code=128 + number)

    with _handling((signal.SIGTERM, *_hang_up()), handle):
        yield


@contextmanager
def stopping_on_signals(
    *, on_first: Callable[[], None] | None = None, on_second: Callable[[int], None] | None = None
) -> Generator[Stop]:
    """Yield a `Stop` that the first SIGINT, SIGTERM or SIGHUP requests; a second one ends the process at once.

    `on_first` is called with the first, `on_second` with the second and the exit code,
    inside the signal handler. Works in the main thread only, like every Python signal
    handler; the old handlers are restored at the end.
    """
    stop = Stop()

    def handle(number: int, _frame: FrameType | None) -> None:
        if stop.requested and number == _HANG_UP:
            return  # shell and kernel both send it when a terminal is closed
        if stop.requested:
            if on_second is not None:
                on_second(128 + number)
            os._exit(128 + number)
        if on_first is not None:
            on_first()
        stop.request(number)

    with _handling((signal.SIGINT, signal.SIGTERM, *_hang_up()), handle):
        yield stop


def _hang_up() -> tuple[int, ...]:
    """Return the signal for a closed terminal, unless there is none or it is
    ignored."""
    return () if _HANG_UP is None or signal.getsignal(_HANG_UP) == signal.SIG_IGN else (_HANG_UP,)


@contextmanager
def _handling(numbers: Sequence[int], handle: Callable[[int, FrameType | None], None]) -> Generator[None]:
    previous = [signal.signal(number, handle) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, previous, strict=True):
            signal.signal(number, handler)
