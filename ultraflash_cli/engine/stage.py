"""The contract of a streaming stage, and stage states as plain tensors for saving."""

import dataclasses
from collections.abc import Mapping
from enum import Enum
from functools import cache
from typing import Annotated, Any, Protocol, TypeVar, get_type_hints, runtime_checkable

import torch
from torch import Tensor

__all__ = [
    "Counter",
    "Leaf",
    "Position",
    "Role",
    "Stage",
    "as_tensor",
    "leaf_roles",
    "move_state",
    "state_bytes",
    "state_from_tensors",
    "state_leaves",
    "state_to_tensors",
    "with_leaves",
]

Leaf = Tensor | int | float | None
"""A leaf of a state; a bool is an int."""


class Role(Enum):
    """Meaning of a number in a state for a recorded step."""

    COUNTER = "counter"
    """It only increases, and no computation depends on it."""
    POSITION = "position"
    """It only increases, and computations read it as a tensor."""


Counter = Annotated[int, Role.COUNTER]
"""Type of a state's field that is a counter, see ``Role``."""

Position = Annotated[int | Tensor, Role.POSITION]
"""Type of a state's field that is a stream position, see ``Role``; inside a recorded
step it is a 0-dimensional tensor."""

StateT = TypeVar("StateT")
GroupT = TypeVar("GroupT", contravariant=True)


@runtime_checkable
class Stage(Protocol[StateT, GroupT]):
    """A causal network that is fed in groups and holds no state of its own.

    A *group* is computed together, and its size affects the result. ``regroup`` turns
    pushes of any size into groups. The shapes of the tensors in a state are fixed from
    ``init_state`` on. After a step, the state passed to it must not be used again.
    """

    def init_state(self, *, batch: int, height: int, width: int) -> StateT:
        """Return the state before the first frame, for inputs of ``height`` x
        ``width``."""
        ...

    def group_size(self, state: StateT) -> int:
        """Return the number of inputs in the next group."""
        ...

    def step(self, state: StateT, group: GroupT) -> tuple[StateT, Tensor]:
        """Return the state after a whole group, and its result; a shorter group ends
        the clip."""
        ...


def state_leaves(state: Any, prefix: str = "") -> dict[str, Leaf]:
    """Return every leaf of a state under its dotted name, without copying.

    A state is a (nested) dataclass, tuple or named tuple of tensors, ints, floats,
    bools and None.
    """
    if _is_leaf(state):
        return {prefix: state}
    found: dict[str, Leaf] = {}
    for name, value in _children(state):
        found |= state_leaves(value, f"{prefix}.{name}" if prefix else name)
    return found


def with_leaves(like: Any, leaves: Mapping[str, Leaf], prefix: str = "") -> Any:
    """Return a state structured like ``like``, from leaves named as by
    ``state_leaves``."""
    if _is_leaf(like):
        return leaves[prefix]
    children = _children(like)
    values = [with_leaves(v, leaves, f"{prefix}.{n}" if prefix else n) for n, v in children]
    if dataclasses.is_dataclass(like) and not isinstance(like, type):
        names = [name for name, _ in children]
        return dataclasses.replace(like, **dict(zip(names, values, strict=True)))
    return type(like)(*values) if hasattr(like, "_fields") else tuple(values)


def leaf_roles(state: Any, prefix: str = "") -> dict[str, Role]:
    """Return the roles of a state's numbers by their dotted names, see ``Counter``."""
    if _is_leaf(state):
        return {}
    declared = _declared_roles(type(state))
    found: dict[str, Role] = {}
    for name, value in _children(state):
        path = f"{prefix}.{name}" if prefix else name
        if name in declared:
            found[path] = declared[name]
        found |= leaf_roles(value, path)
    return found


def as_tensor(leaf: Tensor | float) -> Tensor:
    """Return a leaf of a state as a tensor; numbers become 0-dimensional ones on the
    host."""
    if isinstance(leaf, Tensor):
        return leaf
    if isinstance(leaf, bool | int):
        return torch.tensor(int(leaf), dtype=torch.int64)
    return torch.tensor(leaf, dtype=torch.float64)


def state_to_tensors(state: Any) -> dict[str, Tensor]:
    """Return copies of every leaf on the host, ready for safetensors.

    Numbers become 0-dimensional tensors; None is omitted.
    """
    found = {
        n: as_tensor(leaf) for n, leaf in state_leaves(state).items() if leaf is not None
    }
    return {n: tensor.detach().cpu().contiguous().clone() for n, tensor in found.items()}


def state_from_tensors(template: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Return a state shaped like ``template`` (a fresh ``init_state``) with saved
    leaves.

    Tensors go to the template's device, dtype and memory format. Raises KeyError if a
    leaf is missing and ValueError if a shape differs.
    """
    leaves = state_leaves(template)
    return with_leaves(template, {n: _restored(n, x, tensors) for n, x in leaves.items()})


def state_bytes(state: Any) -> int:
    """Return the bytes of a state's tensors, without copying."""
    return sum(x.nbytes for x in state_leaves(state).values() if isinstance(x, Tensor))


def move_state(state: Any, device: torch.device) -> Any:
    """Return a state with every tensor on ``device``, its values, dtypes and memory
    formats kept."""
    leaves = state_leaves(state)
    moved = {n: x.to(device) if isinstance(x, Tensor) else x for n, x in leaves.items()}
    return with_leaves(state, moved)


def _restored(name: str, like: Leaf, tensors: Mapping[str, Tensor]) -> Leaf:
    if like is None:
        return None
    saved = tensors[name]
    if not isinstance(like, Tensor):
        return type(like)(saved.item())
    if saved.shape != like.shape or saved.dtype != like.dtype:
        raise ValueError(
            f"{name}: saved {tuple(saved.shape)} {saved.dtype}, expected "
            f"{tuple(like.shape)} {like.dtype}"
        )
    return torch.empty_like(like).copy_(saved)


def _is_leaf(state: Any) -> bool:
    return state is None or isinstance(state, Tensor | bool | int | float)


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


@cache
def _declared_roles(kind: type) -> Mapping[str, Role]:
    """Return the roles declared on the fields of a dataclass or named tuple."""
    found: dict[str, Role] = {}
    for name, hint in get_type_hints(kind, include_extras=True).items():
        for extra in getattr(hint, "__metadata__", ()):
            if isinstance(extra, Role):
                found[name] = extra
    return found
