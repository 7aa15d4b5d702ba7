"""Norm, rotation and scatter block by block, from tokens without padding, with the
means of the blocks; results may be quantised to 8 bits."""

# pyright: reportMissingParameterType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# Triton allows no annotation but constexpr on a kernel's parameters, and takes options
# such as num_warps beside them.

import math
from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from ultraflash_kernels._token_kernels import axis_places, dense_place
from ultraflash_kernels.block_topk.kernel import rounded
from ultraflash_kernels.dispatch import on_its_device, power_of_two
from ultraflash_kernels.fp8_linear.kernel import rounded_e4m3, to_e4m3
from ultraflash_kernels.rms_norm_rope.kernel import (
    axis_turns,
    copy_tokens,
    norm_rope_tokens,
    scatter_tokens,
)
from ultraflash_kernels.token_order import blocks_of

__all__ = ["forward", "norm_rope_blocks_kernel", "scatter_e4m3", "turn_tokens"]


@triton.jit
def scatter_e4m3(
    tile,
    to,
    to_head,
    scales,
    scales_head,
    live,
    WIDTH: tl.constexpr,
    HEAD: tl.constexpr,
    BT: tl.constexpr,
    BP: tl.constexpr,
    ON_GPU: tl.constexpr,
):
    """Quantise ``tile [BT, 2 * BP]`` by token and head; write it to the tokens at ``to
    [BT]``, and its scales to those at ``scales [BT]``, head by head."""
    HEADS: tl.constexpr = 2 * BP // HEAD
    wide = tl.reshape(tile.to(tl.float32), [BT * HEADS, HEAD])
    values, scale = to_e4m3(wide)  # [BT * HEADS, HEAD], [BT * HEADS]
    values = values if ON_GPU else rounded_e4m3(values)
    small = tl.reshape(values, [BT, 2 * BP]).to(to.dtype.element_ty)
    scatter_tokens(small, to, to_head, live, WIDTH, HEAD, BP)

    head = tl.arange(0, HEADS)
    places = scales[:, None] + (head.to(tl.int64) * scales_head)[None, :]  # [BT, HEADS]
    mask = live[:, None] & (head * HEAD < WIDTH)[None, :]
    tl.store(places, tl.reshape(scale, [BT, HEADS]), mask=mask)


@triton.jit
def turn_tokens(
    source, to, to_channel, scales, real, live, HEAD: tl.constexpr, ON_GPU: tl.constexpr
):
    """Quantise tokens of one head at ``source [BT]`` and write their channels,
    ``to_channel`` apart, at ``to [BT]`` and their scales at ``scales [BT]``: only those
    that are ``live``, with zeros for those that are not ``real`` (padding)."""
    col = tl.arange(0, HEAD)  # [HEAD]
    tile = tl.load(source[:, None] + col[None, :], mask=real[:, None], other=0.0)
    values, scale = to_e4m3(tile.to(tl.float32))  # [BT, HEAD], [BT]
    values = values if ON_GPU else rounded_e4m3(values)
    tl.store(
        to[:, None] + col.to(tl.int64)[None, :] * to_channel,
        values.to(to.dtype.element_ty),
        mask=live[:, None],
    )
    tl.store(scales, scale, mask=live)


@triton.jit
def _turn_values(
    source,
    source_token,
    to,
    to_head,
    scales,
    scales_head,
    block,
    size,
    blocks,
    WIDTH: tl.constexpr,
    HEAD: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_Y: tl.constexpr,
    BLOCK_X: tl.constexpr,
    BT: tl.constexpr,
    ON_GPU: tl.constexpr,
):
    """Quantise one block of values by token and head, ``BT`` tokens of a head at a
    time, and write it with the channels of a head before its tokens."""
    TOKENS: tl.constexpr = BLOCK_T * BLOCK_Y * BLOCK_X
    for start in range(0, TOKENS, BT):
        inside = start + tl.arange(0, BT)  # [BT]
        live = inside < TOKENS
        token, real = dense_place(block, inside, size, blocks, BLOCK_T, BLOCK_Y, BLOCK_X)
        real = real & live
        rows = source + token * source_token
        for head in range(WIDTH // HEAD):
            place = to + head * to_head + block * (TOKENS * HEAD) + inside
            scale = scales + head * scales_head + block * TOKENS + inside
            turn_tokens(rows + head * HEAD, place, TOKENS, scale, real, live, HEAD, ON_GPU)


@triton.jit
def _norm_block(
    source,
    source_token,
    weight,
    to,
    to_head,
    to_token,
    scales,
    scales_head,
    mean_out,
    block,
    means,
    turns,
    size,
    blocks,
    starts,
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
    FP8: tl.constexpr,
    ON_GPU: tl.constexpr,
):
    """Normalise, rotate and write one block of one sample, ``BT`` tokens at a time, and
    its mean, one of ``means`` of a head, which is not that of quantised tokens."""
    HEAD: tl.constexpr = 2 * (PT + PY + PX)
    TOKENS: tl.constexpr = BLOCK_T * BLOCK_Y * BLOCK_X
    sums = tl.zeros([2 * BP], tl.float32)
    for start in range(0, TOKENS, BT):
        inside = start + tl.arange(0, BT)  # [BT]
        live = inside < TOKENS
        token, real = dense_place(block, inside, size, blocks, BLOCK_T, BLOCK_Y, BLOCK_X)
        real = real & live
        place = axis_places(block, inside, blocks, BLOCK_T, BLOCK_Y, BLOCK_X)
        cos, sin = axis_turns(turns, place, starts, real, WIDTH, PT, PY, PX, BP)
        rows = source + token * source_token
        out = to + (block * TOKENS + inside) * to_token
        rotated = norm_rope_tokens(
            rows, weight, real, cos, sin, eps, WIDTH, BT, BP
        )  # [BT, 2 * BP]
        if FP8:
            at = scales + block * TOKENS + inside
            scatter_e4m3(
                rotated, out, to_head, at, scales_head, live, WIDTH, HEAD, BT, BP, ON_GPU
            )
        else:
            scatter_tokens(rotated, out, to_head, live, WIDTH, HEAD, BP)
        sums += tl.sum(rotated.to(tl.float32), axis=0)

    col = tl.arange(0, 2 * BP)  # [2 * BP]
    mean = rounded(sums / TOKENS, KIND)
    tl.store(
        mean_out + (col // HEAD * means + block) * HEAD + col % HEAD,
        mean.to(mean_out.dtype.element_ty),
        mask=col < WIDTH,
    )


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
    q_scales,
    k_scales,
    v_scales,
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
    q_scales_batch,
    q_scales_head,
    k_scales_batch,
    k_scales_head,
    v_scales_batch,
    v_scales_head,
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
    FP8: tl.constexpr,
    VALUES: tl.constexpr,
    ON_GPU: tl.constexpr,
):
    """Process one block of queries, keys or values, selected by the second program id.

    With ``FP8`` results are quantised by token and head, and values are written ``[...,
    d, T]``, ``VALUES`` tokens at a time. The scales' tokens are adjacent.
    """
    HEAD: tl.constexpr = 2 * (PT + PY + PX)
    TOKENS: tl.constexpr = BLOCK_T * BLOCK_Y * BLOCK_X
    block = tl.program_id(0).to(tl.int64)
    which = tl.program_id(1)
    batch = tl.program_id(2).to(tl.int64)
    size, grid = (frames, rows, cols), (block_rows, block_cols)
    starts = (row_turns, col_turns)

    if which == 0:
        _norm_block(
            q + batch * q_batch,
            q_token,
            q_weight,
            q_out + batch * q_out_batch,
            q_out_head,
            q_out_token,
            q_scales + batch * q_scales_batch,
            q_scales_head,
            q_mean + batch * WIDTH * blocks,
            block,
            blocks,
            turns,
            size,
            grid,
            starts,
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
            FP8,
            ON_GPU,
        )
    elif which == 1:
        _norm_block(
            k + batch * k_batch,
            k_token,
            k_weight,
            k_out + batch * k_out_batch,
            k_out_head,
            k_out_token,
            k_scales + batch * k_scales_batch,
            k_scales_head,
            k_mean + batch * WIDTH * blocks,
            block,
            blocks,
            turns,
            size,
            grid,
            starts,
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
            FP8,
            ON_GPU,
        )
    elif FP8:
        _turn_values(
            v + batch * v_batch,
            v_token,
            v_out + batch * v_out_batch,
            v_out_head,
            v_scales + batch * v_scales_batch,
            v_scales_head,
            block,
            size,
            grid,
            WIDTH,
            HEAD,
            BLOCK_T,
            BLOCK_Y,
            BLOCK_X,
            VALUES,
            ON_GPU,
        )
    else:
        for start in range(0, TOKENS, BT):
            inside = start + tl.arange(0, BT)  # [BT]
            live = inside < TOKENS
            token, real = dense_place(block, inside, size, grid, BLOCK_T, BLOCK_Y, BLOCK_X)
            source = v + batch * v_batch + token * v_token
            to = v_out + batch * v_out_batch + (block * TOKENS + inside) * v_out_token
            copy_tokens(source, to, v_out_head, real & live, live, WIDTH, HEAD, BP)


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
    scales: tuple[Tensor, Tensor, Tensor] | None = None,
) -> None:
    """Write to ``out`` and ``means``, with ``scales`` in 8 bits. See
    ``op.rms_norm_rope_means`` and ``op_fp8.rms_norm_rope_means_fp8``; nothing is
    checked here."""
    batch, _, width = q.shape
    inner = math.prod(block)
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
        *(scales or out),
        *means,
        *(stride for x in ins for stride in x.stride()[:2]),
        *(x.stride(axis) for x in out for axis in (0, 1, 3)),
        *(x.stride(axis) for x in scales or out for axis in (0, 1)),
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
        BP=power_of_two(width // 2),
        KIND=str(means[0].dtype).removeprefix("torch."),
        FP8=scales is not None,
        VALUES=min(32, power_of_two(inner)),
        ON_GPU=q.device.type != "cpu",
        num_warps=4,
        enable_fp_fusion=False,
    )
