"""When things happen in a stream: frames of each group, and the noise that belongs to it."""

import hashlib

import torch
from torch import Tensor

__all__ = ["FRAMES_PER_LATENT", "group_frames", "group_noise"]

FRAMES_PER_LATENT = 4
"""Pixel frames that one latent frame stands for."""


def group_frames(group_latents: int, pad_front: int, *, first: bool) -> int:
    """Return how many source frames make a group; the first one of a stream stands in for its front padding."""
    return FRAMES_PER_LATENT * group_latents - (pad_front if first else 0)


def group_noise(shape: tuple[int, ...], *, seed: int, stage: str, first_frame: int, group: int) -> Tensor:
    """Return the standard normal draw of one group of one stage, float32 on the CPU.

    It depends on nothing but its arguments, so that a resumed or divided run draws the same noise.
    """
    name = f"{seed}/{stage}/{first_frame}/{group}".encode()
    generator = torch.Generator()
    generator.manual_seed(int.from_bytes(hashlib.sha256(name).digest()[:8], "little") >> 1)
    return torch.randn(shape, generator=generator)
