"""``block_sparse_attention`` with a backward pass on a GPU: torch's FlexAttention over
the blocks that a mask selects."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

__all__ = ["block_mask_of", "flex_refusal", "forward"]

BLOCK_MULTIPLE = 128
"""FlexAttention's own block size; blocks of tokens must be a multiple of it."""


def flex_refusal(q: Tensor) -> str | None:
    """Return why FlexAttention cannot compute gradients of ``q [B, H, N, T, D]``, in a
    sentence, or None."""
    tokens, width = q.shape[3:]
    if not q.is_cuda:
        return "FlexAttention has a backward pass on a GPU only."
    if tokens % BLOCK_MULTIPLE:
        return (
            f"blocks of {tokens} tokens, FlexAttention needs multiples of {BLOCK_MULTIPLE}."
        )
    if width < 16 or width & (width - 1):
        return f"heads are {width} wide, FlexAttention needs a power of two from 16."
    return None


def forward(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """See ``op.block_sparse_attention``; nothing is checked here."""
    flat = (x.flatten(2, 3) for x in (q, k, v))
    attend: Callable[..., Any] = _compiled() if q.is_cuda else flex_attention
    out = attend(*flat, block_mask=block_mask_of(mask, q.shape[3]))
    return out.view_as(q)


def block_mask_of(mask: Tensor, tokens: int) -> BlockMask:
    """Convert ``mask [B, H, Nq, Nk]`` (bool) to FlexAttention's lists, for blocks of
    ``tokens`` tokens. Every selected block is full: nothing inside one is masked, and
    the compiled kernel never calls ``selects``, which is for FlexAttention without
    compilation. Works without synchronisation and includes the transposed lists of the
    backward pass.
    """

    def selects(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return mask[batch, head, query // tokens, key // tokens]

    counts = mask.sum(dim=-1, dtype=torch.int32)
    # Selected blocks first, ascending; the rest is not read.
    selected = mask.to(torch.int8).argsort(dim=-1, descending=True, stable=True).int()
    return BlockMask.from_kv_blocks(
        torch.zeros_like(counts),
        torch.zeros_like(selected),
        counts,
        selected,
        BLOCK_SIZE=(tokens, tokens),
        mask_mod=selects,
        seq_lengths=(mask.shape[2] * tokens, mask.shape[3] * tokens),
    )


@functools.cache
def _compiled() -> Callable[..., Any]:
    return torch.compile(flex_attention, dynamic=False)
