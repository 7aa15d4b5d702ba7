"""How a number is called and read."""

from dataclasses import dataclass

__all__ = ["Metric"]


@dataclass(frozen=True, kw_only=True)
class Metric:
    """How a number is called and read."""

    title: str
    unit: str
    digits: int
    """Decimals that mean something."""
    higher_is_better: bool
