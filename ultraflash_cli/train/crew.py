"""Processes that train together: who they are, shared gradients, shared sums."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import get_node_local_rank

from ultraflash_cli.errors import UsageError

__all__ = ["ALONE", "Crew", "joined_crew"]


@dataclass(frozen=True)
class Crew:
    """One process among ``size``; each has its own batches, and all networks unless the crew divides them.

    Data parallel by one all-reduce a step over the gradients of whoever learns in it. Torch's wrapper wants one
    ``forward`` between two steps; roll-outs run a network many times, several networks take turns, and a sum of
    gradients does not care.
    """

    rank: int = 0
    size: int = 1
    divides: bool = False
    """Whether what learns is divided over the processes (``train/shards.py``) in place of whole in each."""

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    @torch.no_grad()
    def share_weights(self, networks: nn.Module) -> None:
        """Broadcast the leader's parameters and buffers to every process."""
        if self.size > 1:
            for tensor in (*networks.parameters(), *networks.buffers()):
                dist.broadcast(tensor.data, 0)

    @torch.no_grad()
    def share_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace gradients by their mean over the processes; a missing one counts as zero.

        Divided parameters have it already.
        """
        if self.size == 1 or self.divides:
            return
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = torch.cat([grad.flatten() for grad in grads])
        dist.all_reduce(flat)
        flat /= self.size
        for parameter, mean in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            parameter.grad = mean.view_as(parameter)

    def mean(self, values: Sequence[float]) -> list[float]:
        """Return the means over the processes, which call with equally many values."""
        if self.size == 1 or not values:
            return list(values)
        device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else None
        total: Tensor = torch.tensor(values, dtype=torch.float64, device=device)
        dist.all_reduce(total)
        return (total / self.size).tolist()


ALONE = Crew()
"""A single process."""


@contextmanager
def joined_crew(device: torch.device, *, divides: bool = False) -> Generator[tuple[Crew, torch.device]]:
    """Join the processes that ``torchrun`` started, if it did; return the crew and this process's device.

    Raises UsageError for a crew of none that is to divide the networks.
    """
    if not dist.is_torchelastic_launched():
        if divides:
            raise UsageError("--shard needs several processes; start the command with torchrun")
        yield ALONE, device
        return
    on_gpu = device.type == "cuda"
    dist.init_process_group("nccl" if on_gpu else "gloo")
    if on_gpu:
        device = torch.device("cuda", get_node_local_rank())
        torch.cuda.set_device(device)
    try:
        yield Crew(dist.get_rank(), dist.get_world_size(), divides), device
    finally:
        dist.destroy_process_group()
