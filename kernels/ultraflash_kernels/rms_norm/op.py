"""RMS norm of rows, rounded and multiplied by a weight."""

import torch
from torch import Tensor

from ultraflash_kernels.dispatch import KERNEL_DTYPES, Impl, chooses_triton
from ultraflash_kernels.rms_norm import reference

__all__ = ["rms_norm"]

LONGEST_ROW = 1 << 14
"""Maximum number of values in a row, as a program of the kernel holds it in
registers."""


def rms_norm(
    x: Tensor, weight: Tensor, *, eps: float = 1e-6, impl: Impl = "auto"
) -> Tensor:
    """Return ``x / sqrt(mean(x^2) + eps)`` over the last axis, times ``weight [D]``.

    The mean is computed in float32 (in float64 for float64), and the quotient is
    rounded to the dtype of ``x [..., D]`` before the multiplication. Raises ValueError
    for a weight of the wrong shape.
    """
    if weight.shape != x.shape[-1:]:
        raise ValueError(
            f"rms_norm: weight must be [{x.shape[-1]}], got {list(weight.shape)}"
        )
    refusal = None
    if x.dtype not in KERNEL_DTYPES or weight.dtype != x.dtype:
        refusal = (
            "x and weight are both float32, float16 or bfloat16, "
            f"got {x.dtype} and {weight.dtype}."
        )
    elif x.shape[-1] > LONGEST_ROW:
        refusal = f"rows hold at most {LONGEST_ROW} values, got {x.shape[-1]}."
    if chooses_triton("rms_norm", impl, x, weight, refusal=refusal):
        return _norm(x, weight, eps)
    return reference.norm(x, weight, eps)


@torch.library.custom_op("ultraflash::rms_norm", mutates_args=())
def _norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    from ultraflash_kernels.rms_norm import kernel

    return kernel.norm(x, weight, eps)


@_norm.register_fake
def _norm_shape(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x.new_empty(x.shape)
