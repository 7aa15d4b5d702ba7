"""The reference of ``text_attention`` in plain PyTorch."""

from torch import Tensor

from ultraflash_kernels.plain_attention import plain_attention
from ultraflash_kernels.rms_norm.reference import norm

__all__ = ["attention"]


def attention(
    q: Tensor,
    weight: Tensor,
    k: Tensor,
    v: Tensor,
    log_weights: Tensor | None,
    eps: float,
) -> Tensor:
    """See ``op.text_attention``; nothing is checked here."""
    heads = norm(q, weight, eps).unflatten(-1, (k.shape[1], -1)).transpose(1, 2)
    return plain_attention(heads, k, v, log_weights).transpose(1, 2).flatten(2)
