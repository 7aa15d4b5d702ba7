"""Attention to all keys, without a mask."""

from torch import Tensor

from ultraflash_kernels import block_sparse_attention
from ultraflash_kernels.plain_attention import plain_attention

__all__ = ["dense_attention"]


def dense_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend from ``q [B, heads, tokens, D]`` to all of ``k`` and ``v [B, heads, key
    tokens, D]``."""
    if q.device.type in ("cpu", "meta"):
        return plain_attention(q, k, v)
    return block_sparse_attention.dense_attention(q, k, v)
