"""Softmax attention in which each query block of each head attends to its own selection
of key blocks."""

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Literal

import torch
from torch import Tensor
from torch.library import custom_op

from ultraflash_kernels.block_lists import BlockLists
from ultraflash_kernels.block_sparse_attention import flex, hopper, reference
from ultraflash_kernels.dispatch import KERNEL_DTYPES, Impl, chooses_triton
from ultraflash_kernels.token_order import drop_padding, tokens_of

__all__ = [
    "WIDEST",
    "AttentionImpl",
    "block_list_attention",
    "block_sparse_attention",
    "check_lists",
    "without_padding",
]

AttentionImpl = Literal["auto", "hopper", "triton", "reference"]
"""``hopper``, ``triton`` and ``reference`` are used or raise; ``auto`` uses the kernel
for Hopper where ``HOPPER_WINS`` lists it and it has passed its check, else the Triton
kernel on supported GPUs."""

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
    size: tuple[int, int, int] | None = None,
    block: tuple[int, int, int] | None = None,
    impl: AttentionImpl = "auto",
) -> Tensor:
    """Like ``block_sparse_attention``, but for the key blocks in ``lists``, with cached
    ones read in place.

    Key blocks 0 to ``fill`` - 1 are the first ``fill`` blocks of ``ring``, keys and
    values of ``[B, H, capacity, T, D]``; the others are the blocks of ``k`` and ``v [B,
    H, N, T, D]``. Nothing is concatenated, and the rest of the ring is not read. On a
    GPU there is no synchronisation, and the memory layout of the result is ``[B, Nq, T,
    H, D]``. If the frames, rows and columns of the tokens are given as ``size`` and
    those of a block as ``block``, the result omits the padding of blocks at the edge:
    it is ``[B, H, 1, tokens, D]``, in block order. Raises ValueError for invalid
    shapes, KernelUnsupportedError for ``impl="triton"`` or ``"hopper"`` if the kernel
    cannot run.
    """
    check_lists(q, k, v, lists, ring, fill)
    ring_k, ring_v = ring or (None, None)
    tensors = [q, k, v, lists.starts, lists.blocks, lists.order, *(ring or ())]
    refusal = _refusal(q, k, v, *(ring or ()))
    read = (q, k, v, *(ring or ())) if fill else (q, k, v)
    if impl == "hopper":
        refusal = refusal or hopper.refusal(*read)
    by_kernel = "triton" if impl == "hopper" else impl
    if not chooses_triton("block_list_attention", by_kernel, *tensors, refusal=refusal):
        out = reference.from_lists(q, k, v, lists, ring_k, ring_v, fill)
        return out if size is None or block is None else without_padding(out, size, block)

    grid = [] if size is None or block is None else [*size, *block]
    chosen = (lists.starts, lists.blocks, lists.order)
    attend = _block_list_attention
    if impl == "hopper" or (impl == "auto" and hopper.is_chosen("block lists", *read)):
        attend = _block_list_attention_hopper
    return attend(q, k, v, *chosen, ring_k, ring_v, fill, grid)


def check_lists(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lists: BlockLists,
    ring: tuple[Tensor, Tensor] | None,
    fill: int,
) -> None:
    """Raise ValueError unless these are arguments of ``block_list_attention``."""
    _check_blocks(q, k, v)
    if lists.shape != (*q.shape[:3], fill + k.shape[2]):
        raise ValueError(
            f"lists are for {list(lists.shape)}, got {[*q.shape[:3], fill + k.shape[2]]} "
            "blocks"
        )
    if ring is None and fill:
        raise ValueError(f"{fill} remembered blocks but no ring")
    if ring is not None:
        _check_blocks(k, *ring)
        if fill > ring[0].shape[2]:
            raise ValueError(f"{fill} remembered blocks in a ring of {ring[0].shape[2]}")


def without_padding(
    out: Tensor, size: tuple[int, int, int], block: tuple[int, int, int]
) -> Tensor:
    """Return the tokens of ``out [B, H, N, T, D]`` without padding, ``[B, H, 1, tokens,
    D]``."""
    tokens = out.permute(0, 2, 3, 1, 4).flatten(1, 2)
    return drop_padding(tokens, size, block).transpose(1, 2).unsqueeze(2)


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
_block_list_attention_hopper = _registered("block_list_attention_hopper", "kernel_hopper")
