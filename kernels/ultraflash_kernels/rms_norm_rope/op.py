"""Norm of queries and keys over all channels, rotary embedding and rearrangement to
head-major blocks, in one pass."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ultraflash_kernels.dispatch import KERNEL_DTYPES, Impl, chooses_triton
from ultraflash_kernels.rms_norm_rope import reference
from ultraflash_kernels.token_order import blocks_of, tokens_of, with_padding

__all__ = [
    "AxisTables",
    "check_dense",
    "rms_norm_rope",
    "rms_norm_rope_means",
    "width_refusal",
]

Qkv = tuple[Tensor, Tensor, Tensor]

WIDEST_ROW = 4096
"""Maximum number of channels that a program of the kernel holds in registers."""


@dataclass(frozen=True)
class AxisTables:
    """Rotations of the rotary embedding by frame, by row and by column; its size does
    not grow with their product."""

    turns: Tensor
    """``[frames * pt + rows * ps + cols * ps, 2]`` float32: cosine and sine, by axis
    and position."""
    positions: tuple[int, int, int]
    """Number of frames, rows and columns covered."""
    pairs: tuple[int, int, int]
    """Pairs of channels of a head that are rotated by frame, row and column: pt, ps,
    ps."""

    @classmethod
    def of(cls, frames: Tensor, rows: Tensor, cols: Tensor) -> "AxisTables":
        """Join unit complex numbers ``[positions, pairs]`` of the three axes.

        A graph captured with ``turns`` uses new positions once they are copied into it.
        """
        axes = (frames, rows, cols)
        if any(axis.ndim != 2 or not axis.is_complex() for axis in axes):
            raise ValueError(
                "tables must be complex [positions, pairs], got "
                f"{[list(axis.shape) for axis in axes]}"
            )
        turns = torch.cat(
            [torch.view_as_real(axis.to(torch.complex64)).reshape(-1, 2) for axis in axes]
        )
        positions, pairs = zip(*(tuple(axis.shape) for axis in axes), strict=True)
        return cls(turns, positions, pairs)

    @property
    def head_width(self) -> int:
        """Number of channels of a head."""
        return 2 * sum(self.pairs)


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
    _check(q, k, v, q_weight, k_weight, tables, size, block, out)
    numbers = (tables.pairs, tables.positions, size, block, eps)
    given = (q, k, v, q_weight, k_weight, tables.turns)
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
    check_dense(q, k, v, q_weight, k_weight, tables, size, block, out)

    weights, head = (q_weight, k_weight, tables.turns), tables.head_width
    numbers = (tables.pairs, tables.positions, size, block, eps)
    whole = math.prod(blocks_of(size, block)), math.prod(block)
    tensors = (q, k, v, *weights, *(out or ()))
    if chooses_triton("rms_norm_rope_means", impl, *tensors, refusal=width_refusal(q)):
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


def width_refusal(q: Tensor) -> str | None:
    """Return a sentence that explains why no kernel supports projections like ``q``, or
    None."""
    if q.dtype not in KERNEL_DTYPES:
        return f"it supports float32, float16 and bfloat16, got {q.dtype}."
    if q.shape[-1] <= WIDEST_ROW:
        return None
    return f"it supports up to {WIDEST_ROW} channels, got {q.shape[-1]}."


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


def check_dense(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    tables: AxisTables,
    size: tuple[int, int, int],
    block: tuple[int, int, int],
    out: Qkv | None,
) -> None:
    """Raise ValueError unless these are arguments of ``rms_norm_rope_means``."""
    whole = math.prod(blocks_of(size, block)), math.prod(block)
    if q.ndim != 3 or q.shape[1] != tokens_of(size):
        raise ValueError(
            f"rms_norm_rope_means: q, k, v must be [B, {tokens_of(size)}, D], "
            f"got {list(q.shape)}"
        )
    q_like, k_like, v_like = (
        x.new_empty((x.shape[0], *whole, x.shape[2]), device="meta") for x in (q, k, v)
    )
    _check(q_like, k_like, v_like, q_weight, k_weight, tables, size, block, out)


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    tables: AxisTables,
    size: tuple[int, int, int],
    block: tuple[int, int, int],
    out: Qkv | None,
) -> None:
    if min(*size, *block) < 1:
        raise ValueError(
            f"rms_norm_rope: sizes and blocks must be positive, got {size} and {block}"
        )

    blocks = math.prod([-(-n // b) for n, b in zip(size, block, strict=True)])
    d = tables.head_width
    batch, width = q.shape[0], q.shape[-1]
    expected = (batch, blocks, math.prod(block), width)
    if any(tuple(x.shape) != expected for x in (q, k, v)) or width % d:
        shapes = [list(x.shape) for x in (q, k, v)]
        raise ValueError(
            f"rms_norm_rope: q, k, v must be {list(expected)} in heads of {d}, got {shapes}"
        )
    if any(weight.shape != (width,) for weight in (q_weight, k_weight)):
        raise ValueError(
            f"rms_norm_rope: weights must be [{width}], got {list(q_weight.shape)}, "
            f"{list(k_weight.shape)}"
        )

    dtypes = {x.dtype for x in (q, k, v, q_weight, k_weight, *(out or ()))}
    if len(dtypes) > 1 or q.dtype not in (*KERNEL_DTYPES, torch.float64):
        raise ValueError(
            f"rms_norm_rope: all tensors must have one floating-point dtype, got {dtypes}"
        )
    if any(have < need for have, need in zip(tables.positions, size, strict=True)):
        raise ValueError(
            f"rms_norm_rope: tables cover {tables.positions} positions, tokens are {size}"
        )
    if tables.turns.dtype != torch.float32 or not tables.turns.is_contiguous():
        raise ValueError(
            "rms_norm_rope: tables must be float32 and contiguous; use AxisTables.of"
        )

    shape = (batch, width // d, blocks, math.prod(block), d)
    for x in out or ():
        if (
            tuple(x.shape) != shape
            or x.stride(4) != 1
            or x.stride(2) != shape[3] * x.stride(3)
        ):
            raise ValueError(
                f"rms_norm_rope: a destination must be {list(shape)} with adjacent "
                f"blocks, got {list(x.shape)}"
            )
