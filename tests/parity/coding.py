"""Runners for the Wan VAE, the text encoder and the other upsampler."""

from collections.abc import Callable

from tests.parity.vector_set import VectorSet

__all__ = ["RUNNERS"]

RUNNERS: dict[str, Callable[[VectorSet], None]] = {}
"""What runs a set, by the longest prefix of its name."""
