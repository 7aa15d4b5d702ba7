"""Checks of the arguments of norm and rotation."""

import math

import torch
from torch import Tensor

from ultraflash_kernels.dispatch import KERNEL_DTYPES, power_of_two
from ultraflash_kernels.fp8_linear import Fp8Rows, e4m3_refusal
from ultraflash_kernels.rms_norm_rope.axis_tables import AxisTables
from ultraflash_kernels.token_order import blocks_of, tokens_of

__all__ = [
    "Qkv",
    "Three",
    "check_blocks",
    "check_rows",
    "check_tokens",
    "rows_refusal",
    "width_refusal",
]

Qkv = tuple[Tensor, Tensor, Tensor]
Three = tuple[int, int, int]

WIDEST_ROW = 4096
"""Maximum number of channels that a program of the kernel holds in registers."""


def width_refusal(q: Tensor) -> str | None:
    """Return a sentence that explains why no kernel supports projections like ``q``, or
    None."""
    if q.dtype not in KERNEL_DTYPES:
        return f"it supports float32, float16 and bfloat16, got {q.dtype}."
    if q.shape[-1] <= WIDEST_ROW:
        return None
    return f"it supports up to {WIDEST_ROW} channels, got {q.shape[-1]}."


def rows_refusal(q: Tensor, head: int) -> str | None:
    """Return a sentence that explains why no kernel writes projections like ``q``, in
    heads of ``head`` channels, in 8 bits, or None."""
    if head != power_of_two(head):
        return f"heads are {head} wide, expected a power of two."
    return width_refusal(q) or e4m3_refusal(q)


def check_blocks(
    op: str,
    qkv: Qkv,
    weights: tuple[Tensor, Tensor],
    tables: AxisTables,
    size: Three,
    block: Three,
    out: Qkv | None,
) -> None:
    """Raise ValueError, in the name of ``op``, unless these are arguments of
    ``rms_norm_rope``."""
    if min(*size, *block) < 1:
        raise ValueError(f"{op}: sizes and blocks must be positive, got {size} and {block}")
    q = qkv[0]
    expected = (q.shape[0], *_whole(size, block), q.shape[-1])
    if any(tuple(x.shape) != expected for x in qkv) or q.shape[-1] % tables.head_width:
        shapes = [list(x.shape) for x in qkv]
        raise ValueError(
            f"{op}: q, k, v must be {list(expected)} in heads of {tables.head_width}, "
            f"got {shapes}"
        )
    _check_numbers(op, qkv, weights, tables, size, out)

    heads = q.shape[-1] // tables.head_width
    shape = (q.shape[0], heads, *_whole(size, block), tables.head_width)
    for x in out or ():
        if (
            tuple(x.shape) != shape
            or x.stride(4) != 1
            or x.stride(2) != shape[3] * x.stride(3)
        ):
            raise ValueError(
                f"{op}: a destination must be {list(shape)} with adjacent blocks, got "
                f"{list(x.shape)}"
            )


def check_tokens(
    op: str,
    qkv: Qkv,
    weights: tuple[Tensor, Tensor],
    tables: AxisTables,
    size: Three,
    block: Three,
    out: Qkv | None = None,
) -> None:
    """Raise ValueError, in the name of ``op``, unless these are arguments of
    ``rms_norm_rope_means``, whose tokens have no padding."""
    tokens = tokens_of(size)
    if qkv[0].ndim != 3 or qkv[0].shape[1] != tokens:
        raise ValueError(
            f"{op}: q, k, v must be [B, {tokens}, D], got {list(qkv[0].shape)}"
        )
    whole = _whole(size, block)
    q, k, v = (x.new_empty((x.shape[0], *whole, x.shape[2]), device="meta") for x in qkv)
    check_blocks(op, (q, k, v), weights, tables, size, block, out)


def check_rows(
    op: str, rows: Fp8Rows, shape: tuple[int, ...], *, turned: bool, blocks: bool
) -> None:
    """Raise ValueError, in the name of ``op``, unless ``rows`` are a destination of
    ``shape`` in 8 bits: ``[B, heads, ..., tokens, d]``, or with the last two axes
    exchanged if ``turned``. The numbers of a head are adjacent if they are ``blocks``,
    else those of its rows."""
    values, scales = rows
    scaled = (*shape[:-2], 1, shape[-1]) if turned else (*shape[:-1], 1)
    ok = (
        tuple(values.shape) == shape
        and tuple(scales.shape) == scaled
        and values.dtype == torch.float8_e4m3fn
        and scales.dtype == torch.float32
    )
    if ok and blocks:
        ok = all(x[0, 0].is_contiguous() for x in rows if x.numel())
    elif ok:
        ok = values.stride(-1) == 1 and scales.stride(-1 if turned else -2) == 1
    if not ok:
        raise ValueError(
            f"{op}: a destination must be float8_e4m3fn {list(shape)} and float32 "
            f"{list(scaled)} with adjacent {'blocks' if blocks else 'tokens'}, got "
            f"{values.dtype} {list(values.shape)} and {scales.dtype} "
            f"{list(scales.shape)}"
        )


def _whole(size: Three, block: Three) -> tuple[int, int]:
    """Return the number of blocks and that of tokens of one, including padding."""
    return math.prod(blocks_of(size, block)), math.prod(block)


def _check_numbers(
    op: str,
    qkv: Qkv,
    weights: tuple[Tensor, Tensor],
    tables: AxisTables,
    size: Three,
    out: Qkv | None,
) -> None:
    """Raise ValueError unless weights fit, dtypes agree and the tables cover all
    positions."""
    q, width = qkv[0], qkv[0].shape[-1]
    if any(weight.shape != (width,) for weight in weights):
        raise ValueError(
            f"{op}: weights must be [{width}], got {[list(x.shape) for x in weights]}"
        )
    dtypes = {x.dtype for x in (*qkv, *weights, *(out or ()))}
    if len(dtypes) > 1 or q.dtype not in (*KERNEL_DTYPES, torch.float64):
        raise ValueError(
            f"{op}: all tensors must have one floating-point dtype, got {dtypes}"
        )
    if any(have < need for have, need in zip(tables.positions, size, strict=True)):
        raise ValueError(
            f"{op}: tables cover {tables.positions} positions, tokens are {size}"
        )
    if tables.turns.dtype != torch.float32 or not tables.turns.is_contiguous():
        raise ValueError(f"{op}: tables must be float32 and contiguous; use AxisTables.of")
