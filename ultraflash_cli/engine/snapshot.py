"""Asynchronous copies of streaming states to the host, laid out as a safetensors
file."""

import json
import struct
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

import torch
from torch import Tensor

from ultraflash_cli.engine.gpu_streams import CopyEngine, CudaCopyEngine

__all__ = [
    "CudaSnapshotCopyEngine",
    "Snapshot",
    "SnapshotCopyEngine",
    "SnapshotTaker",
    "Snapshots",
    "SnapshotsOfTwo",
    "snapshots_for",
]

_DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


class SnapshotCopyEngine(CopyEngine, Protocol):
    """Primitives for copying a state."""

    def free_bytes(self) -> int:
        """Return the free device memory in bytes."""
        ...

    def hold(self) -> None:
        """Make later work wait, on the device, for the copies started so far."""
        ...


class CudaSnapshotCopyEngine(CudaCopyEngine):
    """Pinned memory, and copies on a separate stream."""

    def free_bytes(self) -> int:
        """Return the free memory of the driver and of torch's allocator together."""
        free, _ = torch.cuda.mem_get_info(self.device)
        return (
            free
            + torch.cuda.memory_reserved(self.device)
            - torch.cuda.memory_allocated(self.device)
        )

    def hold(self) -> None:
        """Make the current stream wait for the copies."""
        torch.cuda.current_stream(self.device).wait_stream(self.stream)


class Snapshot:
    """A copy of a state; its pieces, in order, form a safetensors file."""

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        wait: Callable[[], object],
        done: Callable[[], object],
    ) -> None:
        self._tensors = tensors
        self._wait = wait
        self._done = done

    def pieces(self) -> Iterator[bytes | memoryview]:
        """Wait for the copy, then yield header and tensors in place."""
        self._wait()
        header: dict[str, object] = {}
        place = 0
        # Sorted as safetensors does: wide types first, so that each is aligned.
        ordered = sorted(
            self._tensors.items(), key=lambda item: (-item[1].element_size(), item[0])
        )
        for name, tensor in ordered:
            offsets = [place, place + tensor.nbytes]
            header[name] = {
                "dtype": _DTYPE_NAMES[tensor.dtype],
                "shape": list(tensor.shape),
                "data_offsets": offsets,
            }
            place = offsets[1]

        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        yield struct.pack("<Q", len(text)) + text
        for _, tensor in ordered:
            if tensor.numel():
                yield tensor.reshape(-1).view(torch.uint8).numpy().data

    def release(self) -> None:
        """Release the memory; the pieces must no longer be used."""
        self._tensors = {}
        self._done()

    def beside(self, other: "Snapshot") -> "Snapshot":
        """Return one snapshot of the tensors of both."""

        def wait() -> None:
            self._wait()
            other._wait()

        def done() -> None:
            self.release()
            other.release()

        return Snapshot({**self._tensors, **other._tensors}, wait, done)


class SnapshotTaker(Protocol):
    """Takes snapshots of states."""

    def take(self, tensors: Mapping[str, Tensor]) -> Snapshot:
        """Return a snapshot of the tensors of a state, see ``stage.state_leaves``; they
        may be overwritten afterwards."""
        ...


class Snapshots:
    """Takes snapshots of states without making the host wait for the device.

    If the device has room, the state is duplicated there and copied out while later
    work runs; otherwise later work waits, on the device, for the copy. Pinned buffers
    are reused once a snapshot is released, because pinning takes longer than copying.
    """

    def __init__(self, engine: SnapshotCopyEngine | None) -> None:
        """Copy through ``engine``; without one, states are on the host and are copied
        at once."""
        self._engine = engine
        self._spare: dict[str, Tensor] = {}

    def take(self, tensors: Mapping[str, Tensor]) -> Snapshot:
        """Return a snapshot of the tensors of a state, see ``stage.state_leaves``; they
        may be overwritten afterwards."""
        engine = self._engine
        if engine is None:
            copies = {
                name: tensor.detach().cpu().contiguous().clone()
                for name, tensor in tensors.items()
            }
            return Snapshot(copies, lambda: None, lambda: None)

        doubled = engine.free_bytes() > 2 * sum(
            tensor.nbytes for tensor in tensors.values()
        )
        sources = (
            {name: tensor.clone() for name, tensor in tensors.items()}
            if doubled
            else tensors
        )
        spare, self._spare = self._spare, {}

        buffers: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            buffer = spare.get(name)
            fits = (
                buffer is not None
                and buffer.shape == tensor.shape
                and buffer.dtype == tensor.dtype
            )
            buffers[name] = (
                buffer
                if fits and buffer is not None
                else engine.buffer(tuple(tensor.shape), tensor.dtype)
            )

        for name, source in sources.items():
            engine.copy(source, buffers[name])

        if not doubled:
            engine.hold()
        return Snapshot(buffers, engine.fence(), lambda: self._take_back(buffers))

    def _take_back(self, buffers: dict[str, Tensor]) -> None:
        self._spare = buffers


class SnapshotsOfTwo:
    """Takes snapshots of states on two devices; each copies its own tensors."""

    def __init__(
        self, device: torch.device, on_device: SnapshotTaker, elsewhere: SnapshotTaker
    ) -> None:
        """Copy tensors on ``device`` through ``on_device``, all others through
        ``elsewhere``."""
        self._device = device
        self._on_device = on_device
        self._elsewhere = elsewhere

    def take(self, tensors: Mapping[str, Tensor]) -> Snapshot:
        """Return a snapshot of the tensors of a state, see ``stage.state_leaves``; they
        may be overwritten afterwards."""
        mine = {
            name: tensor
            for name, tensor in tensors.items()
            if tensor.device == self._device
        }
        others = {name: tensor for name, tensor in tensors.items() if name not in mine}
        return self._on_device.take(mine).beside(self._elsewhere.take(others))


def snapshots_for(device: torch.device, *others: torch.device) -> SnapshotTaker:
    """Return the object that takes snapshots of states on ``device``, or on it and one
    of the ``others``."""
    here = Snapshots(CudaSnapshotCopyEngine(device) if device.type == "cuda" else None)
    different = [other for other in others if other != device]
    if not different:
        return here
    return SnapshotsOfTwo(device, here, snapshots_for(*different))
