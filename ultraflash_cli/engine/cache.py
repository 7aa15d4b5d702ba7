"""Key and value caches of causal attention layers."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ultraflash_cli.engine.stage import Counter, Leaf

__all__ = ["KvRing", "WindowRing", "with_spares", "without_spares"]


@dataclass(frozen=True)
class KvRing:
    """The latest blocks of keys and values, oldest first, in preallocated buffers.

    ``k`` and ``v`` are ``[B, heads, capacity, block tokens, D]``; the first ``fill``
    blocks are in use, the rest is zero or stale. A paired ring has two pairs of
    buffers: a group that replaces the whole cache writes into the unused pair, so
    nothing is copied.
    """

    k: Tensor
    v: Tensor
    fill: int
    half: int = 0
    """Index of the pair of buffers in use: ``k`` and ``v``, or the spare one."""
    k_odd: Tensor | None = None
    v_odd: Tensor | None = None
    k_mean: Tensor | None = None
    """Mean keys of the cached blocks, ``[B, heads, capacity, D]``; None if not
    needed."""

    @classmethod
    def empty(
        cls,
        shape: tuple[int, int, int, int, int],
        *,
        dtype: torch.dtype,
        device: torch.device,
        paired: bool = False,
        mean_dtype: torch.dtype = torch.float32,
    ) -> "KvRing":
        """Return an empty ring of shape ``[B, heads, capacity, block tokens, D]``."""

        def buffer() -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        if not paired:
            return cls(buffer(), buffer(), 0)
        means = torch.zeros((*shape[:3], shape[4]), dtype=mean_dtype, device=device)
        return cls(buffer(), buffer(), 0, 0, buffer(), buffer(), means)

    @property
    def in_use(self) -> tuple[Tensor, Tensor]:
        """The pair of buffers in use."""
        if self.half and self.k_odd is not None and self.v_odd is not None:
            return self.k_odd, self.v_odd
        return self.k, self.v

    def beside(self, blocks: int) -> tuple[Tensor, Tensor] | None:
        """Return buffers ``[B, heads, blocks, block tokens, D]`` for new keys and
        values, separate from the cached ones; None if there is no room."""
        if self.k_odd is None or self.v_odd is None or blocks > self.k.shape[2]:
            return None
        k, v = (self.k, self.v) if self.half else (self.k_odd, self.v_odd)
        return k[:, :, :blocks], v[:, :, :blocks]

    def turn(self, k_mean: Tensor) -> "KvRing":
        """Return the ring with only the blocks written to the buffers of ``beside``,
        and these block means."""
        assert self.k_mean is not None, "a paired ring knows its means"
        blocks = k_mean.shape[2]
        self.k_mean[:, :, :blocks].copy_(k_mean)
        return dataclasses.replace(self, fill=blocks, half=1 - self.half)

    def join(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Return the cached blocks followed by the new ones."""
        if self.fill == 0:
            return k, v
        return torch.cat([self.k[:, :, : self.fill], k], dim=2), torch.cat(
            [self.v[:, :, : self.fill], v], dim=2
        )

    def keep(
        self, k_all: Tensor, v_all: Tensor, blocks: int, *, in_place: bool
    ) -> "KvRing":
        """Return the ring with the last ``blocks`` of the result of ``join``. In place
        it reuses this ring's buffers, whose addresses and shapes are unchanged, and
        ``blocks`` must not exceed the capacity; otherwise it holds copies that support
        autograd, so that dropped blocks are freed.
        """
        fill = min(blocks, k_all.shape[2])
        k, v = k_all[:, :, k_all.shape[2] - fill :], v_all[:, :, v_all.shape[2] - fill :]
        if not in_place:
            whole = fill == k_all.shape[2]
            return KvRing(k if whole else k.clone(), v if whole else v.clone(), fill)
        assert fill <= self.k.shape[2], (
            "the ring is made for the longest memory of the schedule"
        )
        self.k[:, :, :fill].copy_(k)
        self.v[:, :, :fill].copy_(v)
        return KvRing(self.k, self.v, fill)

    def push(
        self, k: Tensor, v: Tensor, blocks: int, k_mean: Tensor | None = None
    ) -> "KvRing":
        """Return the ring with the last ``blocks`` of its own and the new ones; reuses
        its buffers. Equivalent to ``keep`` after ``join``, without the copy. ``blocks``
        must not exceed the capacity. ``k_mean`` are the means of the new blocks of
        keys.
        """
        fill = min(blocks, self.fill + k.shape[2])
        assert fill <= self.k.shape[2], (
            "the ring is made for the longest memory of the schedule"
        )
        new = min(fill, k.shape[2])
        old = fill - new
        k_buffer, v_buffer = self.in_use
        pairs = [(k_buffer, k), (v_buffer, v)]
        if self.k_mean is not None:
            assert k_mean is not None, "a ring that knows its means goes on knowing them"
            pairs.append((self.k_mean, k_mean))
        for buffer, blocks_new in pairs:
            if old and self.fill > old:
                buffer[:, :, :old] = buffer[:, :, self.fill - old : self.fill].clone()
            buffer[:, :, old:fill].copy_(blocks_new[:, :, k.shape[2] - new :])
        return dataclasses.replace(self, fill=fill)


def without_spares(leaves: Mapping[str, Leaf]) -> dict[str, Leaf]:
    """Return the leaves of a state without the unused halves of paired rings."""
    kept = dict(leaves)
    for name in leaves:
        ring, _, field = name.rpartition(".")
        if field != "half":
            continue
        odd = {each: kept.pop(f"{ring}.{each}_odd") for each in ("k", "v")}
        if leaves[name]:
            kept |= {f"{ring}.{each}": leaf for each, leaf in odd.items()}
        kept[name] = 0
    return kept


def with_spares(kept: Mapping[str, Tensor], fresh: Mapping[str, Leaf]) -> dict[str, Tensor]:
    """Undo ``without_spares``: take the omitted leaves from a fresh state."""
    whole = dict(kept)
    for name, leaf in fresh.items():
        ring, _, field = name.rpartition(".")
        if name in kept or not isinstance(leaf, Tensor):
            continue
        if field in ("k_odd", "v_odd"):
            whole[name] = leaf
        elif field == "k_mean":
            whole[name] = kept[f"{ring}.k"].float().mean(dim=3).to(leaf.dtype)
    return whole


@dataclass(frozen=True)
class WindowRing:
    """Keys and values of the first and the latest tokens of a stream, oldest first, in
    preallocated buffers.

    ``k`` and ``v`` are ``[B, heads, capacity, D]``; the first ``fill`` tokens are in
    use, the rest is zero or stale. ``total`` counts the tokens of the stream, including
    dropped ones.
    """

    k: Tensor
    v: Tensor
    fill: int
    """Number of tokens in use."""
    total: Counter
    """Tokens of the stream."""

    @classmethod
    def empty(
        cls, shape: tuple[int, int, int, int], *, dtype: torch.dtype, device: torch.device
    ) -> "WindowRing":
        """Return an empty ring of shape ``[B, heads, capacity, D]``."""
        return cls(
            torch.zeros(shape, dtype=dtype, device=device),
            torch.zeros(shape, dtype=dtype, device=device),
            0,
            0,
        )

    def write(
        self, k: Tensor, v: Tensor, *, start: int, capacity: int, sink: int, in_place: bool
    ) -> "WindowRing":
        """Return the ring with the new tokens, which start at token ``start`` of the
        stream.

        They are appended, or replace the tokens written last. Beyond ``capacity``
        tokens, the oldest after the first ``sink`` are dropped. In place it reuses this
        ring's buffers, whose addresses and shapes are unchanged; otherwise it holds
        tensors that support autograd.
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
        """Return the ring with ``count`` more tokens, and the buffers for their keys
        and values.

        Like ``write`` in place, for callers that compute keys and values directly into
        ``[B, heads, count, D]`` of the ring; until they do, the ring holds stale values
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
        """Return how many tokens precede the new ones, and how many of them are
        dropped."""
        again = start + count == self.total
        assert again or start == self.total, "a chunk follows the last one or repeats it"
        kept = self.fill - count if again else self.fill
        left = max(0, kept + count - capacity)
        assert kept - left >= min(sink, kept), "a chunk fits beside the sink"
        return kept, left

    @property
    def used(self) -> tuple[Tensor, Tensor]:
        """The tokens in use: views ``[B, heads, fill, D]`` of keys and values."""
        return self.k[:, :, : self.fill], self.v[:, :, : self.fill]
