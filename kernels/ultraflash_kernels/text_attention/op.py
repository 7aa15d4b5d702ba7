"""Cross-attention to the keys of a prompt: norm of the queries, softmax attention to
weighted keys, and heads joined, in one pass over the tokens."""

import torch
from torch import Tensor

from ultraflash_kernels.dispatch import KERNEL_DTYPES, Impl, chooses_triton
from ultraflash_kernels.fp8_linear import Fp8Rows, e4m3_refusal, quantise_rows
from ultraflash_kernels.text_attention import reference

__all__ = ["text_attention", "text_attention_fp8"]

WIDEST_HEAD = 128
"""Maximum number of channels of a head, which a program of the kernel holds in
registers."""


def text_attention(
    q: Tensor,
    weight: Tensor,
    k: Tensor,
    v: Tensor,
    log_weights: Tensor | None = None,
    *,
    eps: float = 1e-6,
    impl: Impl = "auto",
) -> Tensor:
    """Return attention from the normalised queries to all keys, heads joined, ``[B,
    tokens, width]``; differentiable by the reference.

    Args:
        q: Projected queries ``[B, tokens, width]``, before their norm.
        weight: Of the RMS norm of queries over all heads, ``[width]``; the quotient is
            rounded to the dtype of q before it is multiplied, as in ``rms_norm``.
        k: Keys ``[B, heads, keys, D]``, where ``heads * D = width``.
        v: Values ``[B, heads, keys, D]``.
        log_weights: ``[keys]`` float32, added to the scores, which are scaled by ``1 /
            sqrt(D)``; a key with ``log(n)`` counts as n equal ones, one with ``-inf``
            not at all. At least one is finite. None for zeros.
        eps: Added to the mean square.
        impl: The implementation.

    Raises:
        ValueError: Shapes that do not fit, or weights of keys that are not float32.
        KernelUnsupportedError: ``impl`` is ``triton`` and the kernel cannot run.
    """
    _check("text_attention", q, weight, k, v, log_weights)
    given = [q, weight, k, v, *([] if log_weights is None else [log_weights])]
    refusal = _refusal(q, weight, k, v)
    if chooses_triton("text_attention", impl, *given, refusal=refusal):
        return _attention(q, weight, k, v, log_weights, eps)
    return reference.attention(q, weight, k, v, log_weights, eps)


def text_attention_fp8(
    q: Tensor,
    weight: Tensor,
    k: Tensor,
    v: Tensor,
    log_weights: Tensor | None = None,
    *,
    eps: float = 1e-6,
    impl: Impl = "auto",
) -> Fp8Rows:
    """Return ``quantise_rows(text_attention(...))`` without writing the intermediate
    rows to memory: ``[B, tokens, width]`` in float8_e4m3fn and scales ``[B, tokens,
    1]``. Inference only."""
    _check("text_attention_fp8", q, weight, k, v, log_weights)
    given = [q, weight, k, v, *([] if log_weights is None else [log_weights])]
    refusal = _refusal(q, weight, k, v) or e4m3_refusal(q)
    if chooses_triton("text_attention_fp8", impl, *given, refusal=refusal):
        return Fp8Rows(*_attention_fp8(q, weight, k, v, log_weights, eps))
    with torch.no_grad():
        attended = reference.attention(q, weight, k, v, log_weights, eps)
    return quantise_rows(attended, impl="reference" if impl == "reference" else "auto")


def _check(
    op: str, q: Tensor, weight: Tensor, k: Tensor, v: Tensor, log_weights: Tensor | None
) -> None:
    heads, keys, depth = k.shape[1:] if k.ndim == 4 else (0, 0, 0)
    fits = q.ndim == 3 and k.ndim == 4 and k.shape == v.shape and len(q) == len(k)
    if not fits or q.shape[2] != heads * depth or weight.shape != q.shape[2:] or not keys:
        shapes = [list(x.shape) for x in (q, weight, k, v)]
        raise ValueError(
            f"{op}: q [B, tokens, heads * D], weight [heads * D] and k, v [B, heads, keys, "
            f"D] expected, got {shapes}"
        )
    if log_weights is not None and (
        log_weights.shape != (keys,) or log_weights.dtype != torch.float32
    ):
        raise ValueError(
            f"{op}: log_weights must be float32 [{keys}], got {log_weights.dtype} "
            f"{list(log_weights.shape)}"
        )


def _refusal(q: Tensor, *others: Tensor) -> str | None:
    if q.dtype not in KERNEL_DTYPES or any(x.dtype != q.dtype for x in others):
        found = ", ".join(str(x.dtype) for x in (q, *others))
        return f"all tensors are float32, float16 or bfloat16, got {found}."
    depth = others[-1].shape[-1]
    if depth > WIDEST_HEAD:
        return f"heads have at most {WIDEST_HEAD} channels, got {depth}."
    return None


@torch.library.custom_op("ultraflash::text_attention", mutates_args=())
def _attention(
    q: Tensor,
    weight: Tensor,
    k: Tensor,
    v: Tensor,
    log_weights: Tensor | None,
    eps: float,
) -> Tensor:
    from ultraflash_kernels.text_attention import kernel

    return kernel.forward(q, weight, k, v, log_weights, eps)


@_attention.register_fake
def _attention_shape(
    q: Tensor,
    weight: Tensor,
    k: Tensor,
    v: Tensor,
    log_weights: Tensor | None,
    eps: float,
) -> Tensor:
    return q.new_empty(q.shape)


@torch.library.custom_op("ultraflash::text_attention_fp8", mutates_args=())
def _attention_fp8(
    q: Tensor,
    weight: Tensor,
    k: Tensor,
    v: Tensor,
    log_weights: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor]:
    from ultraflash_kernels.text_attention import kernel

    return kernel.forward_fp8(q, weight, k, v, log_weights, eps)


@_attention_fp8.register_fake
def _attention_fp8_shapes(
    q: Tensor,
    weight: Tensor,
    k: Tensor,
    v: Tensor,
    log_weights: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor]:
    scales = q.new_empty((*q.shape[:-1], 1), dtype=torch.float32)
    return q.new_empty(q.shape, dtype=torch.float8_e4m3fn), scales
