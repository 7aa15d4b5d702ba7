"""Norm, rotation and scatter of queries, keys and values: every program takes all
channels of a few tokens."""

# pyright: reportMissingParameterType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# Triton allows no annotation but constexpr on a kernel's parameters, and takes options
# such as num_warps beside them.

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

__all__ = ["forward", "norm_rope_kernel", "norm_rope_tokens"]
from ultraflash_kernels._dispatch import on_its_device


@triton.jit
def norm_rope_tokens(
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
    token,
    real,
    live,
    cos,
    sin,
    eps,
    WIDTH: tl.constexpr,
    HEAD: tl.constexpr,
    BT: tl.constexpr,
    BP: tl.constexpr,
):
    """Normalise, turn and write tokens ``token [BT]``, read at ``source``, of which
    ``live`` exist and ``real`` are no padding; return them."""
    like: tl.constexpr = x.dtype.element_ty
    col = tl.arange(0, 2 * BP)  # [2 * BP]
    wide = (col < WIDTH)[None, :]
    loaded = tl.load(
        x + batch * x_batch + source[:, None] * x_token + col[None, :],
        mask=real[:, None] & wide,
        other=0.0,
    )  # [BT, 2 * BP]
    even, odd = tl.split(tl.reshape(loaded.to(tl.float32), [BT, BP, 2]))  # [BT, BP] each
    mean = tl.sum(even * even + odd * odd, axis=1) * (1.0 / WIDTH)
    inverse = tl.rsqrt(mean + eps)[:, None]  # [BT, 1]
    weights = tl.load(weight + col, mask=col < WIDTH, other=0.0).to(tl.float32)
    even_weight, odd_weight = tl.split(tl.reshape(weights, [BP, 2]))  # [BP] each
    even = (
        ((even * inverse).to(like).to(tl.float32) * even_weight[None, :])
        .to(like)
        .to(tl.float32)
    )
    odd = (
        ((odd * inverse).to(like).to(tl.float32) * odd_weight[None, :])
        .to(like)
        .to(tl.float32)
    )
    # Padding was read as zero, so zero it stays.
    turned = tl.reshape(
        tl.join(even * cos - odd * sin, even * sin + odd * cos), [BT, 2 * BP]
    ).to(like)
    to = out + batch * out_batch + token[:, None] * out_token
    to += ((col // HEAD).to(tl.int64) * out_head + col % HEAD)[None, :]
    tl.store(to, turned, mask=live[:, None] & wide)
    return turned


@triton.jit
def norm_rope_kernel(
    q,
    k,
    v,
    q_weight,
    k_weight,
    turns,
    q_out,
    k_out,
    v_out,
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
    tokens,
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
):
    """Take ``BT`` tokens of one sample through all three; ``row_turns``, ``col_turns``
    are where their tables start."""
    HALF: tl.constexpr = PT + PY + PX
    HEAD: tl.constexpr = 2 * HALF
    batch = tl.program_id(1).to(tl.int64)
    token = tl.program_id(0).to(tl.int64) * BT + tl.arange(0, BT)  # [BT]
    live = token < tokens
    inside, block = (
        token % (BLOCK_T * BLOCK_Y * BLOCK_X),
        token // (BLOCK_T * BLOCK_Y * BLOCK_X),
    )
    frame = block // (block_rows * block_cols) * BLOCK_T + inside // (BLOCK_Y * BLOCK_X)
    row = block // block_cols % block_rows * BLOCK_Y + inside // BLOCK_X % BLOCK_Y
    col = block % block_cols * BLOCK_X + inside % BLOCK_X
    real = live & (frame < frames) & (row < rows) & (col < cols)

    pair = tl.arange(0, BP)[None, :]  # [1, BP]
    own = pair % HALF
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

    norm_rope_tokens(
        q,
        q_batch,
        q_token,
        token,
        q_weight,
        q_out,
        q_out_batch,
        q_out_head,
        q_out_token,
        batch,
        token,
        real,
        live,
        cos,
        sin,
        eps,
        WIDTH,
        HEAD,
        BT,
        BP,
    )
    norm_rope_tokens(
        k,
        k_batch,
        k_token,
        token,
        k_weight,
        k_out,
        k_out_batch,
        k_out_head,
        k_out_token,
        batch,
        token,
        real,
        live,
        cos,
        sin,
        eps,
        WIDTH,
        HEAD,
        BT,
        BP,
    )
    channel = tl.arange(0, 2 * BP)  # [2 * BP]
    wide = (channel < WIDTH)[None, :]
    at = v + batch * v_batch + token[:, None] * v_token + channel[None, :]
    copied = tl.load(at, mask=real[:, None] & wide, other=0.0)  # [BT, 2 * BP]
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
) -> None:
    """Write to ``out``. See ``op.rms_norm_rope``; nothing is checked here."""
    batch, blocks, inner, width = q.shape
    ins = [_tokens(x) for x in (q, k, v)]
    tokens, tile = blocks * inner, 2
    if batch:
        norm_rope_kernel[(triton.cdiv(tokens, tile), batch)](
            *ins,
            q_weight.contiguous(),
            k_weight.contiguous(),
            turns,
            *out,
            *(stride for x in ins for stride in x.stride()[:2]),
            *(x.stride(axis) for x in out for axis in (0, 1, 3)),
            tokens,
            *size,
            *(-(-n // b) for n, b in zip(size[1:], block[1:], strict=True)),
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
            BT=tile,
            BP=triton.next_power_of_2(width // 2),
            num_warps=4,
            enable_fp_fusion=False,
        )


def _tokens(x: Tensor) -> Tensor:
    """View ``x [B, blocks, T, D]`` as [B, tokens, D] with D contiguous; copies only if
    it has to."""
    x = x.flatten(1, 2)
    return x if x.stride(2) == 1 else x.contiguous()
