"""Keys and values that a causal attention layer remembers between groups."""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["KvRing"]


@dataclass(frozen=True)
class KvRing:
    """The latest blocks of keys and values, oldest first, in buffers of full size.

    ``k`` and ``v`` are ``[B, heads, capacity, block tokens, D]``; the first ``fill`` blocks are in use, the rest is
    zero or old.
    """

    k: Tensor
    v: Tensor
    fill: int

    @classmethod
    def empty(cls, shape: tuple[int, int, int, int, int], *, dtype: torch.dtype, device: torch.device) -> "KvRing":
        """Return a ring of the given ``[B, heads, capacity, block tokens, D]`` that remembers nothing."""
        return cls(torch.zeros(shape, dtype=dtype, device=device), torch.zeros(shape, dtype=dtype, device=device), 0)

    def join(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Return what is remembered followed by the new blocks."""
        if self.fill == 0:
            return k, v
        return torch.cat([self.k[:, :, : self.fill], k], dim=2), torch.cat([self.v[:, :, : self.fill], v], dim=2)

    def keep(self, k_all: Tensor, v_all: Tensor, blocks: int, *, in_place: bool) -> "KvRing":
        """Return the ring that remembers the last ``blocks`` of what ``join`` returned.

        In place it reuses the buffers of this ring, whose addresses and shapes stay; otherwise it holds slices
        that autograd can follow. Capacity bounds ``blocks`` in place.
        """
        fill = min(blocks, k_all.shape[2])
        k, v = k_all[:, :, k_all.shape[2] - fill :], v_all[:, :, v_all.shape[2] - fill :]
        if not in_place:
            return KvRing(k, v, fill)
        assert fill <= self.k.shape[2], "the ring is made for the longest memory of the schedule"
        self.k[:, :, :fill].copy_(k)
        self.v[:, :, :fill].copy_(v)
        return KvRing(self.k, self.v, fill)
