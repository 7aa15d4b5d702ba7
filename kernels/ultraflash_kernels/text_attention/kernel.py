"""Attention to the keys of a prompt: each program holds a tile of tokens, normalises
them and goes through their heads."""

# pyright: reportMissingParameterType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportAttributeAccessIssue=false
# Triton allows no annotation but constexpr on a kernel's parameters, and takes options
# such as num_warps beside them.

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ultraflash_kernels.dispatch import capability, on_its_device, power_of_two
from ultraflash_kernels.fp8_linear.kernel import rounded_e4m3

__all__ = ["Tiles", "forward", "forward_fp8", "text_attention_kernel", "tiles"]

MANY_TOKENS = 1 << 14
"""Tokens from which large tiles fill a GPU."""
PROCESSORS = 132
"""Multiprocessors assumed for tensors without a GPU: those of an H200."""


@triton.jit
def _inverse_rms(x, place, eps, WIDTH: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr):
    """Return the inverse root mean squares ``[BM]`` of the rows at ``place`` of x."""
    squares = tl.zeros([BM], tl.float32)
    for at in range(0, WIDTH, BC):
        col = at + tl.arange(0, BC)  # [BC]
        part = _tile(x, place, col, WIDTH, BC, WIDTH % BC == 0).to(tl.float32)
        squares += tl.sum(part * part, axis=1)
    return tl.rsqrt(squares * (1.0 / WIDTH) + eps)


@triton.jit
def _tile(x, place, col, end, BC: tl.constexpr, WHOLE: tl.constexpr):
    """Load ``x [rows, BC]`` at the offsets ``place`` of rows; columns from ``end`` on
    are zero; with ``WHOLE`` there are none."""
    if WHOLE:
        return tl.load(x + place[:, None] + col[None, :])
    return tl.load(x + place[:, None] + col[None, :], mask=(col < end)[None, :], other=0.0)


@triton.jit
def _scores(
    query, key, log_weights, place, keys, scale, WEIGHTED: tl.constexpr, WHOLE: tl.constexpr
):
    """Return the scores ``[BM, BN]`` of the keys at ``place``, times log2(e); -inf past
    the last one."""
    qk = tl.dot(query, tl.trans(key), input_precision="ieee") * scale  # [BM, BN]
    if WEIGHTED:
        there = place < keys  # [BN]
        weights = tl.load(log_weights + place, mask=there, other=-float("inf"))
        qk += (weights * 1.4426950408889634)[None, :]
    elif not WHOLE:
        qk = tl.where((place < keys)[None, :], qk, -float("inf"))
    return qk


@triton.jit
def _quantised(
    own,
    out,
    scales,
    line,
    live,
    WIDTH: tl.constexpr,
    BC: tl.constexpr,
    ON_GPU: tl.constexpr,
):
    """Quantise the rows ``line [BM]`` of ``own`` with ``scales [BM]`` to those of
    ``out``, as ``fp8_linear.kernel.to_e4m3`` does with whole rows."""
    for at in range(0, WIDTH, BC):
        place = line[:, None] * WIDTH + (at + tl.arange(0, BC))[None, :]
        inside = live[:, None] & (at + tl.arange(0, BC) < WIDTH)[None, :]
        y = tl.load(own + place, mask=inside, other=0.0).to(tl.float32)
        y = tl.clamp(
            tl.div_rn(y, scales[:, None]), -448.0, 448.0, propagate_nan=tl.PropagateNan.ALL
        )
        y = y if ON_GPU else rounded_e4m3(y)
        tl.store(out + place, y.to(out.dtype.element_ty), mask=inside)


# One program for every length of a prompt.
@triton.jit(do_not_specialize=["keys", "tokens"])
def text_attention_kernel(
    q,
    weight,
    k,
    v,
    log_weights,
    out,
    out_scales,
    scratch,
    tokens,
    keys,
    scale,
    eps,
    q_sample,
    q_token,
    k_sample,
    k_head,
    k_key,
    v_sample,
    v_head,
    v_key,
    HEADS: tl.constexpr,
    SHARE: tl.constexpr,
    D: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BD: tl.constexpr,
    BC: tl.constexpr,
    SINGLE: tl.constexpr,
    WHOLE: tl.constexpr,
    WEIGHTED: tl.constexpr,
    FP8: tl.constexpr,
    ON_GPU: tl.constexpr,
):
    """Compute ``SHARE`` heads of tiles of BM tokens. With ``SINGLE`` all keys are one
    block of BN, else blocks follow one another; with ``WHOLE`` none is cut. ``scale``
    contains log2(e). With ``FP8`` the program writes whole rows to its part of
    ``scratch``, which stays in the L2 cache, and quantises them from there; ``out`` and
    ``out_scales`` are contiguous. Tokens past the last one repeat it and are not
    written.
    """
    like: tl.constexpr = q.dtype.element_ty
    WIDTH: tl.constexpr = HEADS * D
    program = tl.program_id(0)
    sample = tl.program_id(1).to(tl.int64)
    first = tl.program_id(2) * SHARE
    q += sample * q_sample
    k += sample * k_sample
    v += sample * v_sample
    out += sample * tokens * WIDTH
    if FP8:
        out_scales += sample * tokens
        scratch += (sample * tl.num_programs(0) + program) * BM * WIDTH
    line = tl.arange(0, BM)  # [BM]
    col = tl.arange(0, BD)  # [BD]
    step = tl.arange(0, BN)  # [BN]

    for tile in range(program, tl.cdiv(tokens, BM), tl.num_programs(0)):
        start = tile * BM
        live = line < tokens - start  # [BM]
        rows = q + start.to(tl.int64) * q_token
        place = tl.minimum(line, tokens - start - 1) * q_token  # [BM]
        inverse = _inverse_rms(rows, place, eps, WIDTH, BM, BC)
        to = scratch if FP8 else out + start.to(tl.int64) * WIDTH
        largest = tl.zeros([BM], tl.float32)
        for head in range(first, first + SHARE):
            wide = _tile(rows + head * D, place, col, D, BD, D == BD)  # [BM, BD]
            wide = (wide.to(tl.float32) * inverse[:, None]).to(like).to(tl.float32)
            gain = tl.load(weight + head * D + col, mask=col < D, other=0.0).to(tl.float32)
            query = (wide * gain[None, :]).to(like)
            k_from = k + head * k_head
            v_from = v + head * v_head

            if SINGLE:
                at = step if WHOLE else tl.minimum(step, keys - 1)
                key = _tile(k_from, at * k_key, col, D, BD, D == BD)  # [BN, BD]
                qk = _scores(query, key, log_weights, step, keys, scale, WEIGHTED, WHOLE)
                p = tl.exp2(qk - tl.max(qk, axis=1)[:, None])
                l_i = tl.sum(p, axis=1)
                value = _tile(v_from, at * v_key, col, D, BD, D == BD)
                acc = tl.dot(p.to(like), value, input_precision="ieee")
            else:
                # A finite start keeps blocks without a finite score at zero.
                m_i = tl.full([BM], -1.0e30, tl.float32)
                l_i = tl.zeros([BM], tl.float32)
                acc = tl.zeros([BM, BD], tl.float32)
                for done in range(0, keys, BN):
                    at = done + step if WHOLE else tl.minimum(done + step, keys - 1)
                    key = _tile(k_from, at * k_key, col, D, BD, D == BD)
                    qk = _scores(
                        query, key, log_weights, done + step, keys, scale, WEIGHTED, WHOLE
                    )
                    m_new = tl.maximum(m_i, tl.max(qk, axis=1))
                    p = tl.exp2(qk - m_new[:, None])
                    alpha = tl.exp2(m_i - m_new)
                    l_i = l_i * alpha + tl.sum(p, axis=1)
                    value = _tile(v_from, at * v_key, col, D, BD, D == BD)
                    acc = tl.dot(
                        p.to(like), value, acc * alpha[:, None], input_precision="ieee"
                    )
                    m_i = m_new

            y = (acc / l_i[:, None]).to(like)
            inside = live[:, None] & (col < D)[None, :]  # [BM, BD]
            tl.store(to + head * D + line[:, None] * WIDTH + col[None, :], y, mask=inside)
            if FP8:
                size = tl.where((col < D)[None, :], tl.abs(y.to(tl.float32)), 0.0)
                largest = tl.maximum(largest, tl.max(size, axis=1))

        if FP8:
            scales = tl.div_rn(tl.maximum(largest, 1e-12), 448.0)
            tl.store(out_scales + start + line, scales, mask=live)
            tl.debug_barrier()
            _quantised(
                scratch,
                out + start.to(tl.int64) * WIDTH,
                scales,
                line,
                live,
                WIDTH,
                BC,
                ON_GPU,
            )
            tl.debug_barrier()


class Tiles(NamedTuple):
    """Tiling of a shape: tokens per tile, keys per block, columns per step of passes
    over rows, warps, and pipeline stages."""

    tokens: int
    keys: int
    columns: int
    warps: int
    stages: int


def tiles(
    target: tuple[int, int], dtype: torch.dtype, tokens: int, keys: int, depth: int
) -> Tiles:
    """Choose tiles that neither spill nor exceed shared memory on ``target``, the
    compute capability, for heads of ``depth`` channels."""
    rows = min(64, max(16, power_of_two(tokens)))
    if dtype == torch.float32:  # matmuls without tensor cores
        return Tiles(min(32, rows), 32, 64, 8, 1)
    if target[0] not in (9, 10):
        return Tiles(rows, 64, 128, 8, 2)
    many = tokens >= MANY_TOKENS
    # Blocks of 128 keys that follow one another would spill.
    block = 128 if 64 < keys <= 128 else 64
    # On Hopper two warp groups share the columns of a tile of 64 rows, and need at
    # least 64 each, see block_sparse_attention.kernel.head_columns.
    warps = 8 if many or target[0] == 10 or (block == 128 and depth > 64) else 4
    stages = 1 if target[0] == 10 and many and keys > 128 else 2
    return Tiles(128 if many else rows, block, 128, warps, stages)


def _share(tokens: int, heads: int) -> int:
    """Return the heads that a program computes: fewer of few tokens, so that there is a
    program for every multiprocessor."""
    if tokens >= MANY_TOKENS:
        return heads
    return next(count for count in (4, 3, 2, 1) if heads % count == 0)


def _processors(device: torch.device) -> int:
    if device.type != "cuda":
        return PROCESSORS
    return torch.cuda.get_device_properties(device).multi_processor_count


@on_its_device
def forward(
    q: Tensor,
    weight: Tensor,
    k: Tensor,
    v: Tensor,
    log_weights: Tensor | None,
    eps: float,
) -> Tensor:
    """See ``op.text_attention``; nothing is checked here."""
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    if out.numel():
        _launch(q, weight, k, v, log_weights, eps, out, None)
    return out


@on_its_device
def forward_fp8(
    q: Tensor,
    weight: Tensor,
    k: Tensor,
    v: Tensor,
    log_weights: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """See ``op.text_attention_fp8``; nothing is checked here."""
    out = torch.empty(q.shape, dtype=torch.float8_e4m3fn, device=q.device)
    scales = torch.empty((*q.shape[:-1], 1), dtype=torch.float32, device=q.device)
    if out.numel():
        _launch(q, weight, k, v, log_weights, eps, out, scales)
    return out, scales


def _launch(
    q: Tensor,
    weight: Tensor,
    k: Tensor,
    v: Tensor,
    log_weights: Tensor | None,
    eps: float,
    out: Tensor,
    scales: Tensor | None,
) -> None:
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    batch, tokens, width = q.shape
    heads, keys, depth = k.shape[1:]
    target = capability(q.device)
    # Rows that wait to be quantised stay in the L2 cache only if tiles are small.
    size = tokens if scales is None else min(tokens, MANY_TOKENS - 1)
    cut = tiles(target, q.dtype, size, keys, depth)
    programs, share, scratch = -(-tokens // cut.tokens), heads, out
    if scales is None:
        share = _share(tokens, heads)
    else:
        programs = min(programs, 2 * _processors(q.device))
        scratch = q.new_empty(batch * programs * cut.tokens, width)

    text_attention_kernel[(programs, batch, heads // share)](
        q,
        weight.contiguous(),
        k,
        v,
        q if log_weights is None else log_weights.contiguous(),
        out,
        out if scales is None else scales,
        scratch,
        tokens,
        keys,
        math.log2(math.e) / math.sqrt(depth),
        eps,
        *q.stride()[:2],
        *k.stride()[:3],
        *v.stride()[:3],
        HEADS=heads,
        SHARE=share,
        D=depth,
        BM=cut.tokens,
        BN=cut.keys,
        BD=max(64, power_of_two(depth)),
        BC=cut.columns,
        SINGLE=keys <= cut.keys,
        WHOLE=keys % cut.keys == 0,
        WEIGHTED=log_weights is not None,
        FP8=scales is not None,
        ON_GPU=q.device.type != "cpu",
        num_warps=cut.warps,
        num_stages=cut.stages,
    )
