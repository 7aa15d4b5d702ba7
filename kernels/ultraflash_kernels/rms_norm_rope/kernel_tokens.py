"""Norm and rotation of queries and keys, written in 8 bits token by token, values with
tokens last."""

# pyright: reportMissingParameterType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# Triton allows no annotation but constexpr on a kernel's parameters, and takes options
# such as num_warps beside them.

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from ultraflash_kernels._token_kernels import axis_places
from ultraflash_kernels.dispatch import on_its_device, power_of_two
from ultraflash_kernels.rms_norm_rope.kernel import axis_turns, norm_rope_tokens
from ultraflash_kernels.rms_norm_rope.kernel_blocks import scatter_e4m3, turn_tokens

__all__ = ["forward", "norm_rope_fp8_kernel"]


@triton.jit
def _norm_tokens(
    source,
    source_token,
    weight,
    to,
    to_head,
    to_token,
    scales,
    scales_head,
    tokens,
    turns,
    starts,
    eps,
    WIDTH: tl.constexpr,
    PT: tl.constexpr,
    PY: tl.constexpr,
    PX: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    BT: tl.constexpr,
    BP: tl.constexpr,
    ON_GPU: tl.constexpr,
):
    """Normalise, rotate, quantise and write ``BT`` tokens of one sample."""
    HEAD: tl.constexpr = 2 * (PT + PY + PX)
    token = tl.program_id(0).to(tl.int64) * BT + tl.arange(0, BT)  # [BT]
    live = token < tokens
    frame, inside = token // (ROWS * COLS), token % (ROWS * COLS)
    place = axis_places(frame, inside, (1, 1), 1, ROWS, COLS)
    cos, sin = axis_turns(turns, place, starts, live, WIDTH, PT, PY, PX, BP)
    rows, out = source + token * source_token, to + token * to_token
    tile = norm_rope_tokens(rows, weight, live, cos, sin, eps, WIDTH, BT, BP)
    at = scales + token
    scatter_e4m3(tile, out, to_head, at, scales_head, live, WIDTH, HEAD, BT, BP, ON_GPU)


@triton.jit
def norm_rope_fp8_kernel(
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
    v_out_channel,
    q_scales_batch,
    q_scales_head,
    k_scales_batch,
    k_scales_head,
    v_scales_batch,
    v_scales_head,
    tokens,
    row_turns,
    col_turns,
    eps,
    WIDTH: tl.constexpr,
    PT: tl.constexpr,
    PY: tl.constexpr,
    PX: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    BT: tl.constexpr,
    BP: tl.constexpr,
    VALUES: tl.constexpr,
    ON_GPU: tl.constexpr,
):
    """Process ``BT`` tokens of all heads of queries or keys, or ``VALUES`` tokens of a
    head of values, selected by the second program id; tokens are frame-major."""
    HEAD: tl.constexpr = 2 * (PT + PY + PX)
    which = tl.program_id(1)
    batch = tl.program_id(2).to(tl.int64)
    starts = (row_turns, col_turns)

    if which == 0:
        _norm_tokens(
            q + batch * q_batch,
            q_token,
            q_weight,
            q_out + batch * q_out_batch,
            q_out_head,
            q_out_token,
            q_scales + batch * q_scales_batch,
            q_scales_head,
            tokens,
            turns,
            starts,
            eps,
            WIDTH,
            PT,
            PY,
            PX,
            ROWS,
            COLS,
            BT,
            BP,
            ON_GPU,
        )
    elif which == 1:
        _norm_tokens(
            k + batch * k_batch,
            k_token,
            k_weight,
            k_out + batch * k_out_batch,
            k_out_head,
            k_out_token,
            k_scales + batch * k_scales_batch,
            k_scales_head,
            tokens,
            turns,
            starts,
            eps,
            WIDTH,
            PT,
            PY,
            PX,
            ROWS,
            COLS,
            BT,
            BP,
            ON_GPU,
        )
    else:
        head = (tl.program_id(0) % (WIDTH // HEAD)).to(tl.int64)
        tile = (tl.program_id(0) // (WIDTH // HEAD)).to(tl.int64)
        token = tile * VALUES + tl.arange(0, VALUES)  # [VALUES]
        live = token < tokens
        rows = v + batch * v_batch + token * v_token + head * HEAD
        to = v_out + batch * v_out_batch + head * v_out_head + token
        at = v_scales + batch * v_scales_batch + head * v_scales_head + token
        turn_tokens(rows, to, v_out_channel, at, live, live, HEAD, ON_GPU)


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
    eps: float,
    out: tuple[Tensor, Tensor, Tensor],
    scales: tuple[Tensor, Tensor, Tensor],
) -> None:
    """Write to ``out`` and ``scales``. See ``op_fp8.rms_norm_rope_fp8``; nothing is
    checked here."""
    batch, tokens, width = q.shape
    if not batch:
        return
    ins = [x if x.stride(2) == 1 else x.contiguous() for x in (q, k, v)]
    heads, tile, values = width // (2 * sum(pairs)), 2, min(32, power_of_two(tokens))
    programs = max(triton.cdiv(tokens, tile), heads * triton.cdiv(tokens, values))

    norm_rope_fp8_kernel[(programs, 3, batch)](
        *ins,
        q_weight.contiguous(),
        k_weight.contiguous(),
        turns,
        *out,
        *scales,
        *(stride for x in ins for stride in x.stride()[:2]),
        *(stride for x in out for stride in x.stride()[:3]),
        *(stride for x in scales for stride in x.stride()[:2]),
        tokens,
        positions[0] * pairs[0],
        positions[0] * pairs[0] + positions[1] * pairs[1],
        eps,
        WIDTH=width,
        PT=pairs[0],
        PY=pairs[1],
        PX=pairs[2],
        ROWS=size[1],
        COLS=size[2],
        BT=tile,
        BP=power_of_two(width // 2),
        VALUES=values,
        ON_GPU=q.device.type != "cpu",
        num_warps=4,
        enable_fp_fusion=False,
    )
