"""Layer norm without weights under scale and shift, and the gated residual sum, with
the published rounding."""

import torch
from torch import Tensor

from ultraflash_kernels._dispatch import Impl, chooses_triton
from ultraflash_kernels.adaln_modulate import reference
from ultraflash_kernels.fp8_linear import Fp8Rows, e4m3_refusal, quantise_rows

__all__ = ["adaln_modulate", "adaln_modulate_fp8", "gated_residual"]

LONGEST_ROW = 8192
"""Widest row that a program of the kernels holds in registers."""


def adaln_modulate(
    x: Tensor, shift: Tensor, scale: Tensor, *, eps: float = 1e-6, impl: Impl = "auto"
) -> Tensor:
    """Return ``LN(x) * (1 + scale) + shift`` for ``x [*L, *N, D]`` and vectors
    ``[*L, D]``, in the dtype of x.

    The norm is over D, without weights, computed in float32 and rounded to the dtype of
    x. Float32 vectors: the rest is computed in float32 and rounded once, as the SR
    transformer does (ARCHITECTURE 4.2). Vectors in the dtype of x: every step is
    rounded to it, as the generator does. Raises ValueError for shapes or dtypes that do
    not fit.
    """
    _check("adaln_modulate", x, shift, scale)
    if chooses_triton("adaln_modulate", impl, x, shift, scale, refusal=_refusal(x)):
        return _modulate(x, shift, scale, eps)
    return reference.modulate(x, shift, scale, eps)


def adaln_modulate_fp8(
    x: Tensor, shift: Tensor, scale: Tensor, *, eps: float = 1e-6, impl: Impl = "auto"
) -> Fp8Rows:
    """Return what ``quantise_rows`` makes of ``adaln_modulate``, without writing the
    rows in between. Inference only.

    ``[*L, *N, D]`` in float8_e4m3fn and scales ``[*L, *N, 1]``.
    """
    _check("adaln_modulate_fp8", x, shift, scale)
    refusal = _refusal(x) or e4m3_refusal(x)
    if chooses_triton("adaln_modulate_fp8", impl, x, shift, scale, refusal=refusal):
        return Fp8Rows(*_modulate_fp8(x, shift, scale, eps))
    return quantise_rows(reference.modulate(x, shift, scale, eps), impl="reference")


def gated_residual(x: Tensor, y: Tensor, gate: Tensor, *, impl: Impl = "auto") -> Tensor:
    """Return ``x + y * gate`` for ``x, y [*L, *N, D]`` and vectors ``gate [*L, D]``, in
    the dtype of x.

    Computed in the dtype of the gate: float32 is rounded once, at the end; in the dtype
    of x the product is rounded too. Raises ValueError for shapes or dtypes that do not
    fit.
    """
    _check("gated_residual", x, gate)
    if y.shape != x.shape or y.dtype != x.dtype:
        raise ValueError(
            f"gated_residual: y is as x, {x.dtype} {list(x.shape)}, got {y.dtype} "
            f"{list(y.shape)}"
        )
    if chooses_triton("gated_residual", impl, x, y, gate, refusal=_refusal(x)):
        return _gate(x, y, gate)
    return reference.gate(x, y, gate)


def _check(op: str, x: Tensor, *vectors: Tensor) -> None:
    lead = vectors[0].ndim - 1
    expected = (*x.shape[:lead], x.shape[-1])
    for vector in vectors:
        if not 1 <= vector.ndim <= x.ndim or tuple(vector.shape) != expected:
            raise ValueError(
                f"{op}: x is [*L, *N, D], vectors are [*L, D], got {list(x.shape)}, "
                f"{list(vector.shape)}"
            )
        if vector.dtype not in (torch.float32, x.dtype) or vector.dtype != vectors[0].dtype:
            raise ValueError(
                f"{op}: vectors are all float32 or all {x.dtype} as x, got {vector.dtype}"
            )


def _refusal(x: Tensor) -> str | None:
    if x.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"it takes float32, float16 and bfloat16, got {x.dtype}."
    return (
        None
        if x.shape[-1] <= LONGEST_ROW
        else f"rows hold at most {LONGEST_ROW} values, got {x.shape[-1]}."
    )


@torch.library.custom_op("ultraflash::adaln_modulate", mutates_args=())
def _modulate(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    from ultraflash_kernels.adaln_modulate import kernel

    return kernel.modulate(x, shift, scale, eps)


@_modulate.register_fake
def _modulate_shape(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.custom_op("ultraflash::adaln_modulate_fp8", mutates_args=())
def _modulate_fp8(
    x: Tensor, shift: Tensor, scale: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    from ultraflash_kernels.adaln_modulate import kernel

    return kernel.modulate_fp8(x, shift, scale, eps)


@_modulate_fp8.register_fake
def _modulate_fp8_shapes(
    x: Tensor, shift: Tensor, scale: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    scales = x.new_empty((*x.shape[:-1], 1), dtype=torch.float32)
    return x.new_empty(x.shape, dtype=torch.float8_e4m3fn), scales


@torch.library.custom_op("ultraflash::gated_residual", mutates_args=())
def _gate(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    from ultraflash_kernels.adaln_modulate import kernel

    return kernel.gate(x, y, gate)


@_gate.register_fake
def _gate_shape(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    return x.new_empty(x.shape)
