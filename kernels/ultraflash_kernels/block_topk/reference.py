"""The definition of ``block_topk`` in plain PyTorch."""

import math

import torch
from torch import Tensor

__all__ = ["forward"]


@torch.no_grad()
def forward(q_mean: Tensor, k_mean: Tensor, allowed: Tensor | None, budget: int, rows_per_budget: int) -> Tensor:
    """See ``op.block_topk``; nothing is checked here."""
    scores = torch.matmul(q_mean, k_mean.transpose(-1, -2)) / math.sqrt(q_mean.shape[-1])
    if allowed is not None:
        scores = scores.masked_fill(~allowed, -math.inf)
    shares = scores.softmax(dim=-1)
    pools = shares.unflatten(2, (-1, rows_per_budget)).flatten(3)  # [B, H, runs, rows_per_budget * Nk]
    kept = min(budget, pools.shape[-1] - 1) + 1
    threshold = pools.topk(kept, dim=-1, sorted=False).values.amin(dim=-1, keepdim=True)
    mask = (pools >= threshold).view_as(shares)
    square = mask.shape[-1] == mask.shape[-2]
    diagonal = torch.eye(*mask.shape[-2:], dtype=torch.bool, device=mask.device)
    if allowed is None:
        empty = ~mask.any(dim=-1)
        return mask | (diagonal & (empty.any() | square))
    mask &= allowed
    first = torch.zeros_like(allowed).scatter_(1, allowed.int().argmax(dim=1, keepdim=True), True)
    mask |= first & ~mask.any(dim=-1, keepdim=True)
    return mask | diagonal if square else mask
