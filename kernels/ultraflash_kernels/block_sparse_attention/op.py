"""Softmax attention in which each query block of each head attends to its own selection
of key blocks."""

from collections.abc import Callable, Sequence
from importlib import import_module

import torch
from torch import Tensor
from torch.library import custom_op

from ultraflash_kernels.block_lists import BlockLists
from ultraflash_kernels.block_sparse_attention import flex, reference
from ultraflash_kernels.dispatch import KERNEL_DTYPES, Impl, chooses_triton
from ultraflash_kernels.fp8_linear import e4m3_refusal, quantise_rows
from ultraflash_kernels.token_order import drop_padding, tokens_of

__all__ = ["block_list_attention", "block_sparse_attention"]

MOST_BLOCK_VALUES = 1 << 15
"""Maximum number of values in a block that is quantised at once."""
WIDEST = 128
"""Maximum head size, as a tile of the kernel holds whole heads."""


def block_sparse_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, *, impl: Impl = "auto"
) -> Tensor:
    """Attend from ``q [B, H, Nq, T, D]`` to the key blocks that ``mask [B, H, Nq, Nk]``
    (bool) selects.

    ``k`` and ``v`` are ``[B, H, Nk, T, D]``; a block is T consecutive tokens. Every
    token of query block i of head h attends to all T tokens of every block j with
    ``mask[b, h, i, j]``, scaled by ``1 / sqrt(D)``; nothing inside a block is masked. A
    row without selected blocks returns zeros. The result of a row depends only on its
    selected blocks. Returns ``[B, H, Nq, T, D]`` in the dtype of q. Differentiable in
    q, k and v: on a GPU by FlexAttention, else by the reference. Raises ValueError for
    invalid shapes and for a mask that is not boolean, KernelUnsupportedError for
    ``impl="triton"`` if the kernel cannot run.
    """
    _check_blocks(q, k, v)
    expected = (*q.shape[:3], k.shape[2])
    if mask.dtype != torch.bool or tuple(mask.shape) != expected:
        raise ValueError(
            f"mask must be bool {list(expected)}, got {mask.dtype} {list(mask.shape)}"
        )
    refusal = _refusal(q, k, v)
    if mask.numel() >= 1 << 31:
        refusal = f"a mask of {mask.numel()} pairs, expected fewer than {1 << 31}."
    wants_gradients = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
    if impl == "auto" and wants_gradients and flex.flex_refusal(q) is None:
        return flex.forward(q, k, v, mask)
    if not chooses_triton("block_sparse_attention", impl, q, k, v, mask, refusal=refusal):
        return reference.forward(q, k, v, mask)
    lists = BlockLists.from_mask(mask)
    chosen = (lists.starts, lists.blocks, lists.order)
    return _block_list_attention(q, k, v, *chosen, None, None, 0, [])


def block_list_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lists: BlockLists,
    *,
    ring: tuple[Tensor, Tensor] | None = None,
    fill: int = 0,
    fp8: bool = False,
    size: tuple[int, int, int] | None = None,
    block: tuple[int, int, int] | None = None,
    impl: Impl = "auto",
) -> Tensor:
    """Like ``block_sparse_attention``, but for the key blocks in ``lists``, with cached
    ones read in place.

    Key blocks 0 to ``fill`` - 1 are the first ``fill`` blocks of ``ring``, keys and
    values of ``[B, H, capacity, T, D]``; the others are the blocks of ``k`` and ``v [B,
    H, N, T, D]``. Nothing is concatenated, and the rest of the ring is not read. On a
    GPU there is no synchronisation, and the memory layout of the result is ``[B, Nq, T,
    H, D]``. If the frames, rows and columns of the tokens are given as ``size`` and
    those of a block as ``block``, the result omits the padding of blocks at the edge:
    it is ``[B, H, 1, tokens, D]``, in block order.

    With ``fp8`` every token of q, k and v is rounded to float8_e4m3fn as by
    ``quantise_rows``; the kernel multiplies these numbers, also rounds the weights of
    values to 8 bits, and sums in float32. Raises ValueError for invalid shapes,
    KernelUnsupportedError for ``impl="triton"`` if the kernel cannot run.
    """
    _check_blocks(q, k, v)
    if lists.shape != (*q.shape[:3], fill + k.shape[2]):
        raise ValueError(
            f"lists are for {list(lists.shape)}, got {[*q.shape[:3], fill + k.shape[2]]} "
            "blocks"
        )
    if ring is None and fill:
        raise ValueError(f"{fill} remembered blocks but no ring")

    ring_k, ring_v = ring or (None, None)
    tensors = [q, k, v, lists.starts, lists.blocks, lists.order]
    if ring_k is not None and ring_v is not None:
        _check_blocks(k, ring_k, ring_v)
        if fill > ring_k.shape[2]:
            raise ValueError(f"{fill} remembered blocks in a ring of {ring_k.shape[2]}")
        tensors += [ring_k, ring_v]

    refusal = _refusal(q, k, v, *(ring or ()))
    if fp8 and refusal is None:
        refusal = _fp8_refusal(q)
    if not chooses_triton("block_list_attention", impl, *tensors, refusal=refusal):
        if fp8:
            q, k, v = (_rounded(x) for x in (q, k, v))
            if ring_k is not None and ring_v is not None:
                ring_k, ring_v = (
                    _rounded(ring_k[:, :, :fill]),
                    _rounded(ring_v[:, :, :fill]),
                )
        out = reference.from_lists(q, k, v, lists, ring_k, ring_v, fill)
        if size is None or block is None:
            return out
        tokens = out.permute(0, 2, 3, 1, 4).flatten(1, 2)
        return drop_padding(tokens, size, block).transpose(1, 2).unsqueeze(2)

    attend = _block_list_attention_fp8 if fp8 else _block_list_attention
    grid = [] if size is None or block is None else [*size, *block]
    chosen = (lists.starts, lists.blocks, lists.order)
    return attend(q, k, v, *chosen, ring_k, ring_v, fill, grid)


def _rounded(x: Tensor) -> Tensor:
    """Round tokens to 8 bits and back."""
    rows = quantise_rows(x, impl="reference")
    return (rows.values.float() * rows.scales).to(x.dtype)


def _check_blocks(q: Tensor, k: Tensor, v: Tensor) -> None:
    if (
        q.ndim != 5
        or k.ndim != 5
        or k.shape != v.shape
        or q[:, :, 0].shape != k[:, :, 0].shape
    ):
        raise ValueError(
            f"q, k, v must be [B, H, N, T, D], got {tuple(q.shape)}, {tuple(k.shape)}, "
            f"{tuple(v.shape)}"
        )


def _refusal(q: Tensor, *others: Tensor) -> str | None:
    if q.dtype not in KERNEL_DTYPES or any(x.dtype != q.dtype for x in others):
        found = [str(x.dtype) for x in others]
        expected = "one dtype of bfloat16, float16, float32"
        return f"q, k, v need {expected}, got {q.dtype} and {found}."
    if q.shape[-1] > WIDEST:
        return f"heads are {q.shape[-1]} wide, expected at most {WIDEST}."
    if any(x.shape[3] * x.stride(3) >= 1 << 31 for x in (q, *others)):
        return "the tokens of a block are further apart than 32 bits can index."
    return None


def _fp8_refusal(q: Tensor) -> str | None:
    if q.shape[3] * q.shape[4] > MOST_BLOCK_VALUES:
        values = q.shape[3] * q.shape[4]
        return f"a block has {values} values, expected at most {MOST_BLOCK_VALUES}."
    return e4m3_refusal(q)


def _registered(name: str, module: str) -> Callable[..., Tensor]:
    """Return the operator that runs a module's kernel, which imports Triton."""

    def attend(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        starts: Tensor,
        blocks: Tensor,
        order: Tensor,
        ring_k: Tensor | None,
        ring_v: Tensor | None,
        fill: int,
        grid: Sequence[int],
    ) -> Tensor:
        kernel = import_module(f"ultraflash_kernels.block_sparse_attention.{module}")
        samples, heads, rows = q.shape[:3]
        lists = BlockLists(starts, blocks, order, (samples, heads, rows, fill + k.shape[2]))
        return kernel.forward(q, k, v, lists, ring_k, ring_v, fill, grid)

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
    ring_k: Tensor | None,
    ring_v: Tensor | None,
    fill: int,
    grid: Sequence[int],
) -> Tensor:
    samples, heads, rows, tokens, width = q.shape
    if grid:
        rows, tokens = 1, tokens_of(grid[:3])
    return q.new_empty((samples, rows, tokens, heads, width)).permute(0, 3, 1, 2, 4)


_block_list_attention = _registered("block_list_attention", "kernel")
_block_list_attention_fp8 = _registered("block_list_attention_fp8", "kernel_fp8")
