"""Selection of the key blocks that each query block attends to: a budget of best
scores, shared by a run of rows."""

import torch
from torch import Tensor

from ultraflash_kernels.block_lists import BlockLists, BlockRule
from ultraflash_kernels.block_topk import reference
from ultraflash_kernels.dispatch import KERNEL_DTYPES, Impl, chooses_triton

__all__ = ["block_means", "block_topk", "choose_blocks"]

MOST_KEYS = 1 << 14
"""Maximum number of key blocks, as a row of scores is held in registers."""
MOST_MEAN_VALUES = 1 << 15
"""Maximum number of values in a block that the kernel averages at once."""


def block_topk(
    q_mean: Tensor,
    k_mean: Tensor,
    allowed: Tensor | None,
    *,
    budget: int,
    rows_per_budget: int,
) -> Tensor:
    """Return the block mask ``[B, H, Nq, Nk]`` (bool) for means
    ``q_mean [B, H, Nq, D]``, ``k_mean [B, H, Nk, D]``.

    A score is the softmax over the allowed keys of ``q_mean k_mean^T / sqrt(D)``; it is
    rounded to the dtype of the means after the product, the division and the softmax.
    For each head, every run of ``rows_per_budget`` query blocks keeps its
    ``budget + 1`` largest scores, ties with the smallest of them included; a row may
    thus keep many blocks or none. Then, in this order:

    * pairs that are not ``allowed [Nq, Nk]`` (bool) are dropped;
    * an empty row gets its first allowed block;
    * if ``Nq == Nk``, every block also attends to itself.

    With ``allowed=None`` every block may be selected, and if any row is empty all rows
    of all heads also get the diagonal ``Nk == Nq`` counted from the first block. Every
    row must have an allowed block. Raises ValueError for invalid shapes and for a
    budget below 1. ``choose_blocks`` does the same for a rule instead of a matrix, and
    is faster on a GPU.
    """
    _check_means(q_mean, k_mean)
    rows, keys = q_mean.shape[2], k_mean.shape[2]
    if rows_per_budget < 1 or rows % rows_per_budget:
        raise ValueError(f"{rows} query blocks do not split into runs of {rows_per_budget}")
    if budget < 1:
        raise ValueError(f"the budget must be at least 1, got {budget}")
    if allowed is not None and tuple(allowed.shape) != (rows, keys):
        raise ValueError(f"allowed must be [{rows}, {keys}], got {tuple(allowed.shape)}")
    return reference.forward(q_mean, k_mean, allowed, budget, rows_per_budget)


def choose_blocks(
    q_mean: Tensor, k_mean: Tensor, rule: BlockRule, *, impl: Impl = "auto"
) -> BlockLists:
    """Return the key blocks of each query block as lists, for means ``[B, H, Nq, D]``
    and ``[B, H, Nk, D]``.

    They equal the selection of ``block_topk`` with the pairs allowed by ``rule``, its
    budget and runs of ``rule.spatial`` rows. Computed on the device without
    synchronisation; the kernel builds no matrix of allowed pairs. Not differentiable:
    gradients do not pass through a selection. Raises ValueError for shapes that do not
    match the rule, KernelUnsupportedError for ``impl="triton"`` if the kernel cannot
    run.
    """
    _check_means(q_mean, k_mean)
    rows, keys = q_mean.shape[2], k_mean.shape[2]
    if (rows, keys) != (rule.queries, rule.keys):
        raise ValueError(
            f"the rule is for {rule.queries} query and {rule.keys} key blocks, got {rows} "
            f"and {keys}"
        )
    if q_mean.dtype != k_mean.dtype:
        raise ValueError(
            f"means must have the same dtype, got {q_mean.dtype} and {k_mean.dtype}"
        )

    q_mean, k_mean = q_mean.detach(), k_mean.detach()
    capacity = q_mean.shape[0] * q_mean.shape[1] * rule.allowed_pairs
    refusal = None
    if q_mean.dtype not in KERNEL_DTYPES:
        refusal = f"means must be float32, bfloat16 or float16, got {q_mean.dtype}."
    elif keys > MOST_KEYS or capacity >= 1 << 31:
        most = f"{MOST_KEYS} and {(1 << 31) - 1}"
        refusal = (
            f"{keys} key blocks and {capacity} allowed pairs, expected at most {most}."
        )

    if not chooses_triton(
        "choose_blocks", impl, q_mean, k_mean, refusal=refusal, widens_bfloat16=True
    ):
        return reference.choose_blocks(q_mean, k_mean, rule)

    numbers = (
        rule.rows,
        rule.cols,
        rule.temporal,
        rule.remembered,
        rule.window,
        rule.chunk,
        rule.budget,
    )
    samples, heads = q_mean.shape[:2]
    return BlockLists(
        *_choose_blocks(q_mean, k_mean, *numbers), shape=(samples, heads, rows, keys)
    )


def block_means(
    x: Tensor, *more: Tensor, dtype: torch.dtype = torch.float32, impl: Impl = "auto"
) -> Tensor:
    """Average ``x [B, H, N, T, D]`` over the T tokens of each block: ``[B, H, N, D]``,
    rounded once to ``dtype``.

    Blocks of ``more`` follow those of ``x``, as if all were concatenated along N:
    cached keys, then present ones. All tokens are averaged, including padding. Not
    differentiable. Raises ValueError for invalid shapes, KernelUnsupportedError for
    ``impl="triton"`` if the kernel cannot run.
    """
    parts = [part.detach() for part in (x, *more)]
    for part in parts:
        if (
            part.ndim != 5
            or part[:, :, :0].shape != parts[0][:, :, :0].shape
            or part.dtype != x.dtype
        ):
            raise ValueError(
                "blocks must be [B, H, N, T, D] of the same dtype, got "
                f"{[tuple(part.shape) for part in parts]}"
            )

    refusal = None
    if x.dtype not in KERNEL_DTYPES or dtype not in KERNEL_DTYPES:
        refusal = f"blocks and means must be float32 or 16-bit, got {x.dtype} and {dtype}."
    elif x.shape[3] * x.shape[4] > MOST_MEAN_VALUES:
        values = x.shape[3] * x.shape[4]
        refusal = f"a block has {values} values, expected at most {MOST_MEAN_VALUES}."

    if not chooses_triton(
        "block_means", impl, *parts, refusal=refusal, widens_bfloat16=True
    ):
        return reference.block_means(parts, dtype)
    return _block_means(parts, dtype)


def _check_means(q_mean: Tensor, k_mean: Tensor) -> None:
    if (
        q_mean.ndim != 4
        or k_mean.ndim != 4
        or q_mean[:, :, 0].shape != k_mean[:, :, 0].shape
    ):
        raise ValueError(
            f"block means must be [B, H, N, D], got {tuple(q_mean.shape)} and "
            f"{tuple(k_mean.shape)}"
        )


@torch.library.custom_op("ultraflash::choose_blocks", mutates_args=())
def _choose_blocks(
    q_mean: Tensor,
    k_mean: Tensor,
    rows: int,
    cols: int,
    temporal: int,
    remembered: int,
    window: int,
    chunk: int,
    budget: int,
) -> tuple[Tensor, Tensor, Tensor]:
    from ultraflash_kernels.block_topk import kernel

    rule = _rule(rows, cols, temporal, remembered, window, chunk, budget)
    lists = kernel.choose_blocks(q_mean.contiguous(), k_mean.contiguous(), rule)
    return lists.starts, lists.blocks, lists.order


@_choose_blocks.register_fake
def _choose_blocks_shapes(
    q_mean: Tensor,
    k_mean: Tensor,
    rows: int,
    cols: int,
    temporal: int,
    remembered: int,
    window: int,
    chunk: int,
    budget: int,
) -> tuple[Tensor, Tensor, Tensor]:
    rule = _rule(rows, cols, temporal, remembered, window, chunk, budget)
    heads = q_mean.shape[0] * q_mean.shape[1]
    sizes = (heads * rule.queries + 1, heads * rule.allowed_pairs, heads * rule.queries)
    starts, blocks, order = (q_mean.new_empty(size, dtype=torch.int32) for size in sizes)
    return starts, blocks, order


def _rule(
    rows: int,
    cols: int,
    temporal: int,
    remembered: int,
    window: int,
    chunk: int,
    budget: int,
) -> BlockRule:
    return BlockRule(
        rows=rows,
        cols=cols,
        temporal=temporal,
        remembered=remembered,
        window=window,
        chunk=chunk,
        budget=budget,
    )


@torch.library.custom_op("ultraflash::block_means", mutates_args=())
def _block_means(parts: list[Tensor], dtype: torch.dtype) -> Tensor:
    from ultraflash_kernels.block_topk import kernel

    return kernel.block_means(parts, dtype)


@_block_means.register_fake
def _block_means_shape(parts: list[Tensor], dtype: torch.dtype) -> Tensor:
    samples, heads, _, _, width = parts[0].shape
    return parts[0].new_empty(
        (samples, heads, sum(part.shape[2] for part in parts), width), dtype=dtype
    )
