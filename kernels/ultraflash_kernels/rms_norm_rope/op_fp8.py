"""Norm of queries and keys and rotary embedding, written in 8-bit floating point: to
blocks with their means, or token by token to a cache."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ultraflash_kernels.dispatch import Impl, chooses_triton
from ultraflash_kernels.fp8_linear import Fp8Rows, quantise_rows
from ultraflash_kernels.rms_norm_rope.axis_tables import AxisTables
from ultraflash_kernels.rms_norm_rope.checks import (
    Three,
    check_rows,
    check_tokens,
    rows_refusal,
)
from ultraflash_kernels.rms_norm_rope.op import rms_norm_rope, rms_norm_rope_means
from ultraflash_kernels.token_order import blocks_of

__all__ = ["rms_norm_rope_fp8", "rms_norm_rope_means_fp8"]


def rms_norm_rope_fp8(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    tables: AxisTables,
    *,
    size: Three,
    eps: float = 1e-6,
    kv_out: tuple[Fp8Rows, Fp8Rows] | None = None,
    impl: Impl = "auto",
) -> tuple[Fp8Rows, Fp8Rows, Fp8Rows]:
    """Return the result of ``rms_norm_rope`` for projections ``[B, tokens, D]``,
    rounded to float8_e4m3fn as by ``quantise_rows``, each token of each head with its
    own scale.

    Tokens are frame-major: those of frame 0 row by row, then those of frame 1. q and k
    are values ``[B, heads, tokens, d]`` and scales ``[..., tokens, 1]``; v is
    ``turned``: values ``[B, heads, d, tokens]`` and scales ``[..., 1, tokens]``, the
    layout that ``dense_attention_fp8`` reads. ``kv_out`` are destinations of k and v,
    for instance slices of a cache; they are returned. The other arguments are those of
    ``rms_norm_rope``. Raises ValueError for invalid shapes, dtypes or destinations.
    """
    op, weights = "rms_norm_rope_fp8", (q_weight, k_weight)
    check_tokens(op, (q, k, v), weights, tables, size, size)
    head, tokens = tables.head_width, q.shape[1]
    outer = (q.shape[0], q.shape[2] // head)
    if kv_out is not None:
        check_rows(op, kv_out[0], (*outer, tokens, head), turned=False, blocks=False)
        check_rows(op, kv_out[1], (*outer, head, tokens), turned=True, blocks=False)

    given = (q, k, v, *weights, tables.turns)
    into = [x for rows in kv_out or () for x in rows]
    if chooses_triton(op, impl, *given, *into, refusal=rows_refusal(q, head)):
        q_rows = _empty_rows(q, outer, tokens, head)
        k_rows, v_rows = kv_out or _empty_pair(q, outer, tokens, head)
        numbers = (tables.pairs, tables.positions, size, eps)
        _write_fp8(*given, *numbers, *q_rows, *k_rows, *v_rows)
        return q_rows, k_rows, v_rows

    way: Impl = "reference" if impl == "reference" else "auto"
    frames = (size[0], size[1] * size[2])
    q, k, v = (x.unflatten(1, frames) for x in (q, k, v))
    block = (1, *size[1:])
    wide = rms_norm_rope(
        q, k, v, *weights, tables, size=size, block=block, eps=eps, impl=way
    )
    return _quantised([x.flatten(2, 3) for x in wide], kv_out, way)


def rms_norm_rope_means_fp8(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    tables: AxisTables,
    *,
    size: Three,
    block: Three,
    mean_dtype: torch.dtype = torch.float32,
    eps: float = 1e-6,
    kv_out: tuple[Fp8Rows, Fp8Rows] | None = None,
    impl: Impl = "auto",
) -> tuple[Fp8Rows, Fp8Rows, Fp8Rows, Tensor, Tensor]:
    """Return the result of ``rms_norm_rope_means`` with q, k and v rounded to
    float8_e4m3fn, as by ``quantise_rows``, each token of each head with its own scale.

    q and k are values ``[B, heads, blocks, block tokens, d]`` and scales ``[..., block
    tokens, 1]``; v is ``turned``: values ``[B, heads, blocks, d, block tokens]`` and
    scales ``[..., 1, block tokens]``, the layout that ``block_list_attention_fp8``
    reads. The means are those of the numbers before they are rounded to 8 bits.
    ``kv_out`` are destinations of k and v, for instance blocks of a KV ring; they are
    returned. Raises ValueError for invalid shapes, dtypes or destinations.
    """
    op, weights = "rms_norm_rope_means_fp8", (q_weight, k_weight)
    check_tokens(op, (q, k, v), weights, tables, size, block)
    head, inner = tables.head_width, math.prod(block)
    outer = (q.shape[0], q.shape[2] // head, math.prod(blocks_of(size, block)))
    if kv_out is not None:
        check_rows(op, kv_out[0], (*outer, inner, head), turned=False, blocks=True)
        check_rows(op, kv_out[1], (*outer, head, inner), turned=True, blocks=True)

    given = (q, k, v, *weights, tables.turns)
    into = [x for rows in kv_out or () for x in rows]
    if chooses_triton(op, impl, *given, *into, refusal=rows_refusal(q, head)):
        q_rows = _empty_rows(q, outer, inner, head)
        k_rows, v_rows = kv_out or _empty_pair(q, outer, inner, head)
        q_mean, k_mean = (
            q.new_empty((*outer, head), dtype=mean_dtype) for _ in ("queries", "keys")
        )
        numbers = (tables.pairs, tables.positions, size, block, eps)
        made = (*q_rows, *k_rows, *v_rows, q_mean, k_mean)
        _write_means_fp8(*given, *numbers, *made)
        return q_rows, k_rows, v_rows, q_mean, k_mean

    way: Impl = "reference" if impl == "reference" else "auto"
    *wide, q_mean, k_mean = rms_norm_rope_means(
        q,
        k,
        v,
        *weights,
        tables,
        size=size,
        block=block,
        mean_dtype=mean_dtype,
        eps=eps,
        impl=way,
    )
    return *_quantised(wide, kv_out, way), q_mean, k_mean


def _quantised(
    wide: Sequence[Tensor], kv_out: tuple[Fp8Rows, Fp8Rows] | None, way: Impl
) -> tuple[Fp8Rows, Fp8Rows, Fp8Rows]:
    """Quantise q, k and v, the latter turned; k and v go to ``kv_out`` if it is not
    None."""
    q_rows, k_rows, v_rows = (quantise_rows(x, impl=way) for x in wide)
    v_rows = v_rows.turned()
    if kv_out is None:
        return q_rows, k_rows, v_rows
    for to, rows in zip(kv_out, (k_rows, v_rows), strict=True):
        to.values.copy_(rows.values)
        to.scales.copy_(rows.scales)
    return q_rows, *kv_out


def _empty_pair(
    like: Tensor, outer: tuple[int, ...], tokens: int, head: int
) -> tuple[Fp8Rows, Fp8Rows]:
    """Return rows for keys, and turned ones for values."""
    return (
        _empty_rows(like, outer, tokens, head),
        _empty_rows(like, outer, tokens, head, turned=True),
    )


def _empty_rows(
    like: Tensor, outer: tuple[int, ...], tokens: int, head: int, *, turned: bool = False
) -> Fp8Rows:
    values, scales = (head, tokens) if turned else (tokens, head), (tokens, 1)
    return Fp8Rows(
        like.new_empty((*outer, *values), dtype=torch.float8_e4m3fn),
        like.new_empty(
            (*outer, *(scales[::-1] if turned else scales)), dtype=torch.float32
        ),
    )


@torch.library.custom_op(
    "ultraflash::rms_norm_rope_fp8",
    mutates_args=("q_out", "q_scales", "k_out", "k_scales", "v_out", "v_scales"),
)
def _write_fp8(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    turns: Tensor,
    pairs: Sequence[int],
    positions: Sequence[int],
    size: Sequence[int],
    eps: float,
    q_out: Tensor,
    q_scales: Tensor,
    k_out: Tensor,
    k_scales: Tensor,
    v_out: Tensor,
    v_scales: Tensor,
) -> None:
    from ultraflash_kernels.rms_norm_rope import kernel_tokens

    given = (q, k, v, q_weight, k_weight, turns, pairs, positions, size, eps)
    out, scales = (q_out, k_out, v_out), (q_scales, k_scales, v_scales)
    kernel_tokens.forward(*given, out, scales)


@torch.library.custom_op(
    "ultraflash::rms_norm_rope_means_fp8",
    mutates_args=(
        "q_out",
        "q_scales",
        "k_out",
        "k_scales",
        "v_out",
        "v_scales",
        "q_mean",
        "k_mean",
    ),
)
def _write_means_fp8(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    turns: Tensor,
    pairs: Sequence[int],
    positions: Sequence[int],
    size: Sequence[int],
    block: Sequence[int],
    eps: float,
    q_out: Tensor,
    q_scales: Tensor,
    k_out: Tensor,
    k_scales: Tensor,
    v_out: Tensor,
    v_scales: Tensor,
    q_mean: Tensor,
    k_mean: Tensor,
) -> None:
    from ultraflash_kernels.rms_norm_rope import kernel_blocks

    given = (q, k, v, q_weight, k_weight, turns, pairs, positions, size, block, eps)
    scales = (q_scales, k_scales, v_scales)
    kernel_blocks.forward(*given, (q_out, k_out, v_out), (q_mean, k_mean), scales)
