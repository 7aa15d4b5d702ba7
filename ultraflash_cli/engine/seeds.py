"""Separate random generators, each seeded by names."""

import hashlib

import torch

__all__ = ["generator_of", "seed_of"]


def seed_of(*names: object) -> int:
    """Return a 63-bit seed that depends only on the names."""
    digest = hashlib.sha256("/".join(map(str, names)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def generator_of(*names: object, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a generator whose seed depends only on the names."""
    return torch.Generator(device).manual_seed(seed_of(*names))
