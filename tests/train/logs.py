"""Operators of a degradation, rebuilt from its log."""

from collections.abc import Iterator
from typing import Any

from ultraflash_cli.train import operators, tape_operators
from ultraflash_cli.train.operator import Operator

__all__ = ["OPERATORS", "from_log"]


def _kinds() -> Iterator[type[Operator]]:
    for module in (operators, tape_operators):
        for name in module.__all__:
            kind = getattr(module, name)
            if isinstance(kind, type) and issubclass(kind, Operator):
                yield kind


OPERATORS = {kind.name: kind for kind in _kinds()}


def from_log(log: list[dict[str, Any]]) -> tuple[Operator, ...]:
    """Return the operators of a log."""
    made: list[Operator] = []
    for entry in log:
        values = {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}
        made.append(OPERATORS[str(values.pop("operator"))](**values))
    return tuple(made)
