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
    "Arriving",
    "BufferedOutlet",
    "CudaLane",
    "CudaPort",
    "HostOutlet",
    "Lane",
    "Lanes",
    "OnHost",
    "Outlet",
    "Port",
    "cuda_lanes",
    "outlet_for",
    "to_device",
    "to_host",
]


class Lane(Protocol):
    """A stream of work, independent of other lanes."""

    def after(self, *others: "Lane") -> None:
        """Make later work on this lane wait for everything queued on the others so
        far."""
        ...

    @contextmanager
    def work(self) -> Generator[None]:
        """Queue the work inside on this lane."""
        ...

    def borrow(self, tensors: Iterable[Tensor]) -> None:
        """Keep tensors of another lane alive until the work queued on this one is done
        (``Tensor.record_stream``)."""
        ...


@dataclass(frozen=True)
class Lanes:
    """The lanes of a generated video."""

    caller: Lane
    """The caller's stream, which uses the frames."""
    draw: Lane
    """The generator."""
    refine: Lane
    """Everything after the generator."""


class CudaLane:
    """A CUDA stream; without one of its own, the current stream."""

    def __init__(
        self, device: torch.device, stream: torch.cuda.Stream | None = None
    ) -> None:
        self._device = device
        self._stream = stream

    @property
    def stream(self) -> torch.cuda.Stream:
        """The stream that work is queued on."""
        return self._stream or torch.cuda.current_stream(self._device)

    def after(self, *others: Lane) -> None:
        """Wait on the device, not on the host."""
        for other in others:
            assert isinstance(other, CudaLane), "lanes of one device wait for each other"
            self.stream.wait_stream(other.stream)

    @contextmanager
    def work(self) -> Generator[None]:
        """Make the stream the current one."""
        with torch.cuda.stream(self.stream):
            yield

    def borrow(self, tensors: Iterable[Tensor]) -> None:
        """Tell the allocator."""
        for tensor in tensors:
            tensor.record_stream(self.stream)


def cuda_lanes(device: torch.device) -> Lanes:
    """Return lanes with separate streams for generator and refiner."""
    draw, refine = (CudaLane(device, torch.cuda.Stream(device)) for _ in range(2))
    return Lanes(CudaLane(device), draw, refine)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a host tensor to ``device`` without waiting for work queued there."""
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return tensor.pin_memory().to(
        device, non_blocking=True
    )  # its allocator keeps the pinned copy until it is read


class OnHost:
    """A tensor being copied to the host; ``arrive`` waits for it."""

    def __init__(self, tensor: Tensor) -> None:
        self._event = None
        self._copy = tensor
        if tensor.is_cuda:
            self._copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._copy.copy_(tensor, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(tensor.device))

    def arrive(self) -> Tensor:
        """Return the copy once it is complete."""
        if self._event is not None:
            self._event.synchronize()
        return self._copy


def to_host(tensor: Tensor) -> OnHost:
    """Copy a tensor to pinned host memory, overlapping with computation."""
    return OnHost(tensor)


class Arriving(Protocol):
    """A picture being copied to the host."""

    def arrive(self) -> Picture:
        """Return the picture once it is copied; callable from any thread,
        repeatedly."""
        ...


class Outlet(Protocol):
    """Copies finished pictures to the host."""

    def send(self, pictures: Iterable[Tensor]) -> Sequence[Arriving]:
        """Take pictures ``[H, W, 3]``, 8 bits or the bits of 16 (see
        ``pictures.quantise``)."""
        ...


@dataclass(frozen=True)
class _Here:
    picture: Picture

    def arrive(self) -> Picture:
        return self.picture


class HostOutlet:
    """Passes on pictures that are on the host, or waits for each."""

    def send(self, pictures: Iterable[Tensor]) -> Sequence[Arriving]:
        """Return the pictures as they are."""
        return [_Here(as_picture(picture)) for picture in pictures]


class Port(Protocol):
    """Primitives of buffered copies."""

    def buffer(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return host memory that the device can write to."""
        ...

    def copy(self, source: Tensor, target: Tensor) -> None:
        """Begin to copy from the device to the host."""
        ...

    def mark(self) -> Callable[[], object]:
        """Return what waits until every copy begun so far is complete."""
        ...


class CudaPort:
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

    def mark(self) -> Callable[[], object]:
        """Return the wait of an event."""
        event = torch.cuda.Event()
        event.record(self.stream)
        return event.synchronize


class BufferedOutlet:
    """Copies groups of pictures to the host through ``places`` pinned buffers in turn.

    A group is copied while the next one is computed. The first ``arrive`` of a group
    waits for its copy and empties the buffer; ``send`` does so when it needs that
    buffer again.
    """

    def __init__(self, port: Port, *, places: int = 2) -> None:
        self._port = port
        self._buffers: list[Tensor | None] = [None] * places
        self._parcels: list[_Parcel | None] = [None] * places
        self._next = 0

    def send(self, pictures: Iterable[Tensor]) -> Sequence[Arriving]:
        """Start the copies of a group; waits only for the group that used the buffer
        before."""
        group = list(pictures)
        if not group:
            return []
        place, self._next = self._next, (self._next + 1) % len(self._buffers)
        before = self._parcels[place]
        if before is not None:
            before.open()
        shape = (len(group), *group[0].shape)
        buffer = self._buffers[place]
        if (
            buffer is None
            or buffer.dtype != group[0].dtype
            or buffer.shape[1:] != shape[1:]
            or len(buffer) < len(group)
        ):
            buffer = self._buffers[place] = self._port.buffer(shape, group[0].dtype)
        for picture, target in zip(group, buffer.unbind(), strict=False):
            self._port.copy(picture, target)
        parcel = self._parcels[place] = _Parcel(buffer[: len(group)], self._port.mark())
        return [_Parcelled(parcel, at) for at in range(len(group))]


class _Parcel:
    """A group of pictures in a pinned buffer."""

    def __init__(self, pages: Tensor, wait: Callable[[], object]) -> None:
        self._lock = threading.Lock()
        self._pages: tuple[Tensor, Callable[[], object]] | None = (pages, wait)
        self._pictures: Sequence[Picture] = ()

    def open(self) -> Sequence[Picture]:
        """Take the pictures out of the buffer once they are copied."""
        with self._lock:
            if self._pages is not None:
                pages, wait = self._pages
                wait()
                self._pictures = [as_picture(page).copy() for page in pages]
                self._pages = None
            return self._pictures


@dataclass(frozen=True)
class _Parcelled:
    parcel: _Parcel
    at: int

    def arrive(self) -> Picture:
        return self.parcel.open()[self.at]


def outlet_for(device: torch.device) -> Outlet:
    """Return the outlet for a device: buffered for a GPU."""
    return BufferedOutlet(CudaPort(device)) if device.type == "cuda" else HostOutlet()
