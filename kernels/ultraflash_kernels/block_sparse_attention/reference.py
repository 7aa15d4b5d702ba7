"""The reference of ``block_sparse_attention`` in plain PyTorch: rows with equally many
blocks share dense attention calls."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ultraflash_kernels.block_lists import BlockLists

__all__ = ["forward", "from_lists"]

GATHERED_ELEMENTS = 1 << 18
"""Approximate number of elements of k (and of v) gathered per dense call; small enough
for a CPU's cache."""
GATHERED_ELEMENTS_FOR_GRADIENTS = 1 << 23
"""The same with gradients; larger, because the backward pass of each gather is a pass
over all of k."""


def forward(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """See ``op.block_sparse_attention``; nothing is checked here.

    Rows are sorted by their number of selected blocks and computed in calls of equal
    counts, so that nothing is padded and the arithmetic of a row does not depend on its
    neighbours. Half precision is computed in float32 on a CPU, where that is both
    faster and more accurate.
    """
    tokens, width = q.shape[3:]
    work = torch.float32 if q.device.type == "cpu" and q.dtype != torch.float64 else q.dtype
    q_rows, k_rows, v_rows = (x.to(work).reshape(-1, tokens * width) for x in (q, k, v))
    counts = mask.sum(dim=-1).flatten()
    gradients = torch.is_grad_enabled() and (
        q.requires_grad or k.requires_grad or v.requires_grad
    )
    limit = GATHERED_ELEMENTS_FOR_GRADIENTS if gradients else GATHERED_ELEMENTS
    starts = counts.cumsum(0) - counts
    selected = _selected_blocks(mask)
    order = counts.argsort(stable=True)

    done: list[Tensor] = []
    at = 0
    for count, rows in zip(
        *(x.tolist() for x in counts[order].unique_consecutive(return_counts=True)),
        strict=True,
    ):
        step = max(1, limit // max(1, count * tokens * width))
        for first in range(at, at + rows, step):
            row = order[first : min(first + step, at + rows)]
            queries = q_rows.index_select(0, row).view(-1, 1, tokens, width)
            if count == 0:
                done.append(torch.zeros_like(queries))
                continue
            blocks = selected[
                starts[row, None] + torch.arange(count, device=row.device)
            ].flatten()
            keys = k_rows.index_select(0, blocks).view(-1, 1, count * tokens, width)
            values = v_rows.index_select(0, blocks).view(-1, 1, count * tokens, width)
            done.append(F.scaled_dot_product_attention(queries, keys, values))
        at += rows

    back = torch.empty_like(order).scatter_(
        0, order, torch.arange(order.numel(), device=order.device)
    )
    return (
        torch.cat(done)
        .view(-1, tokens * width)
        .to(q.dtype)
        .index_select(0, back)
        .view(q.shape)
    )


def from_lists(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lists: BlockLists,
    ring_k: Tensor | None,
    ring_v: Tensor | None,
    fill: int,
) -> Tensor:
    """See ``op.block_list_attention``; nothing is checked here."""
    if ring_k is not None and ring_v is not None and fill:
        k, v = (
            torch.cat([ring_k[:, :, :fill], k], dim=2),
            torch.cat([ring_v[:, :, :fill], v], dim=2),
        )
    return forward(q, k, v, lists.to_mask())


def _selected_blocks(mask: Tensor) -> Tensor:
    """Return the selected key blocks of all rows, one row after another, as indices
    into [B, H, Nk] flattened."""
    rows, blocks = mask.flatten(0, 2).nonzero(as_tuple=True)
    return torch.div(rows, mask.shape[2], rounding_mode="floor") * mask.shape[3] + blocks
