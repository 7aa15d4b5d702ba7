"""Weights computed from their names, so that full-width vector sets need not store
them."""

import math

import numpy as np
import torch
from torch import Tensor

__all__ = ["procedural_tensor", "procedural_weights"]

STEP = np.uint64(0x9E3779B97F4A7C15)
FNV_START, FNV_PRIME, WORD = 0xCBF29CE484222325, 0x100000001B3, (1 << 64) - 1


def _seed(name: str, salt: int) -> np.uint64:
    """64-bit FNV-1a of the name, mixed with the salt."""
    value = FNV_START
    for byte in name.encode():
        value = (value ^ byte) * FNV_PRIME & WORD
    return np.uint64(value ^ (salt & WORD))


def _unit(name: str, count: int, salt: int) -> np.ndarray:
    """Return ``count`` float64 numbers in [0, 1): the top 24 bits of a splitmix64 sequence."""
    with np.errstate(over="ignore"):
        z = _seed(name, salt) + np.arange(1, count + 1, dtype=np.uint64) * STEP
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return (z >> np.uint64(40)).astype(np.float64) / 2.0**24


def procedural_tensor(name: str, shape: tuple[int, ...], *, salt: int, gain: float) -> Tensor:
    """Return the float32 tensor of this name: uniform in +-gain * sqrt(3 / fan-in), vectors in +-0.05."""
    bound = gain * math.sqrt(3.0 / math.prod(shape[1:])) if len(shape) > 1 else 0.05
    values = bound * (2.0 * _unit(name, math.prod(shape), salt) - 1.0)
    return torch.from_numpy(values.astype(np.float32)).reshape(shape)


def procedural_weights(shapes: dict[str, tuple[int, ...]], *, salt: int, gain: float) -> dict[str, Tensor]:
    """Return a state dict for the given names and shapes."""
    return {name: procedural_tensor(name, shape, salt=salt, gain=gain) for name, shape in shapes.items()}
