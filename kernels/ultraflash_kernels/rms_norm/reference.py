"""The reference of ``rms_norm`` in plain PyTorch."""

import torch
from torch import Tensor

__all__ = ["norm"]


def norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See ``op.rms_norm``; nothing is checked here."""
    wide = x if x.dtype == torch.float64 else x.float()
    inverse = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
    return (wide * inverse).to(x.dtype) * weight
