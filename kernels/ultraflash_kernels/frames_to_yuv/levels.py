"""Coefficients for converting RGB values to video samples."""

from typing import NamedTuple

__all__ = ["Levels"]


class Levels(NamedTuple):
    """Coefficients for converting RGB values in [0, 1] to samples."""

    red: float
    """Weights of red, green and blue in luma."""
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
