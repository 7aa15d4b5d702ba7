"""Attention to all keys of tokens that are in 8-bit floating point: both matmuls in 8
bits, float32 sums."""

# pyright: reportMissingParameterType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# Triton allows no annotation but constexpr on a kernel's parameters, and takes options
# such as num_warps beside them.

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ultraflash_kernels.block_sparse_attention.kernel import Tiles, head_columns
from ultraflash_kernels.block_sparse_attention.kernel_fp8 import (
    WEIGHT_UNITS,
    scaled_softmax_step,
)
from ultraflash_kernels.dispatch import capability, on_its_device, power_of_two
from ultraflash_kernels.fp8_linear import Fp8Rows
from ultraflash_kernels.fp8_linear.kernel import rounded_e4m3

__all__ = ["dense_attention_fp8_kernel", "forward"]


@triton.jit
def _add_values(
    acc, unit, p, alpha, value, value_scale, APART: tl.constexpr, ON_GPU: tl.constexpr
):
    """Return the sum of values after ``value [BD, BN]`` with weights ``p``, and the
    value of 1 in it, times WEIGHT_UNITS. With ``APART`` the products are summed on
    their own: compute capability 9.0 adds products in 8 bits with 14 bits of mantissa,
    too few for the sum over all keys."""
    largest = tl.max(value_scale, axis=0)
    by = (alpha * (unit / largest))[:, None]
    acc = acc if APART else acc * by
    p = p * (value_scale * (WEIGHT_UNITS / largest))[None, :]
    p = p if ON_GPU else rounded_e4m3(p)
    if APART:
        acc = acc * by + tl.dot(p.to(value.dtype), tl.trans(value))
    else:
        acc = tl.dot(p.to(value.dtype), tl.trans(value), acc)
    return acc, largest


# One program for every number of keys of a clip.
@triton.jit(do_not_specialize=["heads", "tokens", "keys"])
def dense_attention_fp8_kernel(
    q,
    q_scales,
    k,
    k_scales,
    v,
    v_scales,
    out,
    heads,
    tokens,
    keys,
    scale,
    q_sample,
    q_head,
    q_token,
    k_sample,
    k_head,
    k_token,
    v_sample,
    v_head,
    v_channel,
    q_scales_sample,
    q_scales_head,
    k_scales_sample,
    k_scales_head,
    v_scales_sample,
    v_scales_head,
    o_sample,
    o_head,
    o_token,
    D: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BL: tl.constexpr,
    BD: tl.constexpr,
    APART: tl.constexpr,
    ON_GPU: tl.constexpr,
):
    """Compute one tile of queries of a head, with the arithmetic of
    ``kernel_fp8.attention_fp8_kernel``.

    ``q`` and ``k`` are ``[B, H, tokens, D]``, ``v`` is ``[B, H, D, tokens]``; tokens
    follow one another in ``v`` and in the scales. Only keys that fill no tile, taken
    ``BL`` at a time, are masked. ``scale`` contains log2(e).
    """
    sample = (tl.program_id(1) // heads).to(tl.int64)
    head = (tl.program_id(1) % heads).to(tl.int64)
    first = (tl.program_id(0) * BM).to(tl.int64)
    token = tl.arange(0, BM)  # [BM]
    col = tl.arange(0, BD)  # [BD]
    q_mask = (token < tokens - first)[:, None] & (col < D)[None, :]  # [BM, BD]
    q += sample * q_sample + head * q_head + first * q_token
    query = tl.load(q + token[:, None] * q_token + col[None, :], mask=q_mask, other=0.0)
    q_scales += sample * q_scales_sample + head * q_scales_head + first
    query_scale = tl.load(q_scales + token, mask=token < tokens - first, other=1.0) * scale

    k += sample * k_sample + head * k_head
    v += sample * v_sample + head * v_head
    k_scales += sample * k_scales_sample + head * k_scales_head
    v_scales += sample * v_scales_sample + head * v_scales_head
    m_i = tl.full([BM], -float("inf"), tl.float32)
    l_i = tl.zeros([BM], tl.float32)
    acc = tl.zeros([BM, BD], tl.float32)
    unit = tl.full([], 1.0, tl.float32)

    # What is left of the keys comes first, while ``acc`` takes no registers.
    whole = tl.multiple_of(keys // BN * BN, BN)
    left = tl.arange(0, BL)  # [BL]
    for part in tl.static_range(BN // BL):
        at = whole + part * BL
        if at < keys:
            real = at + left < keys  # [BL]
            # Buffers have whole pieces of 16 tokens; bytes would be read one by one.
            pieces = tl.multiple_of((keys - at + 15) // 16 * 16, 16)
            kv_mask = real[:, None] & (col < D)[None, :]
            v_mask = (col < D)[:, None] & (left < pieces)[None, :]
            k_at = k + (at + left)[:, None] * k_token + col[None, :]
            key = tl.load(k_at, mask=kv_mask, other=0.0)  # [BL, BD]
            key_scale = tl.load(k_scales + at + left, mask=real, other=0.0)  # [BL]
            qk = tl.dot(query, tl.trans(key)) * key_scale[None, :]
            qk = tl.where(real[None, :], qk, -float("inf"))
            m_i, l_i, p, alpha = scaled_softmax_step(m_i, l_i, qk, query_scale)
            v_at = v + col[:, None] * v_channel + (at + left)[None, :]
            value = tl.load(v_at, mask=v_mask, other=0.0)  # [BD, BL]
            value = tl.where(real[None, :], value, 0.0)
            value_scale = tl.load(v_scales + at + left, mask=real, other=0.0)
            acc, unit = _add_values(acc, unit, p, alpha, value, value_scale, False, ON_GPU)

    step = tl.arange(0, BN)  # [BN]
    k_at = step[:, None] * k_token + col[None, :]  # [BN, BD]
    v_at = col[:, None] * v_channel + step[None, :]  # [BD, BN]
    if not APART:
        k_at, v_at = k + k_at, v + v_at
    for at in range(0, whole, BN):
        at = tl.multiple_of(at, BN)
        # Sums apart leave fewer registers for addresses.
        k_here = (k + at * k_token) + k_at if APART else k_at + at * k_token
        v_here = (v + at) + v_at if APART else v_at + at
        if D == BD:
            key = tl.load(k_here)
        else:
            key = tl.load(k_here, mask=(col < D)[None, :], other=0.0)
        key_scale = tl.load(k_scales + at + step)  # [BN]
        qk = tl.dot(query, tl.trans(key)) * key_scale[None, :]
        m_i, l_i, p, alpha = scaled_softmax_step(m_i, l_i, qk, query_scale)
        if D == BD:
            value = tl.load(v_here)
        else:
            value = tl.load(v_here, mask=(col < D)[:, None], other=0.0)
        value_scale = tl.load(v_scales + at + step)
        acc, unit = _add_values(acc, unit, p, alpha, value, value_scale, APART, ON_GPU)

    acc = acc * ((unit / WEIGHT_UNITS) / l_i)[:, None]
    out += sample * o_sample + head * o_head + first * o_token
    tl.store(
        out + token[:, None] * o_token + col[None, :],
        acc.to(out.dtype.element_ty),
        mask=q_mask,
    )


def _tiles(target: tuple[int, int], tokens: int, width: int) -> Tiles:
    """Choose tiles that neither spill nor exceed shared memory on ``target``, the
    compute capability."""
    rows = max(16, min(128, power_of_two(tokens)))
    roomy = target[0] in (9, 10) and rows == 128 and width > 32  # 12.x would spill
    return Tiles(rows, 128 if roomy else 64, 8 if rows == 128 else 4, 4)


@on_its_device
def forward(q: Fp8Rows, k: Fp8Rows, v: Fp8Rows, dtype: torch.dtype) -> Tensor:
    """See ``op_dense_fp8.dense_attention_fp8``; nothing is checked here."""
    samples, heads, tokens, width = q.values.shape
    keys = k.values.shape[2]
    out = q.values.new_empty((samples, tokens, heads, width), dtype=dtype)
    scales = [_adjacent(x) for x in (q.scales, k.scales, v.scales.mT)]
    target = capability(out.device)
    cut = _tiles(target, tokens, width)

    dense_attention_fp8_kernel[(triton.cdiv(tokens, cut.queries), samples * heads)](
        q.values,
        scales[0],
        k.values,
        scales[1],
        v.values,
        scales[2],
        out,
        heads,
        tokens,
        keys,
        math.log2(math.e) / math.sqrt(width),
        *(stride for x in (q, k, v) for stride in x.values.stride()[:3]),
        *(stride for x in scales for stride in x.stride()[:2]),
        out.stride(0),
        out.stride(2),
        out.stride(1),
        D=width,
        BM=cut.queries,
        BN=cut.keys,
        BL=64,
        BD=max(32, head_columns(target, width)),
        APART=target == (9, 0) or out.device.type == "cpu",
        ON_GPU=out.device.type != "cpu",
        num_warps=cut.warps,
        num_stages=cut.stages,
    )
    return out.transpose(1, 2)


def _adjacent(scales: Tensor) -> Tensor:
    """Return ``scales [B, H, tokens, 1]`` so that those of a head are adjacent."""
    return scales if scales.stride(2) == 1 else scales.contiguous()
