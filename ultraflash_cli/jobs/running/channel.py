"""A bounded queue between two threads that propagates failures and measures waiting
times."""

import threading
import time
from collections import deque
from typing import Generic, TypeVar

__all__ = ["Cancelled", "Channel"]

T = TypeVar("T")


class Cancelled(Exception):
    """The other side has cancelled; the caller should end quietly."""


class Channel(Generic[T]):
    """A queue of at most `capacity` items with one producer and one consumer.

    The producer ends with `close`, passing its failure if there was one; the consumer
    gives up with `cancel`.
    """

    def __init__(self, capacity: int) -> None:
        assert capacity >= 1, f"a channel holds at least one item, got {capacity}"
        self.capacity = capacity
        self.put_wait_s = 0.0
        self._items: deque[T] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._cancelled = False
        self._failure: BaseException | None = None

    def put(self, item: T) -> None:
        """Add an item, waiting for room; raises Cancelled if the consumer has given up."""
        with self._changed:
            started_s = time.perf_counter()
            while len(self._items) >= self.capacity and not self._cancelled:
                self._changed.wait()
            self.put_wait_s += time.perf_counter() - started_s
            if self._cancelled:
                raise Cancelled
            self._items.append(item)
            self._changed.notify_all()

    def close(self, failure: BaseException | None = None) -> None:
        """Announce the end of the items, and the failure if there was one."""
        with self._changed:
            self._closed = True
            self._failure = failure
            self._changed.notify_all()

    def get(self) -> T | None:
        """Return the next item, waiting for it; None at the end. Raises the producer's
        failure after its last item."""
        with self._changed:
            while not self._items and not self._closed and not self._cancelled:
                self._changed.wait()
            if self._cancelled:
                raise Cancelled
            if self._items:
                item = self._items.popleft()
                self._changed.notify_all()
                return item
            if self._failure is not None:
                raise self._failure
            return None

    def cancel(self) -> None:
        """Give up: pending and later calls on both sides raise Cancelled, and queued
        items are dropped."""
        with self._changed:
            self._cancelled = True
            self._items.clear()
            self._changed.notify_all()
