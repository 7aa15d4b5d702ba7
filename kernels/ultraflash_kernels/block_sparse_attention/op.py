"""Softmax attention in which each query block of each head sees its own selection of key blocks."""

import torch
from torch import Tensor

from ultraflash_kernels.block_sparse_attention import reference

__all__ = ["block_sparse_attention"]


def block_sparse_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Attend from ``q [B, H, Nq, T, D]`` to the key blocks that ``mask [B, H, Nq, Nk]`` (bool) selects.

    ``k`` and ``v`` are ``[B, H, Nk, T, D]``; a block is T consecutive tokens. Every token of query block i of head h
    sees all T tokens of every block j with ``mask[b, h, i, j]``, scaled by ``1 / sqrt(D)``; nothing inside a block is
    masked. A row that selects nothing gives zeros. What a row returns depends on the blocks it selects and on
    nothing else. Returns ``[B, H, Nq, T, D]`` in the dtype of q. Differentiable in q, k and v.

    Raises ValueError for shapes that do not fit and for a mask that is not boolean.
    """
    if q.ndim != 5 or k.ndim != 5 or k.shape != v.shape or q[:, :, 0].shape != k[:, :, 0].shape:
        raise ValueError(f"q, k, v are [B, H, N, T, D], got {tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}")
    expected = (*q.shape[:3], k.shape[2])
    if mask.dtype != torch.bool or tuple(mask.shape) != expected:
        raise ValueError(f"mask is bool {list(expected)}, got {mask.dtype} {list(mask.shape)}")
    return reference.forward(q, k, v, mask)
