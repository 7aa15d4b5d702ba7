"""The matmul of ``fp8_linear`` by cuBLAS or CUTLASS, as ``torch._scaled_mm``
chooses."""

import torch
from torch import Tensor

__all__ = ["linear"]


def linear(
    values: Tensor,
    scales: Tensor,
    weight: Tensor,
    weight_scales: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
    fast_accumulation: bool,
) -> Tensor:
    """See ``op.fp8_linear``; nothing is checked here."""
    out = torch._scaled_mm(  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
        values.reshape(-1, values.shape[-1]).contiguous(),
        weight.t(),
        scale_a=scales.reshape(-1, 1).contiguous(),
        scale_b=weight_scales.reshape(1, -1).contiguous(),
        bias=None if bias is None else bias.to(dtype),
        out_dtype=dtype,
        use_fast_accum=fast_accumulation,
    )
    return out.view(*values.shape[:-1], weight.shape[0])
