"""Keys and values that a causal attention layer remembers between groups."""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["KvRing", "WindowRing"]


@dataclass(frozen=True)
class KvRing:
    """The latest blocks of keys and values, oldest first, in buffers of full size.

    ``k`` and ``v`` are ``[B, heads, capacity, block tokens, D]``; the first ``fill``
    blocks are in use, the rest is zero or old.
    """

    k: Tensor
    v: Tensor
    fill: int

    @classmethod
    def empty(
        cls,
        shape: tuple[int, int, int, int, int],
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> "KvRing":
        """Return a ring of the given ``[B, heads, capacity, block tokens, D]`` that
        remembers nothing."""
        return cls(
            torch.zeros(shape, dtype=dtype, device=device),
            torch.zeros(shape, dtype=dtype, device=device),
            0,
        )

    def join(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Return what is remembered followed by the new blocks."""
        if self.fill == 0:
            return k, v
        return torch.cat([self.k[:, :, : self.fill], k], dim=2), torch.cat(
            [self.v[:, :, : self.fill], v], dim=2
        )

    def keep(
        self, k_all: Tensor, v_all: Tensor, blocks: int, *, in_place: bool
    ) -> "KvRing":
        """Return the ring that remembers the last ``blocks`` of what ``join`` returned.

        In place it reuses the buffers of this ring, whose addresses and shapes stay;
        otherwise it holds slices that autograd can follow. Capacity bounds ``blocks``
        in place.
        """
        fill = min(blocks, k_all.shape[2])
        k, v = k_all[:, :, k_all.shape[2] - fill :], v_all[:, :, v_all.shape[2] - fill :]
        if not in_place:
            return KvRing(k, v, fill)
        assert fill <= self.k.shape[2], (
            "the ring is made for the longest memory of the schedule"
        )
        self.k[:, :, :fill].copy_(k)
        self.v[:, :, :fill].copy_(v)
        return KvRing(self.k, self.v, fill)

    def push(self, k: Tensor, v: Tensor, blocks: int) -> "KvRing":
        """Return the ring that remembers the last ``blocks`` of its own and the new
        ones; reuses its buffers.

        What ``keep`` does with what ``join`` returned, without joining. Capacity bounds
        ``blocks``.
        """
        fill = min(blocks, self.fill + k.shape[2])
        assert fill <= self.k.shape[2], (
            "the ring is made for the longest memory of the schedule"
        )
        new = min(fill, k.shape[2])
        old = fill - new
        for buffer, blocks_new in ((self.k, k), (self.v, v)):
            if old and self.fill > old:
                buffer[:, :, :old] = buffer[:, :, self.fill - old : self.fill].clone()
            buffer[:, :, old:fill].copy_(blocks_new[:, :, k.shape[2] - new :])
        return KvRing(self.k, self.v, fill)


@dataclass(frozen=True)
class WindowRing:
    """The first and the latest tokens of a stream as keys and values, oldest first, in
    buffers of full size.

    ``k`` and ``v`` are ``[B, heads, capacity, D]``; the first ``fill`` tokens are in
    use, the rest is zero or old. ``total`` counts the tokens of the stream, those that
    left included.
    """

    k: Tensor
    v: Tensor
    fill: int
    total: int

    @classmethod
    def empty(
        cls, shape: tuple[int, int, int, int], *, dtype: torch.dtype, device: torch.device
    ) -> "WindowRing":
        """Return a ring of the given ``[B, heads, capacity, D]`` that remembers
        nothing."""
        return cls(
            torch.zeros(shape, dtype=dtype, device=device),
            torch.zeros(shape, dtype=dtype, device=device),
            0,
            0,
        )

    def write(
        self, k: Tensor, v: Tensor, *, start: int, capacity: int, sink: int, in_place: bool
    ) -> "WindowRing":
        """Return the ring that ends with the new tokens, number ``start`` of the stream
        and on.

        They follow the last ones, or replace those that were written last. Where
        ``capacity`` tokens would be exceeded, the oldest behind the first ``sink``
        leave at once. In place it reuses the buffers of this ring, whose addresses and
        shapes stay; otherwise it holds tensors that autograd can follow.
        """
        count = k.shape[2]
        if in_place:
            ring, slots = self.reserve(count, start=start, capacity=capacity, sink=sink)
            for slot, new in zip(slots, (k, v), strict=True):
                slot.copy_(new)
            return ring
        kept, left = self._room(count, start, capacity, sink)
        first = min(sink, kept)
        k, v = (
            torch.cat([old[:, :, :first], old[:, :, first + left : kept], new], dim=2)
            for old, new in ((self.k, k), (self.v, v))
        )
        return WindowRing(k, v, kept - left + count, start + count)

    def reserve(
        self, count: int, *, start: int, capacity: int, sink: int
    ) -> tuple["WindowRing", tuple[Tensor, Tensor]]:
        """Return the ring that ends with ``count`` tokens more, and where their keys
        and values are to be written.

        What ``write`` does in place, for one who computes keys and values straight into
        ``[B, heads, count, D]`` of the ring; until then the ring holds something else
        there.
        """
        kept, left = self._room(count, start, capacity, sink)
        first = kept - left
        if left:
            for buffer in (self.k, self.v):
                buffer[:, :, sink:first] = buffer[:, :, sink + left : kept].clone()
        ring = WindowRing(self.k, self.v, first + count, start + count)
        return ring, (
            self.k[:, :, first : first + count],
            self.v[:, :, first : first + count],
        )

    def _room(self, count: int, start: int, capacity: int, sink: int) -> tuple[int, int]:
        """Return how many tokens precede the new ones, and how many of these leave."""
        again = start + count == self.total
        assert again or start == self.total, "a chunk follows the last one or repeats it"
        kept = self.fill - count if again else self.fill
        left = max(0, kept + count - capacity)
        assert kept - left >= min(sink, kept), "a chunk fits beside the sink"
        return kept, left

    @property
    def used(self) -> tuple[Tensor, Tensor]:
        """What is remembered: views ``[B, heads, fill, D]`` of keys and values."""
        return self.k[:, :, : self.fill], self.v[:, :, : self.fill]
