"""Lists on the device of the key blocks that each query block attends to, and the rule
for allowed pairs."""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["BlockLists", "BlockRule"]


@dataclass(frozen=True, kw_only=True)
class BlockRule:
    """Window, causality and budget of a group's blocks, from which the allowed pairs
    follow (reference/cascade.md 4.6).

    Blocks are ordered by temporal block, row and column; cached temporal blocks precede
    the group's.
    """

    rows: int
    """Number of rows of spatial blocks."""
    cols: int
    """Number of columns of spatial blocks."""
    temporal: int
    """Temporal blocks of the group, which are the queries."""
    remembered: int = 0
    """Temporal blocks of earlier groups that can be attended to."""
    window: int = 0
    """Side of the window around a query block, in blocks; 0 for no limit."""
    chunk: int = 1
    """Temporal blocks that attend to each other regardless of order."""
    budget: int
    """Pairs shared by the query blocks of one temporal block; one more is kept, plus
    ties."""

    def __post_init__(self) -> None:
        for name in ("rows", "cols", "temporal", "chunk", "budget"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"block rule: {name} must be positive, got {getattr(self, name)}"
                )
        for name in ("remembered", "window"):
            if getattr(self, name) < 0:
                raise ValueError(
                    f"block rule: {name} must not be negative, got {getattr(self, name)}"
                )

    @property
    def spatial(self) -> int:
        """Number of spatial blocks in one temporal block."""
        return self.rows * self.cols

    @property
    def queries(self) -> int:
        """Number of query blocks."""
        return self.temporal * self.spatial

    @property
    def keys(self) -> int:
        """Number of key blocks."""
        return (self.remembered + self.temporal) * self.spatial

    @property
    def reach(self) -> tuple[int, int]:
        """Number of blocks that the window reaches back and ahead, along rows and along
        columns."""
        if self.window == 0:
            return self.spatial, self.spatial
        return self.window // 2, self.window - 1 - self.window // 2

    @property
    def allowed_pairs(self) -> int:
        """Number of allowed pairs, in closed form: the maximum that a selection can
        keep."""
        back, ahead = self.reach
        in_rows, in_cols = (
            sum(min(size - 1, at + ahead) - max(0, at - back) + 1 for at in range(size))
            for size in (self.rows, self.cols)
        )
        in_time = sum(
            min(self.seen_until(at), self.remembered + self.temporal)
            for at in range(self.temporal)
        )
        return in_rows * in_cols * in_time

    def seen_until(self, temporal: int) -> int:
        """Return the end of the temporal blocks that this one of the group attends to;
        it may exceed their number."""
        return ((temporal + self.remembered) // self.chunk + 1) * self.chunk

    def allowed(self, device: torch.device | None = None) -> Tensor:
        """Return the allowed pairs as a matrix ``[queries, keys]`` (bool)."""
        back, ahead = self.reach

        def near(size: int) -> Tensor:
            at = torch.arange(size, device=device)
            away = at[None, :] - at[:, None]
            return (away >= -back) & (away <= ahead)

        in_time = torch.arange(self.temporal, device=device)[:, None] + self.remembered
        in_time = (in_time // self.chunk + 1) * self.chunk > torch.arange(
            self.remembered + self.temporal, device=device
        )
        pairs = (
            in_time[:, None, None, :, None, None]
            & near(self.rows)[None, :, None, None, :, None]
            & near(self.cols)[None, None, :, None, None, :]
        )
        return pairs.reshape(self.queries, self.keys)


@dataclass(frozen=True)
class BlockLists:
    """The key blocks of every row (a query block of a head of a sample), one list after
    another.

    Rows are numbered by sample, head and query block. No size depends on the selection,
    so lists are created and used without synchronising with the host.
    """

    starts: Tensor
    """``[rows + 1]`` (int32): the list of row r is
    ``blocks[starts[r] : starts[r + 1]]``."""
    blocks: Tensor
    """``[capacity]`` (int32): key blocks, ascending within a list; values beyond the
    last list are arbitrary."""
    order: Tensor
    """``[rows]`` (int32): rows in the order to compute them in, long lists first."""
    shape: tuple[int, int, int, int]
    """Samples, heads, query blocks, key blocks."""

    @classmethod
    def from_mask(cls, mask: Tensor) -> "BlockLists":
        """Convert ``mask [B, H, Nq, Nk]`` (bool) to lists, without synchronisation."""
        flat = mask.flatten()
        place = flat.cumsum(0, dtype=torch.int32)
        # Unselected blocks are written to one position beyond the end, which is cut
        # off.
        target = torch.where(flat, place - 1, flat.numel()).long()
        key = (
            torch.arange(mask.shape[3], dtype=torch.int32, device=mask.device)
            .expand(mask.shape)
            .reshape(-1)
        )
        blocks = key.new_empty(flat.numel() + 1).scatter_(0, target, key)[:-1]
        counts = mask.sum(dim=-1, dtype=torch.int32).flatten()
        starts = torch.cat([counts.new_zeros(1), counts.cumsum(0, dtype=torch.int32)])
        samples, heads, queries, keys = mask.shape
        return cls(starts, blocks, longest_first(counts), (samples, heads, queries, keys))

    def to_mask(self) -> Tensor:
        """Convert the lists to ``[B, H, Nq, Nk]`` (bool), without synchronisation."""
        rows, keys = self.order.numel(), self.shape[3]
        at = torch.arange(self.blocks.numel(), dtype=torch.int32, device=self.blocks.device)
        row = torch.searchsorted(self.starts, at, right=True) - 1
        target = torch.where(at < self.starts[-1], row * keys + self.blocks, rows * keys)
        mask = torch.zeros(rows * keys + 1, dtype=torch.bool, device=self.blocks.device)
        return mask.index_fill_(0, target, True)[:-1].view(self.shape)


def longest_first(counts: Tensor) -> Tensor:
    """Return the order (int32) in which to compute rows that have ``counts [rows]``
    blocks.

    Lists are ordered by length in powers of two, long ones first, so that no long row
    is left for the end; rows of the same class keep their order, since neighbours in a
    head share keys that are still in the cache.
    """
    powers = 2 ** torch.arange(31, dtype=torch.int32, device=counts.device)
    length_class = torch.bucketize(counts, powers, right=True, out_int32=True)
    return length_class.argsort(descending=True, stable=True).int()
