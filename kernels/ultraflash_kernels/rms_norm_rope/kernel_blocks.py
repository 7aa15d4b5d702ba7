"""Norm, rotation and scatter block by block, from tokens without padding, with the
means of the blocks."""

# pyright: reportMissingParameterType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# Triton allows no annotation but constexpr on a kernel's parameters, and takes options
# such as num_warps beside them.

import math
from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from ultraflash_kernels._dispatch import on_its_device
from ultraflash_kernels._token_kernels import dense_place
from ultraflash_kernels.block_topk.kernel import rounded
from ultraflash_kernels.rms_norm_rope.kernel import norm_rope_tokens
from ultraflash_kernels.token_order import blocks_of

__all__ = ["forward", "norm_rope_blocks_kernel"]


@triton.jit
def _norm_block(
    x,
    x_batch,
    x_token,
    weight,
    out,
    out_batch,
    out_head,
    out_token,
    mean_out,
    batch,
    block,
    blocks,
    turns,
    frames,
    rows,
    cols,
    block_rows,
    block_cols,
    row_turns,
    col_turns,
    eps,
    WIDTH: tl.constexpr,
    PT: tl.constexpr,
    PY: tl.constexpr,
    PX: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_Y: tl.constexpr,
    BLOCK_X: tl.constexpr,
    BT: tl.constexpr,
    BP: tl.constexpr,
    KIND: tl.constexpr,
):
    """Take one block of one tensor through, ``BT`` tokens at a time, and write its
    mean."""
    HALF: tl.constexpr = PT + PY + PX
    HEAD: tl.constexpr = 2 * HALF
    TOKENS: tl.constexpr = BLOCK_T * BLOCK_Y * BLOCK_X
    pair = tl.arange(0, BP)[None, :]  # [1, BP]
    own = pair % HALF
    sums = tl.zeros([2 * BP], tl.float32)
    for start in range(0, TOKENS, BT):
        inside = start + tl.arange(0, BT)  # [BT]
        live = inside < TOKENS
        source, real = dense_place(
            block,
            inside,
            frames,
            rows,
            cols,
            block_rows,
            block_cols,
            BLOCK_T,
            BLOCK_Y,
            BLOCK_X,
        )
        real = real & live
        frame = block // (block_rows * block_cols) * BLOCK_T + inside // (BLOCK_Y * BLOCK_X)
        row = block // block_cols % block_rows * BLOCK_Y + inside // BLOCK_X % BLOCK_Y
        col = block % block_cols * BLOCK_X + inside % BLOCK_X
        by_row = row_turns + row[:, None] * PY + (own - PT)
        by_col = col_turns + col[:, None] * PX + (own - PT - PY)
        place = tl.where(
            own < PT, frame[:, None] * PT + own, tl.where(own < PT + PY, by_row, by_col)
        )  # [BT, BP]
        mask = real[:, None] & (pair < WIDTH // 2)
        both = tl.load(
            turns + place[:, :, None] * 2 + tl.arange(0, 2)[None, None, :],
            mask=mask[:, :, None],
            other=0.0,
        )  # [BT, BP, 2]
        cos, sin = tl.split(both)
        turned = norm_rope_tokens(
            x,
            x_batch,
            x_token,
            source,
            weight,
            out,
            out_batch,
            out_head,
            out_token,
            batch,
            block * TOKENS + inside,
            real,
            live,
            cos,
            sin,
            eps,
            WIDTH,
            HEAD,
            BT,
            BP,
        )  # [BT, 2 * BP]
        sums += tl.sum(turned.to(tl.float32), axis=0)
    channel = tl.arange(0, 2 * BP)  # [2 * BP]
    to = mean_out + batch * (WIDTH // HEAD) * blocks * HEAD
    to += (channel // HEAD * blocks + block) * HEAD + channel % HEAD
    mean = rounded(sums / TOKENS, KIND)
    tl.store(to, mean.to(mean_out.dtype.element_ty), mask=channel < WIDTH)


@triton.jit(do_not_specialize=["frames"])
def norm_rope_blocks_kernel(
    q,
    k,
    v,
    q_weight,
    k_weight,
    turns,
    q_out,
    k_out,
    v_out,
    q_mean,
    k_mean,
    q_batch,
    q_token,
    k_batch,
    k_token,
    v_batch,
    v_token,
    q_out_batch,
    q_out_head,
    q_out_token,
    k_out_batch,
    k_out_head,
    k_out_token,
    v_out_batch,
    v_out_head,
    v_out_token,
    blocks,
    frames,
    rows,
    cols,
    block_rows,
    block_cols,
    row_turns,
    col_turns,
    eps,
    WIDTH: tl.constexpr,
    PT: tl.constexpr,
    PY: tl.constexpr,
    PX: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_Y: tl.constexpr,
    BLOCK_X: tl.constexpr,
    BT: tl.constexpr,
    BP: tl.constexpr,
    KIND: tl.constexpr,
):
    """Take one block of queries, of keys or of values through; which, the second number
    of the program says."""
    HEAD: tl.constexpr = 2 * (PT + PY + PX)
    TOKENS: tl.constexpr = BLOCK_T * BLOCK_Y * BLOCK_X
    block = tl.program_id(0).to(tl.int64)
    which = tl.program_id(1)
    batch = tl.program_id(2).to(tl.int64)
    if which == 0:
        _norm_block(
            q,
            q_batch,
            q_token,
            q_weight,
            q_out,
            q_out_batch,
            q_out_head,
            q_out_token,
            q_mean,
            batch,
            block,
            blocks,
            turns,
            frames,
            rows,
            cols,
            block_rows,
            block_cols,
            row_turns,
            col_turns,
            eps,
            WIDTH,
            PT,
            PY,
            PX,
            BLOCK_T,
            BLOCK_Y,
            BLOCK_X,
            BT,
            BP,
            KIND,
        )
    elif which == 1:
        _norm_block(
            k,
            k_batch,
            k_token,
            k_weight,
            k_out,
            k_out_batch,
            k_out_head,
            k_out_token,
            k_mean,
            batch,
            block,
            blocks,
            turns,
            frames,
            rows,
            cols,
            block_rows,
            block_cols,
            row_turns,
            col_turns,
            eps,
            WIDTH,
            PT,
            PY,
            PX,
            BLOCK_T,
            BLOCK_Y,
            BLOCK_X,
            BT,
            BP,
            KIND,
        )
    else:
        channel = tl.arange(0, 2 * BP)  # [2 * BP]
        wide = (channel < WIDTH)[None, :]
        for start in range(0, TOKENS, BT):
            inside = start + tl.arange(0, BT)  # [BT]
            live = inside < TOKENS
            source, real = dense_place(
                block,
                inside,
                frames,
                rows,
                cols,
                block_rows,
                block_cols,
                BLOCK_T,
                BLOCK_Y,
                BLOCK_X,
            )
            at = v + batch * v_batch + source[:, None] * v_token + channel[None, :]
            copied = tl.load(at, mask=(real & live)[:, None] & wide, other=0.0)
            token = block * TOKENS + inside
            to = v_out + batch * v_out_batch + token[:, None] * v_out_token
            to += ((channel // HEAD).to(tl.int64) * v_out_head + channel % HEAD)[None, :]
            tl.store(to, copied, mask=live[:, None] & wide)


@on_its_device
def forward(
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
    out: tuple[Tensor, Tensor, Tensor],
    means: tuple[Tensor, Tensor],
) -> None:
    """Write to ``out`` and ``means``. See ``op.rms_norm_rope_means``; nothing is
    checked here."""
    batch, _, width = q.shape
    ins = [x if x.stride(2) == 1 else x.contiguous() for x in (q, k, v)]
    counts = blocks_of(size, block)
    if not batch:
        return
    norm_rope_blocks_kernel[(math.prod(counts), 3, batch)](
        *ins,
        q_weight.contiguous(),
        k_weight.contiguous(),
        turns,
        *out,
        *means,
        *(stride for x in ins for stride in x.stride()[:2]),
        *(x.stride(axis) for x in out for axis in (0, 1, 3)),
        math.prod(counts),
        *size,
        *counts[1:],
        positions[0] * pairs[0],
        positions[0] * pairs[0] + positions[1] * pairs[1],
        eps,
        WIDTH=width,
        PT=pairs[0],
        PY=pairs[1],
        PX=pairs[2],
        BLOCK_T=block[0],
        BLOCK_Y=block[1],
        BLOCK_X=block[2],
        BT=2,
        BP=triton.next_power_of_2(width // 2),
        KIND=str(means[0].dtype).removeprefix("torch."),
        num_warps=4,
        enable_fp_fusion=False,
    )
