"""The contract of a streaming stage, and stage states as plain tensors for saving."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

__all__ = [
    "Leaf",
    "Stage",
    "as_tensor",
    "move_state",
    "state_bytes",
    "state_from_tensors",
    "state_leaves",
    "state_to_tensors",
    "with_leaves",
]

Leaf = Tensor | int | float | None
"""A leaf of a state; a bool is an int."""

StateT = TypeVar("StateT")
InputsT = TypeVar("InputsT", contravariant=True)


@runtime_checkable
class Stage(Protocol[StateT, InputsT]):
    """A causal network that takes pushes of any size and holds no state of its own.

    A *push* is the caller's input; a *group* is computed together.
    ``step`` queues until a group is complete, so that any split of a clip into pushes
    gives the same result. The shapes of the tensors in a state are fixed from
    ``init_state`` on. After a step the given state must not be used again.
    """

    def init_state(self, *, batch: int, height: int, width: int) -> StateT:
        """Return the state before the first frame, for inputs of ``height`` x
        ``width``."""
        ...

    def step(self, state: StateT, inputs: InputsT) -> tuple[StateT, Tensor]:
        """Take in a push and return what is complete; the time axis may be empty."""
        ...

    def flush(self, state: StateT) -> Tensor:
        """Return what is still queued as the end of the clip; empty where nothing
        is."""
        ...


def state_to_tensors(state: Any, prefix: str = "") -> dict[str, Tensor]:
    """Return every leaf of a state under a dotted name; numbers become 0-dimensional
    tensors.

    A state is a (nested) dataclass, tuple or named tuple of tensors, ints, floats,
    bools and None. None leaves nothing behind. The tensors are contiguous copies, ready
    for safetensors.
    """
    tensors = {
        name: as_tensor(leaf)
        for name, leaf in state_leaves(state, prefix).items()
        if leaf is not None
    }
    return {
        name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()
    }


def as_tensor(leaf: Tensor | float) -> Tensor:
    """Return a leaf of a state as a tensor; numbers become 0-dimensional ones on the
    host."""
    if isinstance(leaf, Tensor):
        return leaf
    if isinstance(leaf, bool | int):
        return torch.tensor(int(leaf), dtype=torch.int64)
    return torch.tensor(leaf, dtype=torch.float64)


def state_leaves(state: Any, prefix: str = "") -> dict[str, Leaf]:
    """Return every leaf of a state itself under its dotted name, None included; nothing
    is copied."""
    if state is None or isinstance(state, Tensor | bool | int | float):
        return {prefix: state}
    found: dict[str, Leaf] = {}
    for name, value in _children(state):
        found |= state_leaves(value, f"{prefix}.{name}" if prefix else name)
    return found


def with_leaves(like: Any, leaves: Mapping[str, Leaf], prefix: str = "") -> Any:
    """Return a state built like ``like`` from leaves named as ``state_leaves`` names
    them."""
    if like is None or isinstance(like, Tensor | bool | int | float):
        return leaves[prefix]
    return _rebuilt(
        like,
        [
            with_leaves(v, leaves, f"{prefix}.{n}" if prefix else n)
            for n, v in _children(like)
        ],
    )


def state_bytes(state: Any) -> int:
    """Return the bytes of a state's tensors; nothing is copied."""
    if isinstance(state, Tensor):
        return state.nbytes
    if state is None or isinstance(state, bool | int | float):
        return 0
    return sum(state_bytes(value) for _, value in _children(state))


def move_state(state: Any, device: torch.device) -> Any:
    """Return a state with every tensor on ``device``, its values, dtypes and memory
    formats kept."""
    if isinstance(state, Tensor):
        return state.to(device)
    if state is None or isinstance(state, bool | int | float):
        return state
    return _rebuilt(state, [move_state(value, device) for _, value in _children(state)])


def state_from_tensors(template: Any, tensors: dict[str, Tensor], prefix: str = "") -> Any:
    """Return a state shaped like ``template`` (a fresh ``init_state``) with the leaves
    of ``tensors``.

    Tensors go to the template's device, dtype and memory format. Raises KeyError where
    a leaf is missing and ValueError where a shape differs.
    """
    if template is None:
        return None
    if isinstance(template, Tensor):
        saved = tensors[prefix]
        if saved.shape != template.shape or saved.dtype != template.dtype:
            raise ValueError(
                f"{prefix}: saved {tuple(saved.shape)} {saved.dtype}, expected "
                f"{tuple(template.shape)}"
            )
        return torch.empty_like(template).copy_(saved)
    if isinstance(template, bool | int | float):
        return type(template)(tensors[prefix].item())
    filled = [
        state_from_tensors(v, tensors, f"{prefix}.{n}" if prefix else n)
        for n, v in _children(template)
    ]
    return _rebuilt(template, filled)


def _rebuilt(like: Any, values: list[Any]) -> Any:
    """Return the container ``like`` with other children."""
    if dataclasses.is_dataclass(like) and not isinstance(like, type):
        return dataclasses.replace(
            like, **dict(zip([name for name, _ in _children(like)], values, strict=True))
        )
    if hasattr(like, "_fields"):
        return type(like)(*values)
    return tuple(values)


def _children(state: Any) -> list[tuple[str, Any]]:
    if dataclasses.is_dataclass(state) and not isinstance(state, type):
        return [(f.name, getattr(state, f.name)) for f in dataclasses.fields(state)]
    if isinstance(state, tuple):
        names = getattr(state, "_fields", None) or [str(i) for i in range(len(state))]
        return list(zip(names, state, strict=True))
    raise TypeError(
        "a state must consist of tensors, numbers, tuples and dataclasses, got "
        f"{type(state).__name__}"
    )
