"""RMS norm of rows in one pass: each program holds a few whole rows."""

# pyright: reportMissingParameterType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# Triton allows no annotation but constexpr on a kernel's parameters, and takes options
# such as num_warps beside them.

import torch
import triton
import triton.language as tl
from torch import Tensor

from ultraflash_kernels.dispatch import on_its_device, power_of_two

__all__ = ["norm", "norm_kernel"]


@triton.jit
def norm_kernel(
    x,
    weight,
    out,
    rows,
    x_row,
    eps,
    WIDTH: tl.constexpr,
    BT: tl.constexpr,
    BD: tl.constexpr,
):
    """Normalise ``BT`` rows of ``x [rows, WIDTH]`` with stride ``x_row``; ``out`` is
    contiguous."""
    like: tl.constexpr = x.dtype.element_ty
    row = tl.program_id(0).to(tl.int64) * BT + tl.arange(0, BT)  # [BT]
    col = tl.arange(0, BD)  # [BD]
    inside = (row < rows)[:, None] & (col < WIDTH)[None, :]  # [BT, BD]
    wide = tl.load(x + row[:, None] * x_row + col[None, :], mask=inside, other=0.0)
    wide = wide.to(tl.float32)
    mean = tl.sum(wide * wide, axis=1) * (1.0 / WIDTH)  # [BT]
    normed = (wide * tl.rsqrt(mean + eps)[:, None]).to(like).to(tl.float32)
    weights = tl.load(weight + col, mask=col < WIDTH, other=0.0).to(tl.float32)  # [BD]
    y = (normed * weights[None, :]).to(like)
    tl.store(out + row[:, None] * WIDTH + col[None, :], y, mask=inside)


@on_its_device
def norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See ``op.rms_norm``; nothing is checked here."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    width = x.shape[-1]
    flat = x.reshape(-1, width)
    flat = flat if flat.stride(1) == 1 else flat.contiguous()
    rows = flat.shape[0]
    if not out.numel():
        return out

    block = power_of_two(width)
    tile = max(1, min(4, 8192 // block))
    norm_kernel[(triton.cdiv(rows, tile),)](
        flat,
        weight.contiguous(),
        out,
        rows,
        flat.stride(0),
        eps,
        WIDTH=width,
        BT=tile,
        BD=block,
        num_warps=8,
        enable_fp_fusion=False,
    )
    return out
