"""Block-sparse causal self-attention of the SR transformer."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ultraflash_cli.engine.cache import KvBlocks, KvRing
from ultraflash_cli.engine.layers.attention import AttentionLayer
from ultraflash_cli.engine.layers.dense_attention import dense_attention
from ultraflash_cli.engine.sparsity import (
    BlockGrid,
    allowed_blocks,
    causal_blocks,
    window_blocks,
)
from ultraflash_kernels import dispatch
from ultraflash_kernels.block_lists import BlockLists, BlockRule
from ultraflash_kernels.block_sparse_attention import (
    block_list_attention,
    block_list_attention_fp8,
    block_sparse_attention,
)
from ultraflash_kernels.block_topk import block_means, block_topk, choose_blocks
from ultraflash_kernels.fp8_linear import Fp8Rows
from ultraflash_kernels.rms_norm_rope import (
    AxisTables,
    rms_norm_rope,
    rms_norm_rope_means,
    rms_norm_rope_means_fp8,
)
from ultraflash_kernels.sketch import sketched_attention

__all__ = [
    "SparseAttended",
    "SparseCausalSelfAttention",
    "SparseLayout",
    "sparse_causal_attention",
]


@dataclass(frozen=True)
class SparseLayout:
    """Self-attention parameters shared by all layers within one group; tokens are in
    block order."""

    grid: BlockGrid
    """The tokens of the group and their blocks."""
    rule: BlockRule
    """Window, causality and budget."""
    allowed: Tensor | None
    """Mask ``[blocks, cached + blocks]`` (bool) of the window and causality. None if
    the rule alone selects blocks, as lists."""
    remember: int
    """Number of blocks that the cache keeps after this group."""
    mask_dtype: torch.dtype = torch.float32
    """Precision of block means, scores and threshold."""
    reuse_cache: bool = False
    """Whether the cache's buffers may be overwritten."""
    fp8: bool = False
    """Whether queries, keys and values are in 8 bits, also in the cache."""
    padded: bool = True
    """Whether tokens include the padding of blocks at the edge, which kernels do not
    need."""

    @property
    def size(self) -> tuple[int, int, int]:
        """Frames, rows and columns of tokens."""
        return self.grid.frames, self.grid.rows, self.grid.cols

    @classmethod
    def of(
        cls,
        grid: BlockGrid,
        *,
        remembered: int,
        window: int,
        chunk: int,
        budget: int,
        kv_len: int,
        device: torch.device,
        mask_dtype: torch.dtype = torch.float32,
        reuse_cache: bool = False,
        by_lists: bool | None = None,
        fp8: bool = False,
    ) -> "SparseLayout":
        """Lay out a group on ``grid``. ``remembered`` blocks are in the cache; a block
        attends to a window of ``window`` blocks per side and to the temporal blocks up
        to the end of its ``chunk``; ``kv_len`` temporal blocks stay in the cache
        afterwards. ``by_lists`` selects blocks as lists and reads cached keys in place,
        as the kernels do; None does so on GPUs that support it. ``fp8`` always uses
        lists, and overwrites the cache.
        """
        temporal, rows, cols = grid.blocks
        past = remembered // grid.spatial_blocks
        if by_lists is None:
            by_lists = fp8 or (reuse_cache and dispatch.prefers_kernels(device))
        assert not fp8 or (by_lists and reuse_cache), (
            "attention in 8 bits takes lists and overwrites its cache"
        )
        allowed = None
        if not by_lists:
            causal = causal_blocks(temporal, past, chunk, device)
            allowed = allowed_blocks(window_blocks(rows, cols, window, device), causal)

        return cls(
            grid=grid,
            rule=BlockRule(
                rows=rows,
                cols=cols,
                temporal=temporal,
                remembered=past,
                window=window,
                chunk=chunk,
                budget=budget,
            ),
            allowed=allowed,
            remember=kv_len * grid.spatial_blocks,
            mask_dtype=mask_dtype,
            reuse_cache=reuse_cache,
            fp8=fp8,
            padded=not (
                fp8 or (by_lists and reuse_cache and dispatch.prefers_kernels(device))
            ),
        )


class SparseAttended(NamedTuple):
    """The result of block-sparse causal attention."""

    out: Tensor
    """``[B, blocks, block tokens, width]``, or ``[B, tokens, width]`` without
    padding."""
    cache: KvRing
    """The cache after this group."""
    chosen: Tensor | BlockLists
    """The selected blocks, as a mask or as lists."""

    @property
    def mask(self) -> Tensor:
        """``[B, heads, blocks, cached + blocks]`` (bool): the selected blocks."""
        return self.chosen.to_mask() if isinstance(self.chosen, BlockLists) else self.chosen


def sparse_causal_attention(
    q: Tensor, k: Tensor, v: Tensor, layout: SparseLayout, cache: KvRing
) -> SparseAttended:
    """Attend with rotated ``q``, ``k``, ``v [B, heads, blocks, block tokens, D]`` to
    the best blocks, per head.

    Padding is zero and attended to, as in the published model: a padded key scores 0
    and adds nothing to the sum of values.
    """
    if layout.allowed is None:
        q_mean = block_means(q, dtype=layout.mask_dtype)
        k_mean = block_means(cache.k[:, :, : cache.fill], k, dtype=layout.mask_dtype)
        lists = choose_blocks(q_mean, k_mean, layout.rule)
        out = block_list_attention(q, k, v, lists, ring=(cache.k, cache.v), fill=cache.fill)
        after = cache.push(KvBlocks(k, v), layout.remember)
        return SparseAttended(out.permute(0, 2, 3, 1, 4).flatten(3), after, lists)

    k_all, v_all = cache.join(k, v)
    after = cache.keep(k_all, v_all, layout.remember, in_place=layout.reuse_cache)
    rule = layout.rule
    if not rule.window and rule.budget >= rule.spatial * k_all.shape[2]:
        mask = layout.allowed.expand(*q.shape[:2], -1, -1)
        out = _causal_attention(q, k_all, v_all, rule)
        return SparseAttended(out.permute(0, 2, 3, 1, 4).flatten(3), after, mask)
    if q.is_meta:
        return SparseAttended(_sketched(q, k_all, v_all, rule), after, layout.allowed)

    q_mean, k_mean = (x.detach().mean(dim=3, dtype=layout.mask_dtype) for x in (q, k_all))
    mask = block_topk(
        q_mean, k_mean, layout.allowed, budget=rule.budget, rows_per_budget=rule.spatial
    )
    out = block_sparse_attention(q, k_all, v_all, mask)
    return SparseAttended(out.permute(0, 2, 3, 1, 4).flatten(3), after, mask)


def _causal_attention(q: Tensor, k: Tensor, v: Tensor, rule: BlockRule) -> Tensor:
    """Attend densely to all blocks up to the end of a block's chunk, with one call per
    chunk and without gathering or masks.

    ``q``, ``k``, ``v`` and the result are ``[B, heads, blocks, block tokens, D]``.
    """
    last = rule.remembered + rule.temporal
    reach = [min(rule.seen_until(at), last) for at in range(rule.temporal)]
    done: list[Tensor] = []
    for seen in dict.fromkeys(reach):
        first = reach.index(seen) * rule.spatial
        rows = q[:, :, first : first + reach.count(seen) * rule.spatial]
        parts = (rows, *(x[:, :, : seen * rule.spatial] for x in (k, v)))
        done.append(dense_attention(*(x.flatten(2, 3) for x in parts)).view_as(rows))
    return torch.cat(done, dim=2)


def _sketched(q: Tensor, k: Tensor, v: Tensor, rule: BlockRule) -> Tensor:
    """Return an empty result for as many pairs of blocks as the rule may select."""
    blocks = min(rule.temporal * (rule.budget + 1), rule.allowed_pairs)
    pairs = q.shape[0] * q.shape[1] * blocks * q.shape[3] ** 2
    flat_q, flat_k, flat_v = (x.flatten(2, 3) for x in (q, k, v))
    out = sketched_attention(flat_q, flat_k, flat_v, pairs).view_as(q)
    return out.permute(0, 2, 3, 1, 4).flatten(3)


class SparseCausalSelfAttention(AttentionLayer):
    """Self-attention over the best blocks of cached and current groups, selected per
    head."""

    def forward(
        self,
        x: Tensor | Fp8Rows,
        tables: AxisTables,
        layout: SparseLayout,
        cache: KvRing,
        *,
        into: Tensor | None = None,
    ) -> SparseAttended:
        """Attend within ``x [B, blocks, block tokens, width]``, or ``[B, tokens,
        width]`` without padding, and to the cached blocks. ``tables`` are the rotations
        of the group's tokens by frame, row and column. The result is ``into`` if given,
        with the result added, see ``project_out``.
        """
        q, k, v = self.q(x), self.k(x), self.v(x)
        if not layout.padded:
            attended = self._attend_without_padding(q, k, v, tables, layout, cache)
            return attended._replace(out=self.project_out(attended.out, into))
        q, k, v = rms_norm_rope(
            q,
            k,
            v,
            self.norm_q.weight.to(q.dtype),
            self.norm_k.weight.to(q.dtype),
            tables,
            size=layout.size,
            block=layout.grid.block,
            eps=self.norm_q.eps,
        )
        out, cache, chosen = sparse_causal_attention(q, k, v, layout, cache)
        return SparseAttended(self.project_out(out, into), cache, chosen)

    def _attend_without_padding(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        tables: AxisTables,
        layout: SparseLayout,
        cache: KvRing,
    ) -> SparseAttended:
        """Like ``sparse_causal_attention``, but from projections ``[B, tokens, width]``
        in block order; overwrites the cache.

        Keys and values are written directly to the cache if this group replaces
        everything in it and the cache has a spare set of buffers.
        """
        blocks = math.prod(layout.grid.blocks)
        beside = cache.beside(blocks) if layout.remember == blocks else None
        attend = self._attend_in_8_bits if layout.fp8 else self._attend_by_lists
        out, new, k_mean, lists = attend((q, k, v), tables, layout, cache, beside)
        if beside is None:
            cache = cache.push(new, layout.remember, k_mean)
        else:
            cache = cache.turn(k_mean)
        return SparseAttended(out.squeeze(2).transpose(1, 2).flatten(2), cache, lists)

    def _attend_by_lists(
        self,
        qkv: tuple[Tensor, Tensor, Tensor],
        tables: AxisTables,
        layout: SparseLayout,
        cache: KvRing,
        beside: KvBlocks | None,
    ) -> tuple[Tensor, KvBlocks, Tensor, BlockLists]:
        """Return the result ``[B, heads, 1, tokens, D]``, the new keys and values,
        which are in ``beside`` if it is not None, their means, and the selected
        blocks."""
        grid, like = layout.grid, qkv[0]
        head = like.shape[2] // self.heads
        counts = (math.prod(grid.blocks), grid.block_tokens)
        shape = (like.shape[0], self.heads, *counts, head)
        new = beside or KvBlocks(like.new_empty(shape), like.new_empty(shape))
        q, k, v, q_mean, k_mean = rms_norm_rope_means(
            *qkv,
            self.norm_q.weight.to(like.dtype),
            self.norm_k.weight.to(like.dtype),
            tables,
            size=layout.size,
            block=grid.block,
            mean_dtype=layout.mask_dtype,
            eps=self.norm_q.eps,
            out=(like.new_empty(shape), new.k, new.v),
        )

        lists = choose_blocks(q_mean, _all_means(cache, k_mean), layout.rule)
        ring = cache.in_use
        out = block_list_attention(
            q,
            k,
            v,
            lists,
            ring=(ring.k, ring.v),
            fill=cache.fill,
            size=layout.size,
            block=grid.block,
        )
        return out, new, k_mean, lists

    def _attend_in_8_bits(
        self,
        qkv: tuple[Tensor, Tensor, Tensor],
        tables: AxisTables,
        layout: SparseLayout,
        cache: KvRing,
        beside: KvBlocks | None,
    ) -> tuple[Tensor, KvBlocks, Tensor, BlockLists]:
        """Like ``_attend_by_lists``, with each token of each head rounded to 8 bits
        once, after the means are taken."""
        like = qkv[0]
        q, k, v, q_mean, k_mean = rms_norm_rope_means_fp8(
            *qkv,
            self.norm_q.weight.to(like.dtype),
            self.norm_k.weight.to(like.dtype),
            tables,
            size=layout.size,
            block=layout.grid.block,
            mean_dtype=layout.mask_dtype,
            eps=self.norm_q.eps,
            kv_out=None if beside is None else beside.rows,
        )

        lists = choose_blocks(q_mean, _all_means(cache, k_mean), layout.rule)
        out = block_list_attention_fp8(
            q,
            k,
            v,
            lists,
            ring=cache.in_use.rows,
            fill=cache.fill,
            size=layout.size,
            block=layout.grid.block,
            dtype=like.dtype,
        )
        new = KvBlocks(k.values, v.values, k.scales, v.scales)
        return out, new, k_mean, lists


def _all_means(cache: KvRing, k_mean: Tensor) -> Tensor:
    """Return the mean keys of cached blocks, followed by those of the new ones."""
    if not cache.fill:
        return k_mean
    if cache.k_mean is not None:
        known = cache.k_mean[:, :, : cache.fill]
    else:
        known = block_means(cache.in_use.k[:, :, : cache.fill], dtype=k_mean.dtype)
    return torch.cat([known, k_mean], dim=2)
