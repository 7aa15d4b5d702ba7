"""The matmul of ``linear_gelu`` by cuBLASLt, whose epilogue applies bias and GELU."""

import torch
from torch import Tensor

__all__ = ["linear_gelu"]


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """See ``op.linear_gelu``; nothing is checked here. This GELU is the tanh form on a
    GPU, but not on a CPU."""
    rows = x.reshape(-1, x.shape[-1])
    out = torch._addmm_activation(  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
        bias, rows, weight.t(), use_gelu=True
    )
    return out.view(*x.shape[:-1], weight.shape[0])
