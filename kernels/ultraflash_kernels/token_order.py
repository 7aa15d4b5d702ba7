"""Tokens in block order, with and without the padding of blocks at the edge."""

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

__all__ = ["blocks_of", "dense_places", "drop_padding", "tokens_of", "with_padding"]

Three = tuple[int, int, int]


def tokens_of(size: Sequence[int]) -> int:
    """Return the number of tokens without padding."""
    return math.prod(size)


def blocks_of(size: Sequence[int], block: Sequence[int]) -> Three:
    """Return the number of blocks along frames, rows and columns."""
    t, y, x = (-(-n // b) for n, b in zip(size, block, strict=True))
    return t, y, x


@lru_cache(maxsize=32)
def dense_places(size: Three, block: Three, device: torch.device) -> Tensor:
    """Return the positions of the tokens of ``size`` (frames, rows, columns), in block
    order, among those of whole blocks: int64 ``[tokens]``, cached per device."""
    nt, ny, nx = blocks_of(size, block)
    bt, by, bx = block
    real = torch.zeros(nt * bt, ny * by, nx * bx, dtype=torch.bool)
    real[: size[0], : size[1], : size[2]] = True
    in_blocks = real.view(nt, bt, ny, by, nx, bx).permute(0, 2, 4, 1, 3, 5)
    return in_blocks.reshape(-1).nonzero().flatten().to(device)


def drop_padding(x: Tensor, size: Three, block: Three) -> Tensor:
    """Return the tokens ``[B, tokens, ...]`` of whole blocks ``x [B, blocks * T, ...]``
    without padding."""
    return x.index_select(1, dense_places(size, block, x.device))


def with_padding(x: Tensor, size: Three, block: Three) -> Tensor:
    """Undo ``drop_padding``; padding is zero."""
    count = math.prod(blocks_of(size, block)) * math.prod(block)
    whole = x.new_zeros(x.shape[0], count, *x.shape[2:])
    return whole.index_copy(1, dense_places(size, block, x.device), x)
