"""CUDA streams for overlapping work, and asynchronous copies between device and
host."""

import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ultraflash_cli.engine.pictures import Picture, as_picture

__all__ = [
    "BufferedCopier",
    "CopyEngine",
    "CudaCopyEngine",
    "CudaStream",
    "HostCopier",
    "HostCopy",
    "PendingPicture",
    "PictureCopier",
    "Streams",
    "WorkStream",
    "copier_for",
    "cuda_streams",
    "to_device",
    "to_host",
]


class WorkStream(Protocol):
    """A queue of work on a device that runs concurrently with other streams."""

    def wait_for(self, *others: "WorkStream") -> None:
        """Make later work on this stream wait for all work queued on the others so
        far."""
        ...

    @contextmanager
    def as_current(self) -> Generator[None]:
        """Queue the work inside the block on this stream."""
        ...

    def record_use(self, tensors: Iterable[Tensor]) -> None:
        """Keep tensors of another stream alive until the work queued on this one is
        done (``Tensor.record_stream``)."""
        ...


@dataclass(frozen=True)
class Streams:
    """The streams of a generated video."""

    caller: WorkStream
    """The caller's stream, which uses the frames."""
    generate: WorkStream
    """The generator."""
    refine: WorkStream
    """Everything after the generator."""


class CudaStream:
    """A CUDA stream, or the current one if none is given."""

    def __init__(
        self, device: torch.device, stream: torch.cuda.Stream | None = None
    ) -> None:
        self._device = device
        self._stream = stream

    @property
    def stream(self) -> torch.cuda.Stream:
        """The stream on which work is queued."""
        return self._stream or torch.cuda.current_stream(self._device)

    def wait_for(self, *others: WorkStream) -> None:
        """Wait on the device, not on the host."""
        for other in others:
            assert isinstance(other, CudaStream), "streams of GPUs wait for each other"
            self.stream.wait_stream(other.stream)

    @contextmanager
    def as_current(self) -> Generator[None]:
        """Make the stream the current one, and its device the current device."""
        with torch.cuda.stream(self.stream):
            yield

    def record_use(self, tensors: Iterable[Tensor]) -> None:
        """Inform the allocator."""
        for tensor in tensors:
            tensor.record_stream(self.stream)


def cuda_streams(device: torch.device) -> Streams:
    """Return separate streams for generator and refiner."""
    generate, refine = (CudaStream(device, torch.cuda.Stream(device)) for _ in range(2))
    return Streams(CudaStream(device), generate, refine)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a host tensor to ``device`` without waiting for work queued there."""
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return tensor.pin_memory().to(
        device, non_blocking=True
    )  # its allocator keeps the pinned copy until it is read


class HostCopy:
    """A tensor being copied to the host; ``result`` waits for it."""

    def __init__(self, tensor: Tensor) -> None:
        self._event = None
        self._copy = tensor
        if tensor.is_cuda:
            self._copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._copy.copy_(tensor, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(tensor.device))

    @property
    def unfinished(self) -> Tensor:
        """The copy, for work that waits for the copying stream itself."""
        return self._copy

    def result(self) -> Tensor:
        """Return the copy once it is complete."""
        if self._event is not None:
            self._event.synchronize()
        return self._copy


def to_host(tensor: Tensor) -> HostCopy:
    """Copy a tensor to pinned host memory, overlapping with computation."""
    return HostCopy(tensor)


class PendingPicture(Protocol):
    """A picture being copied to the host."""

    def result(self) -> Picture:
        """Return the picture once it is copied; may be called repeatedly and from any
        thread."""
        ...


class PictureCopier(Protocol):
    """Copies finished pictures to the host."""

    def copy(self, pictures: Iterable[Tensor]) -> Sequence[PendingPicture]:
        """Start copying pictures ``[H, W, 3]``, 8 bits or 16 stored as int16 (see
        ``pictures.quantise``)."""
        ...


@dataclass(frozen=True)
class _FinishedPicture:
    picture: Picture

    def result(self) -> Picture:
        return self.picture


class HostCopier:
    """Passes on pictures on the host; for others it waits one by one."""

    def copy(self, pictures: Iterable[Tensor]) -> Sequence[PendingPicture]:
        """Return the pictures, which are finished at once."""
        return [_FinishedPicture(as_picture(picture)) for picture in pictures]


class CopyEngine(Protocol):
    """Primitives for buffered copies."""

    def buffer(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return host memory that the device can write to."""
        ...

    def copy(self, source: Tensor, target: Tensor) -> None:
        """Start a copy from the device to the host."""
        ...

    def fence(self) -> Callable[[], object]:
        """Return a function that waits until all copies started so far are
        complete."""
        ...


class CudaCopyEngine:
    """Pinned memory, and copies on a separate stream that overlap with the next
    group."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)

    def buffer(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return pinned memory."""
        return torch.empty(shape, dtype=dtype, pin_memory=True)

    def copy(self, source: Tensor, target: Tensor) -> None:
        """Copy asynchronously after the work queued so far; host tensors are copied at
        once."""
        if not source.is_cuda:
            target.copy_(source)
            return
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            target.copy_(source, non_blocking=True)
        source.record_stream(self.stream)

    def fence(self) -> Callable[[], object]:
        """Return the ``synchronize`` method of an event."""
        event = torch.cuda.Event()
        event.record(self.stream)
        return event.synchronize


class BufferedCopier:
    """Copies groups of pictures to the host through ``slots`` pinned buffers in turn.

    A group is copied while the next one is computed. The first ``result`` of a group
    waits for its copy and empties the buffer; ``copy`` does so when it needs that
    buffer again.
    """

    def __init__(self, engine: CopyEngine, *, slots: int = 2) -> None:
        self._engine = engine
        self._buffers: list[Tensor | None] = [None] * slots
        self._groups: list[_PictureGroup | None] = [None] * slots
        self._next = 0

    def copy(self, pictures: Iterable[Tensor]) -> Sequence[PendingPicture]:
        """Start copying a group; waits only for the group that used the buffer
        before."""
        group = list(pictures)
        if not group:
            return []
        slot, self._next = self._next, (self._next + 1) % len(self._buffers)
        before = self._groups[slot]
        if before is not None:
            before.pictures()
        shape = (len(group), *group[0].shape)
        buffer = self._buffers[slot]
        if (
            buffer is None
            or buffer.dtype != group[0].dtype
            or buffer.shape[1:] != shape[1:]
            or len(buffer) < len(group)
        ):
            buffer = self._buffers[slot] = self._engine.buffer(shape, group[0].dtype)
        for picture, target in zip(group, buffer.unbind(), strict=False):
            self._engine.copy(picture, target)
        copied = self._groups[slot] = _PictureGroup(
            buffer[: len(group)], self._engine.fence()
        )
        return [_GroupedPicture(copied, at) for at in range(len(group))]


class _PictureGroup:
    """A group of pictures in a pinned buffer."""

    def __init__(self, pages: Tensor, wait: Callable[[], object]) -> None:
        self._lock = threading.Lock()
        self._pages: tuple[Tensor, Callable[[], object]] | None = (pages, wait)
        self._pictures: Sequence[Picture] = ()

    def pictures(self) -> Sequence[Picture]:
        """Return the pictures, moved out of the buffer once they are copied."""
        with self._lock:
            if self._pages is not None:
                pages, wait = self._pages
                wait()
                self._pictures = [as_picture(page).copy() for page in pages]
                self._pages = None
            return self._pictures


@dataclass(frozen=True)
class _GroupedPicture:
    group: _PictureGroup
    at: int

    def result(self) -> Picture:
        return self.group.pictures()[self.at]


def copier_for(device: torch.device) -> PictureCopier:
    """Return the copier for a device: buffered for a GPU."""
    return BufferedCopier(CudaCopyEngine(device)) if device.type == "cuda" else HostCopier()
