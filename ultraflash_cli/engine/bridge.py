"""The way of latents from the generator's device to that of everything after it."""

from collections.abc import Generator, Iterable
from contextlib import contextmanager

import torch
from torch import Tensor

from ultraflash_cli.engine.gpu_streams import CudaStream, WorkStream, to_host

__all__ = ["Bridge", "HostStream", "bridge_between"]


class HostStream:
    """Stands for a device without streams: work is done as soon as it is queued."""

    def wait_for(self, *others: WorkStream) -> None:
        """Do nothing."""

    @contextmanager
    def as_current(self) -> Generator[None]:
        """Change nothing."""
        yield

    def record_use(self, tensors: Iterable[Tensor]) -> None:
        """Do nothing."""


class Bridge:
    """Carries tensors from one device to another, between the work queued on both.

    On GPUs they cross through pinned host memory: the source's stream copies them out,
    the target's waits for that copy, on the device, and copies them in. The host waits
    for nothing, and GPUs without access to each other's memory will do.
    """

    def __init__(
        self, source: WorkStream, target: WorkStream, device: torch.device
    ) -> None:
        """Cross from the stream ``source`` to the stream ``target`` of ``device``."""
        self.source = source
        self.target = target
        self.device = device

    def carry(self, tensor: Tensor) -> Tensor:
        """Return a tensor of the source's device on the target's.

        The work that made it must have been queued on ``source``; work queued on
        ``target`` from now on may use the result.
        """
        with self.source.as_current():
            on_host = to_host(tensor).unfinished
        self.target.wait_for(self.source)
        with self.target.as_current():
            return on_host.to(self.device, non_blocking=True)

    def settle(self) -> None:
        """Make later work on the target wait for all work queued on the source."""
        self.target.wait_for(self.source)


def bridge_between(source: torch.device, target: torch.device) -> Bridge:
    """Return the bridge between the current streams of two devices."""
    return Bridge(_stream_of(source), _stream_of(target), target)


def _stream_of(device: torch.device) -> WorkStream:
    return CudaStream(device) if device.type == "cuda" else HostStream()
