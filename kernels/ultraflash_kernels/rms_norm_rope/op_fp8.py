"""Norm of queries and keys and rotary embedding, written to blocks in 8-bit floating
point, with the means of the blocks."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ultraflash_kernels.dispatch import Impl, chooses_triton, power_of_two
from ultraflash_kernels.fp8_linear import Fp8Rows, e4m3_refusal, quantise_rows
from ultraflash_kernels.rms_norm_rope.op import (
    AxisTables,
    check_dense,
    rms_norm_rope_means,
    width_refusal,
)
from ultraflash_kernels.token_order import blocks_of

__all__ = ["rms_norm_rope_means_fp8"]


def rms_norm_rope_means_fp8(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    tables: AxisTables,
    *,
    size: tuple[int, int, int],
    block: tuple[int, int, int],
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
    returned. Raises
    ValueError for invalid shapes, dtypes or destinations.
    """
    check_dense(q, k, v, q_weight, k_weight, tables, size, block, None)
    head = tables.head_width
    blocks, inner = math.prod(blocks_of(size, block)), math.prod(block)
    outer = (q.shape[0], q.shape[2] // head, blocks)
    if kv_out is not None:
        _check_destination(kv_out[0], (*outer, inner, head), (*outer, inner, 1))
        _check_destination(kv_out[1], (*outer, head, inner), (*outer, 1, inner))

    weights = (q_weight, k_weight, tables.turns)
    numbers = (tables.pairs, tables.positions, size, block, eps)
    into = [x for rows in kv_out or () for x in rows]
    refusal = width_refusal(q) or _head_refusal(head) or e4m3_refusal(q)
    if chooses_triton(
        "rms_norm_rope_means_fp8", impl, q, k, v, *weights, *into, refusal=refusal
    ):
        q_rows = _empty_rows(q, (*outer, inner, head), (*outer, inner, 1))
        k_rows, v_rows = kv_out or (
            _empty_rows(q, (*outer, inner, head), (*outer, inner, 1)),
            _empty_rows(q, (*outer, head, inner), (*outer, 1, inner)),
        )
        q_mean, k_mean = (
            q.new_empty((*outer, head), dtype=mean_dtype) for _ in ("queries", "keys")
        )
        made = (*q_rows, *k_rows, *v_rows, q_mean, k_mean)
        _write_means_fp8(q, k, v, *weights, *numbers, *made)
        return q_rows, k_rows, v_rows, q_mean, k_mean

    way: Impl = "reference" if impl == "reference" else "auto"
    *wide, q_mean, k_mean = rms_norm_rope_means(
        q,
        k,
        v,
        q_weight,
        k_weight,
        tables,
        size=size,
        block=block,
        mean_dtype=mean_dtype,
        eps=eps,
        impl=way,
    )
    q_rows, k_rows, v_rows = (quantise_rows(x, impl=way) for x in wide)
    v_rows = v_rows.turned()
    if kv_out is None:
        return q_rows, k_rows, v_rows, q_mean, k_mean
    for to, rows in zip(kv_out, (k_rows, v_rows), strict=True):
        to.values.copy_(rows.values)
        to.scales.copy_(rows.scales)
    return q_rows, *kv_out, q_mean, k_mean


def _empty_rows(
    like: Tensor, shape: tuple[int, ...], scales_shape: tuple[int, ...]
) -> Fp8Rows:
    return Fp8Rows(
        like.new_empty(shape, dtype=torch.float8_e4m3fn),
        like.new_empty(scales_shape, dtype=torch.float32),
    )


def _head_refusal(head: int) -> str | None:
    if head == power_of_two(head):
        return None
    return f"heads are {head} wide, expected a power of two."


def _check_destination(
    rows: Fp8Rows, shape: tuple[int, ...], scales_shape: tuple[int, ...]
) -> None:
    values, scales = rows
    ok = (
        tuple(values.shape) == shape
        and tuple(scales.shape) == scales_shape
        and values.dtype == torch.float8_e4m3fn
        and scales.dtype == torch.float32
        and all(x[0, 0].is_contiguous() for x in rows if x.numel())
    )
    if not ok:
        raise ValueError(
            f"rms_norm_rope_means_fp8: a destination must be float8_e4m3fn {list(shape)} "
            f"and float32 {list(scales_shape)} with adjacent blocks, got {values.dtype} "
            f"{list(values.shape)} and {scales.dtype} {list(scales.shape)}"
        )


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
