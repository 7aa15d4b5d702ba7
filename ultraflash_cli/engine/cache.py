"""Key and value caches of causal attention layers."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ultraflash_cli.engine.stage import Counter, Leaf
from ultraflash_kernels.fp8_linear import Fp8Rows, quantise_rows

__all__ = [
    "KvBlocks",
    "KvRing",
    "KvTokens",
    "WindowRing",
    "with_spares",
    "without_spares",
]

PIECE = 16
"""Buffers in 8 bits hold a multiple of this many tokens: attention reads values so."""


class KvBlocks(NamedTuple):
    """Blocks of keys and values; axis 2 of every tensor is the block.

    In 8 bits every token of every head has a scale, and values are stored with their
    tokens last, as the attention kernel reads them.
    """

    k: Tensor
    """``[B, heads, blocks, block tokens, D]``."""
    v: Tensor
    """Likewise, but in 8 bits ``[B, heads, blocks, D, block tokens]``."""
    k_scales: Tensor | None = None
    """``[B, heads, blocks, block tokens, 1]``; None unless in 8 bits."""
    v_scales: Tensor | None = None
    """``[B, heads, blocks, 1, block tokens]``; None unless in 8 bits."""

    @classmethod
    def empty(
        cls,
        shape: tuple[int, int, int, int, int],
        *,
        dtype: torch.dtype,
        device: torch.device,
        fp8: bool = False,
    ) -> "KvBlocks":
        """Return zeros for blocks of shape ``[B, heads, blocks, block tokens, D]``, in
        ``dtype`` or in 8 bits."""
        outer, tokens, width = shape[:3], *shape[3:]

        def zeros(*inner: int, dtype: torch.dtype) -> Tensor:
            return torch.zeros((*outer, *inner), dtype=dtype, device=device)

        if not fp8:
            return cls(zeros(tokens, width, dtype=dtype), zeros(tokens, width, dtype=dtype))
        return cls(
            zeros(tokens, width, dtype=torch.float8_e4m3fn),
            zeros(width, tokens, dtype=torch.float8_e4m3fn),
            zeros(tokens, 1, dtype=torch.float32),
            zeros(1, tokens, dtype=torch.float32),
        )

    @property
    def rows(self) -> tuple[Fp8Rows, Fp8Rows]:
        """Keys, and values with their tokens last, in 8 bits."""
        assert self.k_scales is not None and self.v_scales is not None, (
            "only blocks in 8 bits have scales"
        )
        return Fp8Rows(self.k, self.k_scales), Fp8Rows(self.v, self.v_scales)

    def part(self, start: int, end: int) -> "KvBlocks":
        """Return views of blocks ``start`` to ``end`` - 1."""
        return KvBlocks(
            self.k[:, :, start:end],
            self.v[:, :, start:end],
            None if self.k_scales is None else self.k_scales[:, :, start:end],
            None if self.v_scales is None else self.v_scales[:, :, start:end],
        )


@dataclass(frozen=True)
class KvRing:
    """The latest blocks of keys and values, oldest first, in preallocated buffers.

    ``k`` and ``v`` are ``[B, heads, capacity, block tokens, D]``, in 8 bits with scales
    and values as in ``KvBlocks``; the first ``fill`` blocks are in use, the rest is
    zero or stale. A paired ring has two sets of buffers: a group that replaces the
    whole cache writes into the unused set, so nothing is copied.
    """

    k: Tensor
    v: Tensor
    fill: int
    half: int = 0
    """Index of the set of buffers in use: ``k`` and ``v``, or the spare one."""
    k_odd: Tensor | None = None
    v_odd: Tensor | None = None
    k_mean: Tensor | None = None
    """Mean keys of the cached blocks, before any rounding to 8 bits, ``[B, heads,
    capacity, D]``; None if not needed."""
    k_scales: Tensor | None = None
    """Scales of ``k``; None unless the ring is in 8 bits. Likewise the next three."""
    v_scales: Tensor | None = None
    k_scales_odd: Tensor | None = None
    v_scales_odd: Tensor | None = None

    @classmethod
    def empty(
        cls,
        shape: tuple[int, int, int, int, int],
        *,
        dtype: torch.dtype,
        device: torch.device,
        paired: bool = False,
        mean_dtype: torch.dtype = torch.float32,
        fp8: bool = False,
    ) -> "KvRing":
        """Return an empty ring of shape ``[B, heads, capacity, block tokens, D]``, in
        ``dtype`` or in 8 bits."""

        def buffers() -> KvBlocks:
            return KvBlocks.empty(shape, dtype=dtype, device=device, fp8=fp8)

        means = None
        if paired or fp8:
            means = torch.zeros((*shape[:3], shape[4]), dtype=mean_dtype, device=device)
        k, v, k_scales, v_scales = buffers()
        ring = cls(k, v, 0, k_mean=means, k_scales=k_scales, v_scales=v_scales)
        if not paired:
            return ring
        k, v, k_scales, v_scales = buffers()
        return dataclasses.replace(
            ring, k_odd=k, v_odd=v, k_scales_odd=k_scales, v_scales_odd=v_scales
        )

    @property
    def in_use(self) -> KvBlocks:
        """The set of buffers in use."""
        even, odd = self._sets
        return odd if self.half and odd is not None else even

    @property
    def _sets(self) -> tuple[KvBlocks, KvBlocks | None]:
        even = KvBlocks(self.k, self.v, self.k_scales, self.v_scales)
        if self.k_odd is None or self.v_odd is None:
            return even, None
        odd = KvBlocks(self.k_odd, self.v_odd, self.k_scales_odd, self.v_scales_odd)
        return even, odd

    def beside(self, blocks: int) -> KvBlocks | None:
        """Return buffers for ``blocks`` new blocks, separate from the cached ones; None
        if there is no room."""
        even, odd = self._sets
        if odd is None or blocks > self.k.shape[2]:
            return None
        return (even if self.half else odd).part(0, blocks)

    def turn(self, k_mean: Tensor) -> "KvRing":
        """Return the ring with only the blocks written to the buffers of ``beside``,
        and these block means."""
        assert self.k_mean is not None, "a paired ring knows its means"
        blocks = k_mean.shape[2]
        self.k_mean[:, :, :blocks].copy_(k_mean)
        return dataclasses.replace(self, fill=blocks, half=1 - self.half)

    def join(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Return the cached blocks followed by the new ones, which are not in 8
        bits."""
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

    def push(self, blocks: KvBlocks, most: int, k_mean: Tensor | None = None) -> "KvRing":
        """Return the ring with the last ``most`` of its own and the new blocks; reuses
        its buffers. Equivalent to ``keep`` after ``join``, without the copy. ``most``
        must not exceed the capacity. ``k_mean`` are the means of the new blocks of
        keys.
        """
        count = blocks.k.shape[2]
        fill = min(most, self.fill + count)
        assert fill <= self.k.shape[2], (
            "the ring is made for the longest memory of the schedule"
        )
        new = min(fill, count)
        old = fill - new
        pairs = [*zip(self.in_use, blocks, strict=True)]
        if self.k_mean is not None:
            assert k_mean is not None, "a ring that knows its means goes on knowing them"
            pairs.append((self.k_mean, k_mean))
        for buffer, added in pairs:
            if buffer is None or added is None:
                continue
            if old and self.fill > old:
                buffer[:, :, :old] = buffer[:, :, self.fill - old : self.fill].clone()
            buffer[:, :, old:fill].copy_(added[:, :, count - new :])
        return dataclasses.replace(self, fill=fill)


def without_spares(leaves: Mapping[str, Leaf]) -> dict[str, Leaf]:
    """Return the leaves of a state without the unused halves of paired rings."""
    kept = dict(leaves)
    for name in leaves:
        ring, _, field = name.rpartition(".")
        if field != "half":
            continue
        odd = {each: kept.pop(f"{ring}.{each}_odd") for each in KvBlocks._fields}
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
        if field in [f"{each}_odd" for each in KvBlocks._fields]:
            whole[name] = leaf
        elif field == "k_mean":
            whole[name] = kept[f"{ring}.k"].float().mean(dim=3).to(leaf.dtype)
    return whole


class KvTokens(NamedTuple):
    """Keys and values of consecutive tokens, in 8 bits as in ``KvBlocks``."""

    k: Tensor
    """``[B, heads, tokens, D]``."""
    v: Tensor
    """Likewise, but in 8 bits ``[B, heads, D, tokens]``."""
    k_scales: Tensor | None = None
    """``[B, heads, tokens, 1]``; None unless in 8 bits."""
    v_scales: Tensor | None = None
    """``[B, heads, 1, tokens]``; None unless in 8 bits."""

    @classmethod
    def in_8_bits(cls, k: Tensor, v: Tensor) -> "KvTokens":
        """Quantise keys and values ``[B, heads, tokens, D]``."""
        k_rows, v_rows = quantise_rows(k), quantise_rows(v).turned()
        return cls(k_rows.values, v_rows.values, k_rows.scales, v_rows.scales)

    @property
    def rows(self) -> tuple[Fp8Rows, Fp8Rows]:
        """Keys, and values with their tokens last, in 8 bits."""
        assert self.k_scales is not None and self.v_scales is not None, (
            "only tokens in 8 bits have scales"
        )
        return Fp8Rows(self.k, self.k_scales), Fp8Rows(self.v, self.v_scales)

    def part(self, start: int, end: int) -> "KvTokens":
        """Return views of tokens ``start`` to ``end`` - 1."""
        if self.k_scales is None or self.v_scales is None:
            return KvTokens(self.k[:, :, start:end], self.v[:, :, start:end])
        return KvTokens(
            self.k[:, :, start:end],
            self.v[..., start:end],
            self.k_scales[:, :, start:end],
            self.v_scales[..., start:end],
        )

    def copy_(self, tokens: "KvTokens") -> None:
        """Copy the numbers of other tokens of the same form."""
        for to, source in zip(self, tokens, strict=True):
            if to is not None and source is not None:
                to.copy_(source)


@dataclass(frozen=True)
class WindowRing:
    """Keys and values of the first and the latest tokens of a stream, oldest first, in
    preallocated buffers.

    ``k`` and ``v`` are ``[B, heads, capacity, D]``, in 8 bits with scales and values as
    in ``KvTokens``; the first ``fill`` tokens are in use, the rest is zero or stale.
    ``total`` counts the tokens of the stream, including dropped ones.
    """

    k: Tensor
    v: Tensor
    fill: int
    """Number of tokens in use."""
    total: Counter
    """Tokens of the stream."""
    k_scales: Tensor | None = None
    """Scales of ``k``; None unless the ring is in 8 bits."""
    v_scales: Tensor | None = None
    """Scales of ``v``; None unless the ring is in 8 bits."""

    @classmethod
    def empty(
        cls,
        shape: tuple[int, int, int, int],
        *,
        dtype: torch.dtype,
        device: torch.device,
        fp8: bool = False,
    ) -> "WindowRing":
        """Return an empty ring of shape ``[B, heads, capacity, D]``, in ``dtype`` or in
        8 bits."""
        outer, capacity, width = shape[:2], *shape[2:]

        def zeros(*inner: int, dtype: torch.dtype) -> Tensor:
            return torch.zeros((*outer, *inner), dtype=dtype, device=device)

        if not fp8:
            k, v = (zeros(capacity, width, dtype=dtype) for _ in ("keys", "values"))
            return cls(k, v, 0, 0)
        capacity += -capacity % PIECE
        return cls(
            zeros(capacity, width, dtype=torch.float8_e4m3fn),
            zeros(width, capacity, dtype=torch.float8_e4m3fn),
            0,
            0,
            zeros(capacity, 1, dtype=torch.float32),
            zeros(1, capacity, dtype=torch.float32),
        )

    @property
    def fp8(self) -> bool:
        """Whether keys and values are in 8-bit floating point."""
        return self.k_scales is not None

    def write(
        self, k: Tensor, v: Tensor, *, start: int, capacity: int, sink: int, in_place: bool
    ) -> "WindowRing":
        """Return the ring with the new tokens ``[B, heads, tokens, D]``, which start at
        token ``start`` of the stream.

        They are appended, or replace the tokens written last. Beyond ``capacity``
        tokens, the oldest after the first ``sink`` are dropped. In place it reuses this
        ring's buffers, whose addresses and shapes are unchanged; otherwise it holds
        tensors that support autograd, which no ring in 8 bits does.
        """
        count = k.shape[2]
        if in_place:
            ring, slots = self.reserve(count, start=start, capacity=capacity, sink=sink)
            slots.copy_(KvTokens.in_8_bits(k, v) if self.fp8 else KvTokens(k, v))
            return ring
        assert not self.fp8, "a ring in 8 bits is overwritten"
        kept, left = self._room(count, start, capacity, sink)
        first = min(sink, kept)
        k, v = (
            torch.cat([old[:, :, :first], old[:, :, first + left : kept], new], dim=2)
            for old, new in ((self.k, k), (self.v, v))
        )
        return WindowRing(k, v, kept - left + count, start + count)

    def reserve(
        self, count: int, *, start: int, capacity: int, sink: int
    ) -> tuple["WindowRing", KvTokens]:
        """Return the ring with ``count`` more tokens, and the buffers for their keys
        and values.

        Like ``write`` in place, for callers that compute keys and values directly into
        the ring; until they do, the ring holds stale values there.
        """
        kept, left = self._room(count, start, capacity, sink)
        first = kept - left
        if left:
            # Oldest first and no more than is dropped at once, so that no copy reads
            # what it writes.
            for to in range(sink, first, left):
                end = min(to + left, first)
                moved = self._tokens.part(to + left, end + left)
                self._tokens.part(to, end).copy_(moved)
        ring = dataclasses.replace(self, fill=first + count, total=start + count)
        return ring, self._tokens.part(first, first + count)

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
    def _tokens(self) -> KvTokens:
        return KvTokens(self.k, self.v, self.k_scales, self.v_scales)

    @property
    def used(self) -> KvTokens:
        """Views of the tokens in use."""
        return self._tokens.part(0, self.fill)
