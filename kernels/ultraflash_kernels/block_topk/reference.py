"""The references of ``block_topk``, ``block_means`` and ``choose_blocks`` in plain
PyTorch."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ultraflash_kernels.block_lists import BlockLists, BlockRule

__all__ = ["block_means", "choose_blocks", "forward"]


@torch.no_grad()
def forward(
    q_mean: Tensor,
    k_mean: Tensor,
    allowed: Tensor | None,
    budget: int,
    rows_per_budget: int,
) -> Tensor:
    """See ``op.block_topk``; nothing is checked here."""
    scores = torch.matmul(q_mean, k_mean.transpose(-1, -2)) / math.sqrt(q_mean.shape[-1])
    if allowed is not None:
        scores = scores.masked_fill(~allowed, -math.inf)
    shares = scores.softmax(dim=-1)
    pools = shares.unflatten(2, (-1, rows_per_budget)).flatten(
        3
    )  # [B, H, runs, rows_per_budget * Nk]
    kept = min(budget, pools.shape[-1] - 1) + 1
    threshold = pools.topk(kept, dim=-1, sorted=False).values.amin(dim=-1, keepdim=True)
    mask = (pools >= threshold).view_as(shares)
    square = mask.shape[-1] == mask.shape[-2]
    diagonal = torch.eye(*mask.shape[-2:], dtype=torch.bool, device=mask.device)
    if allowed is None:
        empty = ~mask.any(dim=-1)
        return mask | (diagonal & (empty.any() | square))

    mask &= allowed
    first = torch.zeros_like(allowed).scatter_(
        1, allowed.int().argmax(dim=1, keepdim=True), True
    )
    mask |= first & ~mask.any(dim=-1, keepdim=True)
    return mask | diagonal if square else mask


@torch.no_grad()
def block_means(parts: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """See ``op.block_means``; nothing is checked here."""
    wide = torch.promote_types(dtype, torch.float32)
    return torch.cat([part.mean(dim=3, dtype=wide).to(dtype) for part in parts], dim=2)


def choose_blocks(q_mean: Tensor, k_mean: Tensor, rule: BlockRule) -> BlockLists:
    """See ``op.choose_blocks``; nothing is checked here."""
    return BlockLists.from_mask(
        forward(q_mean, k_mean, rule.allowed(q_mean.device), rule.budget, rule.spatial)
    )
