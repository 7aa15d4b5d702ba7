"""Layer norm without weights, with scale and shift, and the gated residual sum, with
the published rounding."""

import torch
from torch import Tensor

from ultraflash_kernels.adaln_modulate import reference
from ultraflash_kernels.dispatch import KERNEL_DTYPES, Impl, chooses_triton
from ultraflash_kernels.fp8_linear import Fp8Rows, e4m3_refusal, quantise_rows

__all__ = ["adaln_modulate", "adaln_modulate_fp8", "gated_residual", "residual_norm"]

LONGEST_ROW = 8192
"""Widest row that a program of the kernels holds in registers."""


def adaln_modulate(
    x: Tensor,
    shift: Tensor,
    scale: Tensor,
    *,
    offset: Tensor | None = None,
    eps: float = 1e-6,
    affine: bool = False,
    impl: Impl = "auto",
) -> Tensor:
    """Return ``LN(x) * (1 + scale) + shift`` for ``x [*L, *N, D]`` and vectors
    ``[*L, D]``, in the dtype of x.

    With ``offset [D]`` it is the norm of ``x + offset``, which is not rounded before.
    With ``affine`` it is a layer norm with weight ``scale [D]`` and bias ``shift [D]``.

    The norm is over D, without weights, computed in float32 and rounded to the dtype of
    x. With float32 vectors the rest is computed in float32 and rounded once, as in the
    SR transformer (reference/cascade.md 4.2). With vectors in the dtype of x each step
    is rounded to it, as in the generator. Raises ValueError for invalid shapes or
    dtypes.
    """
    _check_norm("adaln_modulate", x, shift, scale, affine)
    _check_offset("adaln_modulate", x, offset)
    tensors = [x, shift, scale, *([] if offset is None else [offset])]
    if chooses_triton("adaln_modulate", impl, *tensors, refusal=_refusal(x)):
        return _modulate(x, shift, scale, eps, offset, affine)
    return reference.modulate(x, shift, scale, eps, offset, affine)


def adaln_modulate_fp8(
    x: Tensor, shift: Tensor, scale: Tensor, *, eps: float = 1e-6, impl: Impl = "auto"
) -> Fp8Rows:
    """Return ``quantise_rows(adaln_modulate(...))`` without writing the intermediate
    rows: ``[*L, *N, D]`` in float8_e4m3fn and scales ``[*L, *N, 1]``. Inference only.
    """
    _check("adaln_modulate_fp8", x, shift, scale)
    refusal = _refusal(x) or e4m3_refusal(x)
    if chooses_triton("adaln_modulate_fp8", impl, x, shift, scale, refusal=refusal):
        return Fp8Rows(*_modulate_fp8(x, shift, scale, eps))
    return quantise_rows(reference.modulate(x, shift, scale, eps), impl="reference")


def gated_residual(
    x: Tensor,
    y: Tensor,
    gate: Tensor,
    *,
    offset: Tensor | None = None,
    impl: Impl = "auto",
) -> Tensor:
    """Return ``x + y * gate`` for ``x, y [*L, *N, D]`` and vectors ``gate [*L, D]``, in
    the dtype of x; with ``offset [D]`` added to it.

    Computed in the dtype of the gate: float32 is rounded once at the end; in the dtype
    of x the product is rounded as well. Raises ValueError for invalid shapes or dtypes.
    """
    _check("gated_residual", x, gate)
    _check_offset("gated_residual", x, offset)
    if y.shape != x.shape or y.dtype != x.dtype:
        raise ValueError(
            f"gated_residual: y must match x, {x.dtype} {list(x.shape)}, got {y.dtype} "
            f"{list(y.shape)}"
        )
    tensors = [x, y, gate, *([] if offset is None else [offset])]
    if chooses_triton("gated_residual", impl, *tensors, refusal=_refusal(x)):
        return _gate(x, y, gate, offset)
    return reference.gate(x, y, gate, offset)


def residual_norm(
    x: Tensor,
    y: Tensor,
    gate: Tensor | None,
    shift: Tensor,
    scale: Tensor,
    *,
    offset: Tensor | None = None,
    eps: float = 1e-6,
    affine: bool = False,
    fp8: bool = False,
    impl: Impl = "auto",
) -> tuple[Tensor, Tensor | Fp8Rows]:
    """Return the sum ``x + y * gate`` and its norm, in one pass over the rows.

    The sum is that of ``gated_residual``, or ``x + y`` without a gate, with ``offset
    [D]`` added to it. The norm is ``adaln_modulate`` of it with vectors ``[*L, D]``;
    with ``affine`` it is a layer norm with weight ``scale [D]`` and bias ``shift [D]``.
    With ``fp8`` the norm is returned quantised as by ``quantise_rows``. Raises
    ValueError for invalid shapes or dtypes.
    """
    if gate is not None:
        _check("residual_norm", x, gate)
    _check_norm("residual_norm", x, shift, scale, affine)
    _check_offset("residual_norm", x, offset)
    if not affine and gate is not None and gate.shape != scale.shape:
        raise ValueError(
            "residual_norm: gate and scale must have the same shape, "
            f"got {list(gate.shape)} and {list(scale.shape)}"
        )

    if y.shape != x.shape or y.dtype != x.dtype:
        raise ValueError(
            f"residual_norm: y must match x, {x.dtype} {list(x.shape)}, "
            f"got {y.dtype} {list(y.shape)}"
        )

    refusal = _refusal(x) or (e4m3_refusal(x) if fp8 else None)
    tensors = [x, y, shift, scale, *(each for each in (gate, offset) if each is not None)]
    if chooses_triton("residual_norm", impl, *tensors, refusal=refusal):
        total, values, scales = _residual_norm(
            x, y, gate, shift, scale, eps, affine, fp8, offset
        )
        return total, Fp8Rows(values, scales) if fp8 else values

    total, normed = reference.residual_norm(x, y, gate, shift, scale, eps, affine, offset)
    return total, quantise_rows(normed, impl="reference") if fp8 else normed


def _check_norm(op: str, x: Tensor, shift: Tensor, scale: Tensor, affine: bool) -> None:
    if not affine:
        _check(op, x, shift, scale)
    elif scale.shape != x.shape[-1:] or shift.shape != x.shape[-1:]:
        expected = f"weight and bias of the norm must be [{x.shape[-1]}]"
        raise ValueError(
            f"{op}: {expected}, got {list(scale.shape)} and {list(shift.shape)}"
        )


def _check_offset(op: str, x: Tensor, offset: Tensor | None) -> None:
    if offset is not None and offset.shape != x.shape[-1:]:
        raise ValueError(
            f"{op}: the offset must be [{x.shape[-1]}], got {list(offset.shape)}"
        )


def _check(op: str, x: Tensor, *vectors: Tensor) -> None:
    lead = vectors[0].ndim - 1
    expected = (*x.shape[:lead], x.shape[-1])
    for vector in vectors:
        if not 1 <= vector.ndim <= x.ndim or tuple(vector.shape) != expected:
            raise ValueError(
                f"{op}: x must be [*L, *N, D] and vectors [*L, D], got {list(x.shape)}, "
                f"{list(vector.shape)}"
            )
        if vector.dtype not in (torch.float32, x.dtype) or vector.dtype != vectors[0].dtype:
            raise ValueError(
                f"{op}: vectors must all be float32 or {x.dtype} like x, got {vector.dtype}"
            )


def _refusal(x: Tensor) -> str | None:
    if x.dtype not in KERNEL_DTYPES:
        return f"it supports float32, float16 and bfloat16, got {x.dtype}."
    return (
        None
        if x.shape[-1] <= LONGEST_ROW
        else f"rows hold at most {LONGEST_ROW} values, got {x.shape[-1]}."
    )


@torch.library.custom_op("ultraflash::adaln_modulate", mutates_args=())
def _modulate(
    x: Tensor,
    shift: Tensor,
    scale: Tensor,
    eps: float,
    offset: Tensor | None,
    affine: bool,
) -> Tensor:
    from ultraflash_kernels.adaln_modulate import kernel

    return kernel.modulate(x, shift, scale, eps, offset, affine)


@_modulate.register_fake
def _modulate_shape(
    x: Tensor,
    shift: Tensor,
    scale: Tensor,
    eps: float,
    offset: Tensor | None,
    affine: bool,
) -> Tensor:
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
def _gate(x: Tensor, y: Tensor, gate: Tensor, offset: Tensor | None) -> Tensor:
    from ultraflash_kernels.adaln_modulate import kernel

    return kernel.gate(x, y, gate, offset)


@_gate.register_fake
def _gate_shape(x: Tensor, y: Tensor, gate: Tensor, offset: Tensor | None) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.custom_op("ultraflash::residual_norm", mutates_args=())
def _residual_norm(
    x: Tensor,
    y: Tensor,
    gate: Tensor | None,
    shift: Tensor,
    scale: Tensor,
    eps: float,
    affine: bool,
    fp8: bool,
    offset: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    from ultraflash_kernels.adaln_modulate import kernel

    return kernel.residual_norm(x, y, gate, shift, scale, eps, affine, fp8, offset)


@_residual_norm.register_fake
def _residual_norm_shapes(
    x: Tensor,
    y: Tensor,
    gate: Tensor | None,
    shift: Tensor,
    scale: Tensor,
    eps: float,
    affine: bool,
    fp8: bool,
    offset: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    scales = x.new_empty((*x.shape[:-1], 1) if fp8 else (0,), dtype=torch.float32)
    normed = x.new_empty(x.shape, dtype=torch.float8_e4m3fn if fp8 else x.dtype)
    return x.new_empty(x.shape), normed, scales
