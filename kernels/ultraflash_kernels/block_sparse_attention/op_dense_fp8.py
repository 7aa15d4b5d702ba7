"""Softmax attention to all keys in 8-bit floating point."""

from collections.abc import Callable
from importlib import import_module

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.library import custom_op

from ultraflash_kernels.block_sparse_attention import hopper_fp8
from ultraflash_kernels.block_sparse_attention.op import WIDEST, AttentionImpl
from ultraflash_kernels.dispatch import KERNEL_DTYPES, chooses_triton
from ultraflash_kernels.fp8_linear import Fp8Rows, e4m3_refusal

__all__ = ["dense_attention_fp8"]

PACKAGE = "ultraflash_kernels.block_sparse_attention"
PIECE = 16
"""Number of tokens that kernels read at once; buffers must hold whole pieces."""


def dense_attention_fp8(
    q: Fp8Rows,
    k: Fp8Rows,
    v: Fp8Rows,
    *,
    dtype: torch.dtype = torch.bfloat16,
    impl: AttentionImpl = "auto",
) -> Tensor:
    """Like ``dense_attention``, but from queries, keys and values in 8 bits, each token
    of each head with its own scale; the result has ``dtype``.

    ``q`` and ``k`` are values ``[B, H, tokens, D]`` and scales ``[B, H, tokens, 1]``;
    ``v`` is ``turned``: values ``[B, H, D, key tokens]`` and scales ``[B, H, 1, key
    tokens]``. ``k`` and ``v`` may be the first tokens of larger buffers, whose other
    tokens are not used; kernels need buffers of a multiple of 16 tokens. A kernel
    multiplies the 8-bit numbers, also rounds the weights of values to 8 bits, and sums
    in float32; the reference computes in ``dtype`` with the numbers that the rows
    represent. The memory layout of a kernel's result is ``[B, tokens, H, D]``.
    Inference only. Raises ValueError for invalid shapes, KernelUnsupportedError for
    ``impl="triton"`` or ``"hopper"`` if the kernel cannot run.
    """
    _check(q, k, v)
    given = (q.values, k.values, v.values, q.scales, k.scales, v.scales)
    refusal = _refusal(q, k, v, dtype)
    if impl == "hopper":
        refusal = refusal or hopper_fp8.refusal(q, k, v)
    by_kernel = "triton" if impl == "hopper" else impl
    with torch.no_grad():
        if chooses_triton("dense_attention_fp8", by_kernel, *given, refusal=refusal):
            chosen = impl == "auto" and hopper_fp8.is_chosen("dense", q, k, v)
            if impl == "hopper" or chosen:
                return _dense_attention_fp8_hopper(*given, dtype)
            return _dense_attention_fp8(*given, dtype)
        wide = (q.wide(dtype), k.wide(dtype), v.wide(dtype).mT)
        return F.scaled_dot_product_attention(*wide)


def _check(q: Fp8Rows, k: Fp8Rows, v: Fp8Rows) -> None:
    """Raise ValueError unless these are rows of one size, values turned."""
    shape = list(k.values.shape)
    expected = {"q": [*shape[:2], *q.values.shape[2:3], *shape[3:]], "k": shape}
    expected["v"] = [*shape[:2], *reversed(shape[2:])]

    for name, rows in {"q": q, "k": k, "v": v}.items():
        one_each = list(rows.values.shape)
        if len(one_each) == 4:
            one_each[2 if name == "v" else 3] = 1
        if (
            list(rows.values.shape) != expected[name]
            or rows.values.ndim != 4
            or list(rows.scales.shape) != one_each
            or rows.values.dtype != torch.float8_e4m3fn
            or rows.scales.dtype != torch.float32
        ):
            layout = "[B, H, D, tokens]" if name == "v" else "[B, H, tokens, D]"
            raise ValueError(
                f"dense_attention_fp8: {name} must be float8_e4m3fn {layout} with a "
                f"float32 scale for each token, got {rows.values.dtype} "
                f"{list(rows.values.shape)} with {rows.scales.dtype} "
                f"{list(rows.scales.shape)}; keys are {shape}"
            )


def _refusal(q: Fp8Rows, k: Fp8Rows, v: Fp8Rows, dtype: torch.dtype) -> str | None:
    if dtype not in KERNEL_DTYPES:
        return f"results are float32, float16 or bfloat16, got {dtype}."
    if q.values.shape[-1] > WIDEST:
        return f"heads are {q.values.shape[-1]} wide, expected at most {WIDEST}."
    if k.values.numel() == 0:
        return f"there must be keys, got {list(k.values.shape)}."
    if any(rows.values.stride(-1) != 1 for rows in (q, k, v)):
        return "rows must be contiguous."
    if v.values.stride(2) % PIECE or v.values.storage_offset() % PIECE:
        return f"values must start a buffer of a multiple of {PIECE} tokens."
    return e4m3_refusal(q.values)


def _registered(name: str, module: str, launcher: str) -> Callable[..., Tensor]:
    """Return the operator that runs a module's kernel, which imports Triton."""

    def attend(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        q_scales: Tensor,
        k_scales: Tensor,
        v_scales: Tensor,
        dtype: torch.dtype,
    ) -> Tensor:
        launch = getattr(import_module(f"{PACKAGE}.{module}"), launcher)
        rows = (Fp8Rows(q, q_scales), Fp8Rows(k, k_scales), Fp8Rows(v, v_scales))
        return launch(*rows, dtype)

    operator = custom_op(f"ultraflash::{name}", attend, mutates_args=())
    operator.register_fake(_shape)
    return operator


def _shape(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_scales: Tensor,
    k_scales: Tensor,
    v_scales: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    samples, heads, tokens, width = q.shape
    return q.new_empty((samples, tokens, heads, width), dtype=dtype).transpose(1, 2)


_dense_attention_fp8 = _registered("dense_attention_fp8", "kernel_fp8_dense", "forward")
_dense_attention_fp8_hopper = _registered(
    "dense_attention_fp8_hopper", "kernel_hopper_fp8", "dense"
)
