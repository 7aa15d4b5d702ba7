"""The reference of ``linear_gelu`` in plain PyTorch."""

import torch.nn.functional as F
from torch import Tensor

__all__ = ["linear_gelu"]


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """See ``op.linear_gelu``; nothing is checked here."""
    return F.gelu(F.linear(x, weight, bias), approximate="tanh")
