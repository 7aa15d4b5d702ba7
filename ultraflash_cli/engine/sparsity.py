"""Rules of block-sparse attention: block grid, window, causality and budget."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["BlockGrid", "allowed_blocks", "causal_blocks", "key_budget", "window_blocks"]


@dataclass(frozen=True)
class BlockGrid:
    """A grid of ``frames x rows x cols`` tokens cut into blocks, padded at the end of
    each axis. Blocks are ordered by temporal block, row and column; tokens inside a
    block by frame, row and column.
    """

    frames: int
    rows: int
    cols: int
    block: tuple[int, int, int]

    @property
    def blocks(self) -> tuple[int, int, int]:
        """Blocks along frames, rows and columns."""
        t, y, x = self.block
        return (
            math.ceil(self.frames / t),
            math.ceil(self.rows / y),
            math.ceil(self.cols / x),
        )

    @property
    def spatial_blocks(self) -> int:
        """Number of blocks in one temporal block."""
        return self.blocks[1] * self.blocks[2]

    @property
    def block_tokens(self) -> int:
        """Number of tokens in one block, padding included."""
        return math.prod(self.block)

    def to_blocks(self, x: Tensor) -> Tensor:
        """Rearrange ``x [B, C, frames, rows * py, cols * px]`` to
        ``[B, blocks, tokens, py * px * C]``.

        Padding is zero; the channels of a token are ordered (py, px, C).
        """
        py, px = x.shape[3] // self.rows, x.shape[4] // self.cols
        (nt, ny, nx), (bt, by, bx) = self.blocks, self.block
        x = x.permute(0, 2, 3, 4, 1).contiguous()
        x = F.pad(
            x,
            (
                0,
                0,
                0,
                (nx * bx - self.cols) * px,
                0,
                (ny * by - self.rows) * py,
                0,
                nt * bt - self.frames,
            ),
        )
        x = x.reshape(x.shape[0], nt, bt, ny, by, py, nx, bx, px, -1)
        x = x.permute(0, 1, 3, 6, 2, 4, 7, 5, 8, 9)
        return x.reshape(x.shape[0], nt * ny * nx, bt * by * bx, -1)

    def from_blocks(self, tokens: Tensor, py: int, px: int) -> Tensor:
        """Undo ``to_blocks`` and drop the padding."""
        (nt, ny, nx), (bt, by, bx) = self.blocks, self.block
        x = tokens.reshape(tokens.shape[0], nt, ny, nx, bt, by, bx, py, px, -1)
        x = x.permute(0, 9, 1, 4, 2, 5, 7, 3, 6, 8)
        x = x.reshape(x.shape[0], x.shape[1], nt * bt, ny * by * py, nx * bx * px)
        return x[:, :, : self.frames, : self.rows * py, : self.cols * px]


def window_blocks(
    rows: int, cols: int, size: int, device: torch.device | None = None
) -> Tensor:
    """Return ``[rows * cols, rows * cols]``, true where a spatial block is in another's
    window; size 0 means no limit.

    A window of ``size`` blocks a side reaches ``size // 2`` blocks back and
    ``size - 1 - size // 2`` ahead.
    """
    if size == 0:
        return torch.ones(rows * cols, rows * cols, dtype=torch.bool, device=device)
    back = size // 2

    def near(count: int) -> Tensor:
        at = torch.arange(count, device=device)
        ahead = at[None, :] - at[:, None]
        return (ahead >= -back) & (ahead <= size - 1 - back)

    both = near(rows)[:, None, :, None] & near(cols)[None, :, None, :]
    return both.reshape(rows * cols, rows * cols)


def causal_blocks(
    queries: int, cached: int, chunk: int = 1, device: torch.device | None = None
) -> Tensor:
    """Return ``[queries, cached + queries]`` over temporal blocks: a query sees all up
    to the end of its chunk."""
    at = torch.arange(queries, device=device)[:, None] + cached
    return (
        torch.arange(cached + queries, device=device)[None, :] < (at // chunk + 1) * chunk
    )


def allowed_blocks(window: Tensor, causal: Tensor) -> Tensor:
    """Combine ``window [S, S]`` and ``causal [tq, tk]`` to ``[tq * S, tk * S]``."""
    return torch.kron(causal.to(torch.uint8), window.to(torch.uint8)).bool()


def key_budget(
    grid: BlockGrid, *, ratio: float, reference_tokens: int | None, override: int | None
) -> int:
    """Return the number of block pairs shared by the query blocks of one temporal
    block: ``ratio`` of all pairs of spatial blocks, relative to a grid of
    ``reference_tokens`` tokens per frame; at least 1, at most one less than all pairs
    of the group. ``override`` replaces the rule.
    """
    if override is not None:
        return override
    pairs = grid.spatial_blocks**2
    share = (
        ratio
        if reference_tokens is None
        else ratio * reference_tokens / (grid.rows * grid.cols)
    )
    return max(1, min(math.floor(pairs * share), pairs * grid.blocks[0] - 1))
