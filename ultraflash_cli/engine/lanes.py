"""Work beside other work on a device: lanes that keep an order of their own, and ways
between device and host."""

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
    """Work in an order of its own, next to that of other lanes."""

    def after(self, *others: "Lane") -> None:
        """Let what comes next on this lane wait for all that was put on the others so
        far."""
        ...

    @contextmanager
    def work(self) -> Generator[None]:
        """Put what is computed inside on this lane."""
        ...

    def borrow(self, tensors: Iterable[Tensor]) -> None:
        """Use tensors that were made on another lane: their memory stays theirs until
        this lane is done so far."""
        ...


@dataclass(frozen=True)
class Lanes:
    """The lanes of a generated video."""

    caller: Lane
    """What calls, and uses the frames."""
    draw: Lane
    """The generator."""
    refine: Lane
    """Everything after the generator."""


class CudaLane:
    """A CUDA stream; without one of its own, the stream that is current wherever it is
    used."""

    def __init__(
        self, device: torch.device, stream: torch.cuda.Stream | None = None
    ) -> None:
        self._device = device
        self._stream = stream

    @property
    def stream(self) -> torch.cuda.Stream:
        """The stream that work goes to."""
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
        """Return the allocator."""
        for tensor in tensors:
            tensor.record_stream(self.stream)


def cuda_lanes(device: torch.device) -> Lanes:
    """Return lanes with streams of their own for generator and refiner."""
    draw, refine = (CudaLane(device, torch.cuda.Stream(device)) for _ in range(2))
    return Lanes(CudaLane(device), draw, refine)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor of the host to ``device`` without waiting for what is computed
    there."""
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return tensor.pin_memory().to(
        device, non_blocking=True
    )  # its allocator keeps the pinned copy until it is read


class OnHost:
    """A tensor on its way to the host's memory; ``arrive`` waits for it."""

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
    """Copy a tensor to pinned memory of the host next to what is computed."""
    return OnHost(tensor)


class Arriving(Protocol):
    """A picture on its way to the host."""

    def arrive(self) -> Picture:
        """Return the picture once it is there; any thread may ask, and more than
        once."""
        ...


class Outlet(Protocol):
    """The way of finished pictures to the host."""

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
    """The way of pictures that are on the host already, or that are waited for one by
    one."""

    def send(self, pictures: Iterable[Tensor]) -> Sequence[Arriving]:
        """Return the pictures as they are."""
        return [_Here(as_picture(picture)) for picture in pictures]


class Port(Protocol):
    """What a buffered way is made of."""

    def buffer(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return memory of the host that the device can write to."""
        ...

    def copy(self, source: Tensor, target: Tensor) -> None:
        """Begin to copy from the device to the host."""
        ...

    def mark(self) -> Callable[[], object]:
        """Return what waits until every copy begun so far is complete."""
        ...


class CudaPort:
    """Pinned memory, and copies on a stream of their own: they travel while the next
    group is computed."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)

    def buffer(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return pinned memory."""
        return torch.empty(shape, dtype=dtype, pin_memory=True)

    def copy(self, source: Tensor, target: Tensor) -> None:
        """Copy without waiting, once what was computed so far is there; what is on the
        host is copied at once."""
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
    """The way of pictures through ``places`` buffers that take a group each, in turn.

    A group is on its way while the next one is computed. Whoever first asks for one of
    its pictures waits, and takes all of them out; the sender itself does where the
    buffer is needed again and nobody has asked.
    """

    def __init__(self, port: Port, *, places: int = 2) -> None:
        self._port = port
        self._buffers: list[Tensor | None] = [None] * places
        self._parcels: list[_Parcel | None] = [None] * places
        self._next = 0

    def send(self, pictures: Iterable[Tensor]) -> Sequence[Arriving]:
        """Begin the copies of a group; waits only for the group that used the buffer
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
    """A group of pictures in a buffer."""

    def __init__(self, pages: Tensor, wait: Callable[[], object]) -> None:
        self._lock = threading.Lock()
        self._pages: tuple[Tensor, Callable[[], object]] | None = (pages, wait)
        self._pictures: Sequence[Picture] = ()

    def open(self) -> Sequence[Picture]:
        """Take the pictures out of the buffer, once they are there."""
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
    """Return the way of pictures from a device: buffered from a GPU."""
    return BufferedOutlet(CudaPort(device)) if device.type == "cuda" else HostOutlet()
