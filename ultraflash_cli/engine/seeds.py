"""Random generators, each seeded by a name, none shared."""

import hashlib

import torch

__all__ = ["generator_of", "seed_of"]


def seed_of(*names: object) -> int:
    """Return a seed of 63 bits that depends on the names alone."""
    digest = hashlib.sha256("/".join(map(str, names)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def generator_of(*names: object, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a generator seeded by the names alone."""
    return torch.Generator(device).manual_seed(seed_of(*names))
