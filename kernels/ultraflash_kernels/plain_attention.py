"""Softmax attention by PyTorch, to weighted keys."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ultraflash_kernels.sketch import sketched_attention

__all__ = ["plain_attention"]


def plain_attention(
    q: Tensor, k: Tensor, v: Tensor, log_weights: Tensor | None = None
) -> Tensor:
    """Attend from ``q [B, H, tokens, D]`` to all of ``k`` and ``v [B, H, keys, D]``,
    scaled by ``1 / sqrt(D)``, with ``log_weights [keys]`` added to the scores."""
    if q.is_meta:
        return sketched_attention(q, k, v, q.shape[:-1].numel() * k.shape[2])
    if q.device.type == "cpu" and q.requires_grad and torch.is_grad_enabled():
        # The fused backward pass is no faster than these matmuls, and three times
        # slower in bfloat16.
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        scores = scores if log_weights is None else scores + log_weights
        return scores.softmax(-1).to(v.dtype) @ v
    mask = None
    if log_weights is not None:
        # On a CPU masks of half-precision queries may stay in float32.
        keeps = q.device.type == "cpu" and q.dtype.itemsize < 4
        mask = (log_weights if keeps else log_weights.to(q.dtype)).view(1, 1, 1, -1)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
