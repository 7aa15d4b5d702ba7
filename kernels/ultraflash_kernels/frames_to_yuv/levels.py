"""The numbers that turn light into samples of video."""

from typing import NamedTuple

__all__ = ["Levels"]


class Levels(NamedTuple):
    """Numbers that turn light in [0, 1] into samples."""

    red: float
    """Weights in luma."""
    green: float
    blue: float
    luma: float
    """Levels from black to white."""
    black: float
    """Level of black."""
    blue_difference: float
    """Levels per blue minus luma."""
    red_difference: float
    """Levels per red minus luma."""
    grey: float
    """Level of no colour."""
    top: float
    """Highest level."""
