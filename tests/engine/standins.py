"""What stands in for a GPU's graphs, streams and pinned memory: slow to act, and strict about order."""

from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ultraflash_cli.engine.graphs import Recording
from ultraflash_cli.engine.lanes import Lane, Lanes

__all__ = ["LateRecorder", "LazyPort", "LoggedLane", "logged_lanes"]


@dataclass
class LateRecorder:
    """Records by keeping the work; a replay does it from the buffers and leaves the results in the same place."""

    refuses: str = ""
    """Work is refused whose results hold this name."""
    recordings: int = 0

    def record(self, work: Callable[[], dict[str, Tensor]]) -> Recording:
        self.recordings += 1
        if self.refuses:
            raise RuntimeError(f"operation not permitted: {self.refuses}\nsecond line")
        return _LateRecording(work)


@dataclass
class _LateRecording:
    work: Callable[[], dict[str, Tensor]]
    results: dict[str, Tensor] = field(default_factory=lambda: dict[str, Tensor]())

    def replay(self) -> dict[str, Tensor]:
        for name, made in self.work().items():
            if name in self.results:
                self.results[name].copy_(made)
            else:
                self.results[name] = made.clone()
        return self.results


class LoggedLane:
    """Does all work at once, and notes in which order lanes worked and waited."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name = name
        self._log = log

    def after(self, *others: Lane) -> None:
        for other in others:
            assert isinstance(other, LoggedLane)
            self._log.append(f"{self.name} waits for {other.name}")

    @contextmanager
    def work(self) -> Generator[None]:
        self._log.append(f"{self.name} works")
        yield

    def borrow(self, tensors: Iterable[Tensor]) -> None:
        self._log.append(f"{self.name} borrows {len(list(tensors))}")


def logged_lanes() -> tuple[Lanes, list[str]]:
    """Lanes, and what will have happened on them."""
    log: list[str] = []
    return Lanes(*(LoggedLane(name, log) for name in ("caller", "draw", "refine"))), log


class LazyPort:
    """Copies nothing before somebody waits, as the worst of devices would."""

    def __init__(self) -> None:
        self.buffers: list[Tensor] = []
        self._begun: list[tuple[Tensor, Tensor]] = []
        self.waits = 0

    def buffer(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        self.buffers.append(torch.zeros(shape, dtype=dtype))
        return self.buffers[-1]

    def copy(self, source: Tensor, target: Tensor) -> None:
        self._begun.append((source, target))

    def mark(self) -> Callable[[], object]:
        begun, self._begun = self._begun, []

        def wait() -> None:
            self.waits += 1
            with torch.inference_mode():
                for source, target in begun:
                    target.copy_(source)

        return wait
