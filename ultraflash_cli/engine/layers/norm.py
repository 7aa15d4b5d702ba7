"""Norms over the last axis, computed in float32 regardless of the runtime dtype."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ultraflash_kernels.rms_norm import rms_norm

__all__ = ["LayerNorm", "RmsNorm", "layer_norm"]


def layer_norm(x: Tensor, eps: float) -> Tensor:
    """Centre and scale the last axis, without weights; evaluated in float32, returned
    in the dtype of x."""
    return F.layer_norm(x, x.shape[-1:], eps=eps)


class LayerNorm(nn.LayerNorm):
    """Layer norm with weight and bias, evaluated in float32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__(width, eps=eps)


class RmsNorm(nn.Module):
    """Divide by the root mean square of the last axis, round to the dtype of x,
    multiply by a weight."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x [..., width]``."""
        return rms_norm(x, self.weight, eps=self.eps)
