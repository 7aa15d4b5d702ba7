"""Attention to all keys, without a mask."""

import torch
from torch import Tensor

from ultraflash_kernels import block_sparse_attention
from ultraflash_kernels.sketch import sketched_attention

__all__ = ["dense_attention"]


def dense_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend from ``q [B, heads, tokens, D]`` to all of ``k`` and ``v [B, heads, key
    tokens, D]``."""
    if q.is_meta:
        return sketched_attention(q, k, v, q.shape[:-1].numel() * k.shape[2])
    if q.device.type == "cpu" and q.requires_grad and torch.is_grad_enabled():
        # The fused backward pass is no faster than these matmuls, and three times
        # slower in bfloat16.
        return ((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)).softmax(-1) @ v
    return block_sparse_attention.dense_attention(q, k, v)
