"""Stand-ins for a GPU's graphs, streams and pinned memory, which act late and are
strict about order."""

from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ultraflash_cli.engine.gpu_streams import Streams, WorkStream
from ultraflash_cli.engine.graphs import Recording

__all__ = ["LateRecorder", "LazyCopyEngine", "LoggedStream", "logged_streams"]


@dataclass
class LateRecorder:
    """Records work as a function; a replay runs it on the buffers and writes the
    results to the same ones."""

    refuses: str = ""
    """Work with a result of this name is refused."""
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


class LoggedStream:
    """Runs all work immediately, and records the order in which streams worked and
    waited."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name = name
        self._log = log

    def wait_for(self, *others: WorkStream) -> None:
        for other in others:
            assert isinstance(other, LoggedStream)
            self._log.append(f"{self.name} waits for {other.name}")

    @contextmanager
    def as_current(self) -> Generator[None]:
        self._log.append(f"{self.name} works")
        yield

    def record_use(self, tensors: Iterable[Tensor]) -> None:
        self._log.append(f"{self.name} records {len(list(tensors))}")


def logged_streams() -> tuple[Streams, list[str]]:
    """Return streams and the log of their operations."""
    log: list[str] = []
    return Streams(*(LoggedStream(name, log) for name in ("caller", "generate", "refine"))), log


class LazyCopyEngine:
    """Copies nothing until a caller waits, like the slowest possible device."""

    def __init__(self) -> None:
        self.buffers: list[Tensor] = []
        self._begun: list[tuple[Tensor, Tensor]] = []
        self.waits = 0

    def buffer(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        self.buffers.append(torch.zeros(shape, dtype=dtype))
        return self.buffers[-1]

    def copy(self, source: Tensor, target: Tensor) -> None:
        self._begun.append((source, target))

    def fence(self) -> Callable[[], object]:
        begun, self._begun = self._begun, []

        def wait() -> None:
            self.waits += 1
            with torch.inference_mode():
                for source, target in begun:
                    target.copy_(source)

        return wait
