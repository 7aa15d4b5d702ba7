"""The torchrun process group: rank and size, averaged gradients, averaged losses."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import get_node_local_rank

from ultraflash_cli.errors import UsageError

__all__ = ["ALONE", "ProcessGroup", "joined_group"]


@dataclass(frozen=True)
class ProcessGroup:
    """One process of ``size``; each has its own batches and all networks, unless they
    are sharded.

    Data parallelism is one all-reduce per step over the gradients of the learners
    updated in it. DistributedDataParallel expects one ``forward`` per step; here
    roll-outs run a network many times and several networks take turns, which does not
    matter to a sum of gradients.
    """

    rank: int = 0
    size: int = 1
    shards: bool = False
    """Whether learners are sharded over the processes (``train/shards.py``)."""
    shards_frozen: bool = False
    """Whether large frozen networks are sharded as well."""

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            dist.barrier()

    @torch.no_grad()
    def share_weights(self, networks: nn.Module) -> None:
        """Broadcast the main process's parameters and buffers to every process."""
        if self.size > 1:
            for tensor in (*networks.parameters(), *networks.buffers()):
                dist.broadcast(tensor.data, 0)

    @torch.no_grad()
    def share_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace gradients by their mean over the processes; a missing one counts as zero.

        Gradients of sharded parameters are averaged already.
        """
        if self.size == 1 or self.shards:
            return
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = torch.cat([grad.flatten() for grad in grads])
        dist.all_reduce(flat)
        flat /= self.size
        for parameter, mean in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            parameter.grad = mean.view_as(parameter)

    def mean(self, values: Sequence[float]) -> list[float]:
        """Return the means over the processes, all of which pass equally many
        values."""
        if self.size == 1 or not values:
            return list(values)
        device = torch.device("cuda", torch.cuda.current_device()) if "nccl" in dist.get_backend() else None
        total: Tensor = torch.tensor(values, dtype=torch.float64, device=device)
        dist.all_reduce(total)
        return (total / self.size).tolist()


ALONE = ProcessGroup()
"""A single process."""


@contextmanager
def joined_group(
    device: torch.device, *, shards: bool = False, shards_frozen: bool = False
) -> Generator[tuple[ProcessGroup, torch.device]]:
    """Join the processes that ``torchrun`` started, if it did; return the group and this process's device.

    Raises UsageError for sharding without torchrun.
    """
    if not dist.is_torchelastic_launched():
        if shards:
            raise UsageError("--shard needs several processes; start the command with torchrun")
        yield ALONE, device
        return
    on_gpu = device.type == "cuda"
    # Sharded states are saved from CPU memory, over gloo.
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo")
    if on_gpu:
        device = torch.device("cuda", get_node_local_rank())
        torch.cuda.set_device(device)
    try:
        yield ProcessGroup(dist.get_rank(), dist.get_world_size(), shards, shards_frozen), device
    finally:
        dist.destroy_process_group()
