"""The reference of ``quantise_rows`` and ``fp8_linear`` in plain PyTorch."""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["E4M3_MAX", "SMALLEST_AMAX", "linear", "quantise", "quantise_gelu"]

E4M3_MAX = 448.0
"""Largest finite number of float8_e4m3fn."""
SMALLEST_AMAX = 1e-12
"""Lower bound on the largest value of a row, so that a row of zeros has a scale."""


def quantise(x: Tensor) -> tuple[Tensor, Tensor]:
    """See ``op.quantise_rows``; nothing is checked here."""
    wide = x.float()
    scales = wide.abs().amax(dim=-1, keepdim=True).clamp(min=SMALLEST_AMAX) / E4M3_MAX
    return (wide / scales).clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn), scales


def quantise_gelu(x: Tensor) -> tuple[Tensor, Tensor]:
    """See ``op.quantise_gelu_rows``; nothing is checked here."""
    return quantise(F.gelu(x, approximate="tanh"))


def linear(
    values: Tensor,
    scales: Tensor,
    weight: Tensor,
    weight_scales: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """See ``op.fp8_linear``: products of the stored numbers summed in float32, scaled,
    then the bias, then rounded."""
    sums = F.linear(values.float(), weight.float())
    out = sums * scales * weight_scales.squeeze(-1)
    return (out if bias is None else out + bias.float()).to(dtype)
