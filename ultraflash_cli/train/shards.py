"""Learners sharded over processes (FSDP2): parameters, gradients, moments and EMA
weights."""

import copy
import warnings
from collections.abc import Callable, Collection
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from ultraflash_cli.engine.layers.dit import DitBlock

__all__ = ["Shards", "part_like", "transformer_parts", "whole"]


class _Turn(nn.Module):
    """A loss as a forward pass: parameters are gathered at its start, gradients
    scattered at the end of its backward pass. A recipe's loss calls several methods of
    its networks, some of them repeatedly; FSDP sees a single call of one module.
    """

    def __init__(self, roles: nn.Module) -> None:
        super().__init__()
        self.roles = roles

    def forward(self, loss: Callable[..., dict[str, Tensor]], batch: Any, rng: torch.Generator) -> dict[str, Tensor]:
        terms = loss(self.roles, batch, rng)
        # All processes must have gradients for the same parameters; a parameter that a
        # batch does not use gets zeros.
        learning = [p.sum() for p in self.roles.parameters() if p.requires_grad and not isinstance(p, DTensor)]
        name = next(iter(terms))
        return terms | {name: terms[name] + 0.0 * torch.stack(learning).sum()}


class Shards:
    """The networks of a run, with the parameters in ``learning`` sharded; frozen ones
    are replicated unless ``frozen`` is set, which shards frozen transformers. If
    ``by_layers`` is set, the attention and feed-forward parts of a transformer's
    layers, most of its weights, are gathered one at a time when they are computed;
    everything else is gathered for the whole turn of a learner. With ``half`` they are
    gathered and computed in bfloat16, and gradients are summed in float32; weights,
    moments and EMA weights stay float32.
    """

    def __init__(
        self,
        roles: nn.Module,
        learning: Collection[nn.Parameter],
        *,
        half: bool = False,
        frozen: bool = False,
        by_layers: bool = True,
    ) -> None:
        layers = transformer_parts(roles) if by_layers else []
        parts = [part for part in layers if frozen or _all_in(part, learning)]
        sharded = {*learning, *(p for part in parts for p in part.parameters())}
        self._names = {name for name, p in roles.named_parameters() if p in sharded}
        whole_ones = {p for p in roles.parameters() if p not in sharded}
        shared: dict[int, Any] = {id(tensor): tensor for tensor in (*whole_ones, *roles.buffers())}
        self._plain = copy.deepcopy(roles, shared)
        self.release()

        for p in sharded:
            p.data = p.data.contiguous()  # FSDP shards no other types
        size, kind = dist.get_world_size(), next(roles.parameters()).device.type
        mesh = init_device_mesh(kind, (size,))
        policy = MixedPrecisionPolicy(cast_forward_inputs=False)
        if half:
            policy = MixedPrecisionPolicy(
                param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False
            )
        for part in parts:
            fully_shard(
                part,
                mesh=mesh,
                reshard_after_forward=True,
                mp_policy=policy if _all_in(part, learning) else MixedPrecisionPolicy(),
            )
        # Some outputs of the sharded parts are views, also in recomputed backward
        # passes; nothing modifies them in place.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
        self._roles = roles
        self._turn = _Turn(roles)
        fully_shard(self._turn, mesh=mesh, ignored_params=whole_ones, mp_policy=policy)
        # The first forward pass fixes the precision of FSDP's gradients and which
        # parameters have them: those of all learners, not just of the first.
        with torch.no_grad():
            self._turn(_nothing, None, None)
        cast("FSDPModule", self._turn).reshard()

    def terms(self, loss: Callable[..., dict[str, Tensor]], batch: Any, rng: torch.Generator) -> dict[str, Tensor]:
        """Return a loss's terms; their backward pass averages gradients over the
        processes."""
        return self._turn(loss, batch, rng)

    def plain(self, values: dict[str, Tensor]) -> nn.Module:
        """Return the unsharded networks, with these values for the trained parameters;
        every process must call it."""
        here = dict(self._roles.named_parameters())
        for name, p in self._plain.named_parameters():
            if name in self._names:
                value = values[name] if name in values else here[name]
                p.data = whole(value.detach())
        return self._plain

    def release(self) -> None:
        """Release the memory taken by ``plain``."""
        for name, p in self._plain.named_parameters():
            if name in self._names:
                p.data = p.data.new_empty(0)


def _nothing(_roles: nn.Module, _batch: Any, _rng: Any) -> dict[str, Tensor]:
    return {"nothing": torch.zeros(())}


def transformer_parts(roles: nn.Module) -> list[nn.Module]:
    """Return the attention and feed-forward modules of every transformer layer."""
    layers = (block for block in roles.modules() if isinstance(block, DitBlock))
    return [part for block in layers for part in (block.self_attn, block.ffn)]


def _all_in(part: nn.Module, learning: Collection[nn.Parameter]) -> bool:
    return all(p in learning for p in part.parameters())


def whole(value: Any) -> Any:
    """Gather a tensor, or those in dicts and lists, from all processes; every process
    must call it."""
    if isinstance(value, DTensor):
        return value.full_tensor()
    if isinstance(value, dict):
        return {name: whole(part) for name, part in value.items()}
    return [whole(part) for part in value] if isinstance(value, list) else value


def part_like(value: Tensor, like: Tensor) -> Tensor:
    """Return this process's shard of a replicated tensor, sharded like ``like``; all of
    it if that is unsharded."""
    if isinstance(value, DTensor) or not isinstance(like, DTensor) or value.shape != like.shape:
        return value
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)
