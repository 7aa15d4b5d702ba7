"""Softmax attention over listed blocks in 8-bit floating point."""

from collections.abc import Callable, Sequence
from importlib import import_module

import torch
from torch import Tensor
from torch.library import custom_op

from ultraflash_kernels.block_lists import BlockLists
from ultraflash_kernels.block_sparse_attention import hopper_fp8, reference
from ultraflash_kernels.block_sparse_attention.op import (
    WIDEST,
    AttentionImpl,
    check_lists,
    without_padding,
)
from ultraflash_kernels.dispatch import KERNEL_DTYPES, chooses_triton
from ultraflash_kernels.fp8_linear import Fp8Rows, e4m3_refusal
from ultraflash_kernels.token_order import tokens_of

__all__ = ["block_list_attention_fp8"]


def block_list_attention_fp8(
    q: Fp8Rows,
    k: Fp8Rows,
    v: Fp8Rows,
    lists: BlockLists,
    *,
    ring: tuple[Fp8Rows, Fp8Rows] | None = None,
    fill: int = 0,
    size: tuple[int, int, int] | None = None,
    block: tuple[int, int, int] | None = None,
    dtype: torch.dtype = torch.bfloat16,
    impl: AttentionImpl = "auto",
) -> Tensor:
    """Like ``block_list_attention``, but from queries, keys and values in 8 bits, each
    token of each head with its own scale; the result has ``dtype``.

    ``q`` and ``k`` are values ``[B, H, N, T, D]`` and scales ``[..., T, 1]``, ``v`` is
    ``turned``: values ``[B, H, N, D, T]`` and scales ``[..., 1, T]``. So are the keys
    and values of ``ring``. The kernel multiplies the 8-bit numbers, also rounds the
    weights of values to 8 bits, and sums in float32; the reference computes in
    ``dtype`` with the numbers that the rows represent. Inference only. Raises
    ValueError for invalid shapes, KernelUnsupportedError for ``impl="triton"`` or
    ``"hopper"`` if the kernel cannot run.
    """
    rows = (q, k, v, *(ring or ()))
    _check_rows(*rows)
    old = (ring[0].values, ring[1].values.mT) if ring else None
    check_lists(q.values, k.values, v.values.mT, lists, old, fill)
    parts = [x for each in rows for x in each]
    tensors = [*parts, lists.starts, lists.blocks, lists.order]
    refusal = _refusal(q, k, v, ring, dtype)
    read = rows if fill else (q, k, v)
    if impl == "hopper":
        refusal = refusal or hopper_fp8.refusal(*read)
    by_kernel, name = "triton" if impl == "hopper" else impl, "block_list_attention_fp8"
    with torch.no_grad():
        if not chooses_triton(name, by_kernel, *tensors, refusal=refusal):
            wide_q, wide_k, wide_v = q.wide(dtype), k.wide(dtype), v.wide(dtype).mT
            old_k = old_v = None
            if ring is not None:
                old_k, old_v = (
                    Fp8Rows(*(x[:, :, :fill] for x in each)).wide(dtype) for each in ring
                )
                old_v = old_v.mT
            out = reference.from_lists(wide_q, wide_k, wide_v, lists, old_k, old_v, fill)
            if size is None or block is None:
                return out
            return without_padding(out, size, block)

        grid = [] if size is None or block is None else [*size, *block]
        chosen = (lists.starts, lists.blocks, lists.order)
        old = [x for each in ring or () for x in each]
        scales = (q.scales, k.scales, v.scales)
        hopper = impl == "auto" and hopper_fp8.is_chosen("block lists", *read)
        attend = _attend_hopper if hopper or impl == "hopper" else _attend
        return attend(
            q.values, k.values, v.values, *chosen, *scales, old, fill, grid, dtype
        )


def _check_rows(*rows: Fp8Rows) -> None:
    """Raise ValueError unless queries and keys have a scale for each token, and values,
    with tokens last, too."""
    for each, (values, scales) in enumerate(rows):
        turned = each in (2, 4)
        shape = list(values.shape)
        if len(shape) == 5:
            shape[3 if turned else 4] = 1
        if (
            values.ndim != 5
            or list(scales.shape) != shape
            or values.dtype != torch.float8_e4m3fn
            or scales.dtype != torch.float32
        ):
            expected = "[B, H, N, D, T]" if turned else "[B, H, N, T, D]"
            raise ValueError(
                f"block_list_attention_fp8: {'values' if turned else 'queries and keys'} "
                f"must be float8_e4m3fn {expected} with a float32 scale for each token, "
                f"got {values.dtype} {list(values.shape)} with {scales.dtype} "
                f"{list(scales.shape)}"
            )


def _refusal(
    q: Fp8Rows,
    k: Fp8Rows,
    v: Fp8Rows,
    ring: tuple[Fp8Rows, Fp8Rows] | None,
    dtype: torch.dtype,
) -> str | None:
    if dtype not in KERNEL_DTYPES:
        return f"results are float32, float16 or bfloat16, got {dtype}."
    if q.values.shape[-1] > WIDEST:
        return f"heads are {q.values.shape[-1]} wide, expected at most {WIDEST}."
    for rows in ((k, v), ring or ()):
        apart = {_blocks_apart(x) for each in rows for x in each}
        if len(apart) > 1 or None in apart:
            return "blocks of a head must be adjacent, and heads whole blocks apart."
    return e4m3_refusal(q.values)


def _blocks_apart(x: Tensor) -> int | None:
    """Return the number of blocks between the starts of two heads of ``x [B, H, N,
    ...]``, as in a slice of a larger buffer; None if it is not the same everywhere."""
    values = x.shape[3] * x.shape[4]
    evenly = x.shape[0] == 1 or x.stride(0) == x.shape[1] * x.stride(1)
    if not evenly or x.stride(1) % values or not x[0, 0].is_contiguous():
        return None
    return x.stride(1) // values


def _registered(name: str, module: str) -> Callable[..., Tensor]:
    """Return the operator that runs a module's kernel, which imports Triton."""

    def attend(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        starts: Tensor,
        blocks: Tensor,
        order: Tensor,
        q_scales: Tensor,
        k_scales: Tensor,
        v_scales: Tensor,
        ring: Sequence[Tensor],
        fill: int,
        grid: Sequence[int],
        dtype: torch.dtype,
    ) -> Tensor:
        kernel = import_module(f"ultraflash_kernels.block_sparse_attention.{module}")
        samples, heads, rows = q.shape[:3]
        shape = (samples, heads, rows, fill + k.shape[2])
        lists = BlockLists(starts, blocks, order, shape)
        new = (Fp8Rows(k, k_scales), Fp8Rows(v, v_scales))
        old = (Fp8Rows(ring[0], ring[1]), Fp8Rows(ring[2], ring[3])) if ring else None
        return kernel.forward(Fp8Rows(q, q_scales), *new, lists, old, fill, grid, dtype)

    operator = custom_op(f"ultraflash::{name}", attend, mutates_args=())
    operator.register_fake(_shape)
    return operator


def _shape(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    starts: Tensor,
    blocks: Tensor,
    order: Tensor,
    q_scales: Tensor,
    k_scales: Tensor,
    v_scales: Tensor,
    ring: Sequence[Tensor],
    fill: int,
    grid: Sequence[int],
    dtype: torch.dtype,
) -> Tensor:
    samples, heads, rows, tokens, width = q.shape
    if grid:
        rows, tokens = 1, tokens_of(grid[:3])
    out = q.new_empty((samples, rows, tokens, heads, width), dtype=dtype)
    return out.permute(0, 3, 1, 2, 4)


_attend = _registered("block_list_attention_fp8", "kernel_fp8")
_attend_hopper = _registered("block_list_attention_fp8_hopper", "kernel_hopper_fp8")
