"""Row-wise quantisation to 8-bit floating point in one pass over the rows."""

# pyright: reportMissingParameterType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# Triton allows no annotation but constexpr on a kernel's parameters, and takes options
# such as num_warps beside them.

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["quantise", "quantise_rows_kernel", "rounded_e4m3", "to_e4m3"]
from ultraflash_kernels.dispatch import on_its_device, power_of_two


@triton.jit
def to_e4m3(y):
    """Scale rows ``y [BT, BD]`` (float32, zero where masked) to +-448; return them in
    float32, and the scales [BT]."""
    scales = tl.div_rn(tl.maximum(tl.max(tl.abs(y), axis=1), 1e-12), 448.0)
    scaled = tl.div_rn(y, scales[:, None])
    return tl.clamp(scaled, -448.0, 448.0, propagate_nan=tl.PropagateNan.ALL), scales


@triton.jit
def rounded_e4m3(x):
    """Round float32 to the nearest float8_e4m3fn, ties to even.

    For the interpreter, whose cast to float8_e4m3fn loses a carry; a GPU's cast is
    correct.
    """
    bits = x.to(tl.int32, bitcast=True)
    bits = (bits + 0x7FFFF + ((bits >> 20) & 1)) & -0x100000
    # Below 2**-6 numbers are 2**-9 apart, as float32 ones are next to 24576.
    subnormal = (x + 24576.0) - 24576.0
    return tl.where(tl.abs(x) >= 0.015625, bits.to(tl.float32, bitcast=True), subnormal)


@triton.jit
def quantise_rows_kernel(
    x,
    values,
    scales,
    rows,
    x_row,
    WIDTH: tl.constexpr,
    BT: tl.constexpr,
    BD: tl.constexpr,
    GELU: tl.constexpr,
):
    """Quantise rows of ``x [rows, WIDTH]`` with stride ``x_row``, after GELU if
    ``GELU``; values and scales are contiguous."""
    row = tl.program_id(0).to(tl.int64) * BT + tl.arange(0, BT)  # [BT]
    col = tl.arange(0, BD)  # [BD]
    inside = (row < rows)[:, None] & (col < WIDTH)[None, :]  # [BT, BD]
    wide = tl.load(x + row[:, None] * x_row + col[None, :], mask=inside, other=0.0).to(
        tl.float32
    )
    if GELU:
        like: tl.constexpr = x.dtype.element_ty
        # x / 2 (1 + tanh u) is x / (1 + exp(-2u)).
        inner = 0.7978845608028654 * (wide + 0.044715 * wide * wide * wide)
        wide = (wide / (1.0 + tl.exp(-2.0 * inner))).to(like).to(tl.float32)
    scaled, scale = to_e4m3(wide)
    tl.store(
        values + row[:, None] * WIDTH + col[None, :],
        scaled.to(values.dtype.element_ty),
        mask=inside,
    )
    tl.store(scales + row, scale, mask=row < rows)


@on_its_device
def quantise(x: Tensor, *, gelu: bool = False) -> tuple[Tensor, Tensor]:
    """See ``op.quantise_rows`` and ``op.quantise_gelu_rows``; nothing is checked
    here."""
    width = x.shape[-1]
    flat = x.reshape(-1, width)
    flat = flat if flat.stride(1) == 1 else flat.contiguous()
    values = torch.empty(x.shape, dtype=torch.float8_e4m3fn, device=x.device)
    scales = torch.empty((*x.shape[:-1], 1), dtype=torch.float32, device=x.device)
    rows = flat.shape[0]
    if not rows:
        return values, scales

    block = power_of_two(width)
    tile = max(1, min(4, 8192 // block))
    quantise_rows_kernel[(triton.cdiv(rows, tile),)](
        flat,
        values,
        scales,
        rows,
        flat.stride(0),
        WIDTH=width,
        BT=tile,
        BD=block,
        GELU=gelu,
        num_warps=8,
        enable_fp_fusion=False,
    )
    return values, scales
