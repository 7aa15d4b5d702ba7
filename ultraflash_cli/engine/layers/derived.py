"""What layers compute from their weights and keep."""

from collections.abc import Callable
from typing import Generic, TypeVar

import torch
from torch import Tensor

__all__ = ["Derived"]

T = TypeVar("T")


class Derived(Generic[T]):
    """What was last computed from weights, for as long as they stay as they were.

    Changes through ``Parameter.data`` in place go unnoticed; a network whose weights
    are set so must not have run before.
    """

    def __init__(self) -> None:
        self._of: tuple[object, ...] = ()
        self._value: T | None = None

    def __reduce__(self) -> tuple[Callable[[], object], tuple[()]]:
        """A copy computes its own."""
        return type(self), ()

    def get(self, compute: Callable[[], T], dtype: torch.dtype, *weights: Tensor) -> T:
        """Return ``compute()``, which depends on ``weights`` and ``dtype`` only."""
        found = (dtype, *(part for each in weights for part in _stamp(each)))
        if self._value is None or found != self._of:
            self._value, self._of = compute(), found
        return self._value


def _stamp(weight: Tensor) -> tuple[object, ...]:
    version = None if weight.is_inference() else weight._version
    return id(weight), version, weight.data_ptr(), weight.dtype, weight.device
