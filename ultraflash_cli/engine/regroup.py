"""Regroup pushes of any size into the groups of a stage."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from ultraflash_cli.engine.stage import Stage, state_leaves, with_leaves

__all__ = ["Regrouped", "end", "push", "run"]

StateT = TypeVar("StateT")
InputsT = TypeVar("InputsT")

TIME = -3
"""The time axis of all inputs that are cut into groups: ``[..., T, H, W]``."""


@dataclass(frozen=True)
class Regrouped(Generic[StateT]):
    """A stage's state between two pushes."""

    state: StateT
    """State of the stage after all complete groups."""
    waiting: Any = None
    """Inputs that do not fill a group yet; None before the first push."""


@runtime_checkable
class _RunsAhead(Protocol):
    """A stage whose results lag behind its inputs, so that the last group of a clip may
    be empty."""

    def held(self, state: Any) -> int:
        """Return the number of inputs without a result so far."""
        ...


def push(
    stage: Stage[StateT, InputsT], before: Regrouped[StateT], inputs: InputsT
) -> tuple[Regrouped[StateT], list[Tensor]]:
    """Run all groups completed by ``inputs``; return their results one by one.

    Any split of a clip into pushes gives the same result. Consumes ``before``.
    """
    if before.waiting is not None:
        inputs = _each(lambda *parts: torch.cat(parts, dim=TIME), before.waiting, inputs)
    state = before.state
    results: list[Tensor] = []
    taken = 0
    total = _length(inputs)
    while total - taken >= (size := stage.group_size(state)):
        state, result = stage.step(state, _cut(inputs, taken, taken + size))
        results.append(result)
        taken += size

    rest = _each(lambda part: part.clone(), _cut(inputs, taken, total))
    return Regrouped(state, rest), results


def end(
    stage: Stage[StateT, InputsT], before: Regrouped[StateT]
) -> tuple[StateT, list[Tensor]]:
    """Run the waiting inputs as the end of the clip; consumes ``before``."""
    if before.waiting is None:
        return before.state, []
    held = stage.held(before.state) if isinstance(stage, _RunsAhead) else 0
    if not _length(before.waiting) and not held:
        return before.state, []
    state, result = stage.step(before.state, before.waiting)
    return state, [result]


def run(
    stage: Stage[StateT, InputsT], state: StateT, inputs: InputsT
) -> tuple[StateT, Tensor]:
    """Run a whole clip; return the state after it and its result. Consumes
    ``state``."""
    regrouped, results = push(stage, Regrouped(state), inputs)
    state, rest = end(stage, regrouped)
    return state, torch.cat([*results, *rest], dim=TIME)


def _each(function: Callable[..., Tensor], *inputs: Any) -> Any:
    """Apply a function to the tensors of inputs with the same structure."""
    leaves = [state_leaves(each) for each in inputs]
    made = {name: function(*(each[name] for each in leaves)) for name in leaves[0]}
    return with_leaves(inputs[0], made)


def _cut(inputs: Any, start: int, stop: int) -> Any:
    return _each(lambda part: part.narrow(TIME, start, stop - start), inputs)


def _length(inputs: Any) -> int:
    """Return the number of frames of inputs, which is equal for all their tensors."""
    leaves = state_leaves(inputs)
    first = next(leaf for leaf in leaves.values() if isinstance(leaf, Tensor))
    return first.shape[TIME]
