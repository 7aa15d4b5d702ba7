"""Which key blocks each query block attends to: a budget of best scores, shared by a run of rows."""

from torch import Tensor

from ultraflash_kernels.block_topk import reference

__all__ = ["block_topk"]


def block_topk(q_mean: Tensor, k_mean: Tensor, allowed: Tensor | None, *, budget: int, rows_per_budget: int) -> Tensor:
    """Return the block mask ``[B, H, Nq, Nk]`` (bool) for means ``q_mean [B, H, Nq, D]``, ``k_mean [B, H, Nk, D]``.

    A score is the softmax over the allowed keys of ``q_mean k_mean^T / sqrt(D)``; it is rounded to the dtype of the
    means after the product, the division and the softmax. For each head, every run of ``rows_per_budget`` query
    blocks keeps its ``budget + 1`` largest scores, ties with the smallest of them included; a row may thus keep
    many blocks or none. Then, in this order:

    * what is not ``allowed [Nq, Nk]`` (bool) is dropped;
    * a row that is left empty gets its first allowed block;
    * if ``Nq == Nk``, every block also attends to itself.

    With ``allowed=None`` every block may be chosen, and if any row is left empty all rows of all heads also get
    the diagonal ``Nk == Nq`` counted from the first block.

    Every row must be allowed something. Raises ValueError for shapes that do not fit and for a budget below 1.
    """
    if q_mean.ndim != 4 or k_mean.ndim != 4 or q_mean[:, :, 0].shape != k_mean[:, :, 0].shape:
        raise ValueError(f"block means are [B, H, N, D], got {tuple(q_mean.shape)} and {tuple(k_mean.shape)}")
    rows, keys = q_mean.shape[2], k_mean.shape[2]
    if rows_per_budget < 1 or rows % rows_per_budget:
        raise ValueError(f"{rows} query blocks do not split into runs of {rows_per_budget}")
    if budget < 1:
        raise ValueError(f"a budget is at least 1, got {budget}")
    if allowed is not None and tuple(allowed.shape) != (rows, keys):
        raise ValueError(f"allowed is [{rows}, {keys}], got {tuple(allowed.shape)}")
    return reference.forward(q_mean, k_mean, allowed, budget, rows_per_budget)
