"""Norm of queries and keys over all channels, rotary embedding and rearrangement to
head-major blocks, in one pass."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ultraflash_kernels.dispatch import Impl, chooses_triton
from ultraflash_kernels.rms_norm_rope import reference
from ultraflash_kernels.rms_norm_rope.axis_tables import AxisTables
from ultraflash_kernels.rms_norm_rope.checks import (
    Qkv,
    check_blocks,
    check_tokens,
    width_refusal,
)
from ultraflash_kernels.token_order import blocks_of, with_padding

__all__ = ["rms_norm_rope", "rms_norm_rope_means"]


def rms_norm_rope(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    tables: AxisTables,
    *,
    size: tuple[int, int, int],
    block: tuple[int, int, int],
    eps: float = 1e-6,
    out: Qkv | None = None,
    impl: Impl = "auto",
) -> Qkv:
    """Return q, k and v ``[B, heads, blocks, block tokens, d]`` of projections
    ``[B, blocks, block tokens, D]``.

    ``size`` is the number of frames, rows and columns of tokens, ``block`` that of a
    block; blocks are padded at the end of each axis and, like the tokens inside them,
    ordered by frame, row and column. Tokens of q and k are divided by their root mean
    square over all D channels (float32), rounded, multiplied by the weight ``[D]``, and
    their pairs (2i, 2i + 1) are rotated (float32) by the ``tables`` at the token's
    frame, row and column; v is copied. Padding becomes zero regardless of its values.
    reference/cascade.md 1.3, 1.4, 4.4.

    The reference computes float64 in float64. ``out`` are the destination tensors, for
    instance slices of a KV ring, with adjacent blocks; they are returned. Frame-major
    tokens are blocks of ``(1, rows, cols)``. Raises ValueError for invalid shapes,
    dtypes or destinations.
    """
    weights = (q_weight, k_weight)
    check_blocks("rms_norm_rope", (q, k, v), weights, tables, size, block, out)
    numbers = (tables.pairs, tables.positions, size, block, eps)
    given = (q, k, v, *weights, tables.turns)
    if chooses_triton(
        "rms_norm_rope", impl, *given, *(out or ()), refusal=width_refusal(q)
    ):
        batch, blocks, tokens, width = q.shape
        head = tables.head_width
        made = out or _empty(q, (batch, width // head, blocks, tokens, head))
        _write(*given, *numbers, *made)
        return made
    return reference.forward(*given, *numbers, out)


def rms_norm_rope_means(
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
    out: Qkv | None = None,
    impl: Impl = "auto",
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the result of ``rms_norm_rope`` for projections ``[B, tokens, D]`` without
    padding, and the means of the blocks of q and k. Tokens are in block order without
    padding; the results include it as zeros. Means are ``[B, heads, blocks, d]`` over
    all tokens of the resulting blocks, rounded once to ``mean_dtype``. ``out`` and the
    other arguments are the same.
    """
    op = "rms_norm_rope_means"
    check_tokens(op, (q, k, v), (q_weight, k_weight), tables, size, block, out)

    weights, head = (q_weight, k_weight, tables.turns), tables.head_width
    numbers = (tables.pairs, tables.positions, size, block, eps)
    whole = math.prod(blocks_of(size, block)), math.prod(block)
    tensors = (q, k, v, *weights, *(out or ()))
    if chooses_triton(op, impl, *tensors, refusal=width_refusal(q)):
        shape = (q.shape[0], q.shape[2] // head, *whole, head)
        made = out or _empty(q, shape)
        q_mean, k_mean = (
            q.new_empty((*shape[:3], head), dtype=mean_dtype) for _ in ("queries", "keys")
        )
        _write_means(q, k, v, *weights, *numbers, *made, q_mean, k_mean)
        return *made, q_mean, k_mean

    q, k, v = (
        with_padding(x, size, block).unflatten(1, whole).contiguous() for x in (q, k, v)
    )
    made = reference.forward(q, k, v, *weights, *numbers, out)
    q_mean, k_mean = (x.detach().mean(dim=3, dtype=mean_dtype) for x in made[:2])
    return *made, q_mean, k_mean


def _empty(q: Tensor, shape: tuple[int, ...]) -> Qkv:
    return q.new_empty(shape), q.new_empty(shape), q.new_empty(shape)


@torch.library.custom_op(
    "ultraflash::rms_norm_rope", mutates_args=("q_out", "k_out", "v_out")
)
def _write(
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
    k_out: Tensor,
    v_out: Tensor,
) -> None:
    from ultraflash_kernels.rms_norm_rope import kernel

    given = (q, k, v, q_weight, k_weight, turns, pairs, positions, size, block, eps)
    kernel.forward(*given, (q_out, k_out, v_out))


@torch.library.custom_op(
    "ultraflash::rms_norm_rope_means",
    mutates_args=("q_out", "k_out", "v_out", "q_mean", "k_mean"),
)
def _write_means(
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
    k_out: Tensor,
    v_out: Tensor,
    q_mean: Tensor,
    k_mean: Tensor,
) -> None:
    from ultraflash_kernels.rms_norm_rope import kernel_blocks

    given = (q, k, v, q_weight, k_weight, turns, pairs, positions, size, block, eps)
    kernel_blocks.forward(*given, (q_out, k_out, v_out), (q_mean, k_mean))
