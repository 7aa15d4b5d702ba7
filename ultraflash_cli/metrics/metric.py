"""Name and format of a metric."""

from dataclasses import dataclass

__all__ = ["Metric"]


@dataclass(frozen=True, kw_only=True)
class Metric:
    """Name and format of a metric."""

    title: str
    unit: str
    digits: int
    """Number of significant decimals."""
    higher_is_better: bool
