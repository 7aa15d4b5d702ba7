"""Activation checkpointing."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ultraflash_cli.engine.cache import KvRing, WindowRing

__all__ = ["recomputed"]


def recomputed(block: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a block, or a function of networks, so that it keeps only its inputs and is
    recomputed in the backward pass; without gradients it is the block itself.

    Tensors inside tuples and rings also count as inputs. Recomputed blocks can be
    nested.
    """

    def run(*args: Any) -> Any:
        tensors: list[Tensor] = []
        # checkpoint never releases non-tensor arguments.
        places = tuple(_taken(arg, tensors) for arg in args)

        def again(*given: Tensor) -> Any:
            return block(*(_put(place, given) for place in places))

        return checkpoint(again, *tensors, use_reentrant=False, preserve_rng_state=False)

    return run if torch.is_grad_enabled() else block


@dataclass(frozen=True)
class _Place:
    """Placeholder for a tensor."""

    number: int


def _taken(value: Any, tensors: list[Tensor]) -> Any:
    """Return a value with its tensors moved to a list and replaced by placeholders."""
    if isinstance(value, Tensor):
        tensors.append(value)
        return _Place(len(tensors) - 1)
    return _mapped(value, lambda part: _taken(part, tensors))


def _put(value: Any, tensors: tuple[Tensor, ...]) -> Any:
    """Return a value with its tensors put back in place of the placeholders."""
    if isinstance(value, _Place):
        return tensors[value.number]
    return _mapped(value, lambda part: _put(part, tensors))


def _mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(value, (KvRing, WindowRing)):
        parts = {
            each.name: change(getattr(value, each.name))
            for each in dataclasses.fields(value)
        }
        return dataclasses.replace(value, **parts)
    if isinstance(value, tuple):
        parts = [change(part) for part in cast("tuple[Any, ...]", value)]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return value
