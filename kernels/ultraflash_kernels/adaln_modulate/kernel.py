"""Layer norm, modulation and gated sum, one pass over the rows each."""

# pyright: reportMissingParameterType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# Triton allows no annotation but constexpr on a kernel's parameters, and takes options
# such as num_warps beside them.

import torch
import triton
import triton.language as tl
from torch import Tensor

from ultraflash_kernels.dispatch import on_its_device, power_of_two
from ultraflash_kernels.fp8_linear.kernel import to_e4m3

__all__ = [
    "gate",
    "gate_kernel",
    "modulate",
    "modulate_fp8",
    "modulate_kernel",
    "residual_norm",
    "residual_norm_kernel",
]


@triton.jit
def _rounded(x, like: tl.constexpr, ROUNDS: tl.constexpr):
    """Round ``x`` (float32) to the dtype of ``like`` if the reference computes in
    it."""
    return x.to(like).to(tl.float32) if ROUNDS else x


@triton.jit
def _vector(at, col, WIDTH: tl.constexpr):
    """Load the vector ``[BD]`` at ``at``, in float32."""
    return tl.load(at + col, mask=col < WIDTH, other=0.0).to(tl.float32)


@triton.jit
def _moved(rows, offset, col, WIDTH: tl.constexpr, MOVED: tl.constexpr):
    """Add the vector at ``offset`` to ``rows [BT, BD]`` (float32) if ``MOVED``."""
    return rows + _vector(offset, col, WIDTH)[None, :] if MOVED else rows


@triton.jit
def _normed(rows, inside, eps, WIDTH: tl.constexpr):
    """Normalise ``rows [BT, BD]`` (float32) without weights; zero outside."""
    mean = tl.sum(rows, axis=1) * (1.0 / WIDTH)  # [BT]
    centred = tl.where(inside, rows - mean[:, None], 0.0)
    variance = tl.sum(centred * centred, axis=1) * (1.0 / WIDTH)  # [BT]
    return centred * tl.rsqrt(variance + eps)[:, None]


@triton.jit
def _modulated(normed, gain, lift, like: tl.constexpr, ROUNDS: tl.constexpr):
    """Scale and shift normed rows ``[BT, BD]``, rounded as the reference rounds."""
    normed = normed.to(like).to(tl.float32)
    gain = _rounded(1.0 + gain, like, ROUNDS)
    return (_rounded(normed * gain[None, :], like, ROUNDS) + lift[None, :]).to(like)


@triton.jit
def _weighted(
    normed, gain, lift, like: tl.constexpr, AFFINE: tl.constexpr, ROUNDS: tl.constexpr
):
    """Apply to normed rows ``[BT, BD]`` the weight and bias of a norm if ``AFFINE``,
    else scale and shift."""
    if AFFINE:
        y = (normed * gain[None, :] + lift[None, :]).to(like)
    else:
        y = _modulated(normed, gain, lift, like, ROUNDS)
    return y


@triton.jit
def _store(y, to, scales_to, inside, live, FP8: tl.constexpr):
    """Write rows ``y [BT, BD]``, quantised if ``FP8``; the ``live`` ones exist."""
    if FP8:
        scaled, scales = to_e4m3(tl.where(inside, y.to(tl.float32), 0.0))
        tl.store(to, scaled.to(to.dtype.element_ty), mask=inside)
        tl.store(scales_to, scales, mask=live)
    else:
        tl.store(to, y, mask=inside)


@triton.jit
def modulate_kernel(
    x,
    offset,
    shift,
    scale,
    out,
    out_scales,
    rows,
    x_group,
    x_row,
    shift_group,
    scale_group,
    eps,
    WIDTH: tl.constexpr,
    BT: tl.constexpr,
    BD: tl.constexpr,
    MOVED: tl.constexpr,
    AFFINE: tl.constexpr,
    ROUNDS: tl.constexpr,
    FP8: tl.constexpr,
):
    """Compute rows of one group of ``x [groups, rows, WIDTH]``, to which ``offset
    [WIDTH]`` is added first if ``MOVED``; ``out`` and ``out_scales`` are contiguous."""
    like: tl.constexpr = x.dtype.element_ty
    group = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0).to(tl.int64) * BT + tl.arange(0, BT)  # [BT]
    col = tl.arange(0, BD)  # [BD]
    inside = (row < rows)[:, None] & (col < WIDTH)[None, :]  # [BT, BD]
    wide = tl.load(
        x + group * x_group + row[:, None] * x_row + col[None, :], mask=inside, other=0.0
    ).to(tl.float32)
    wide = _moved(wide, offset, col, WIDTH, MOVED)
    normed = _normed(wide, inside, eps, WIDTH)
    gain = _vector(scale + group * scale_group, col, WIDTH)
    lift = _vector(shift + group * shift_group, col, WIDTH)
    y = _weighted(normed, gain, lift, like, AFFINE, ROUNDS)

    place = group * rows + row  # [BT]
    to = out + place[:, None] * WIDTH + col[None, :]
    _store(y, to, out_scales + place, inside, row < rows, FP8)


@triton.jit
def gate_kernel(
    x,
    y,
    gates,
    offset,
    out,
    rows,
    x_group,
    x_row,
    y_group,
    y_row,
    gates_group,
    WIDTH: tl.constexpr,
    BT: tl.constexpr,
    BD: tl.constexpr,
    MOVED: tl.constexpr,
    ROUNDS: tl.constexpr,
):
    """Add rows of one group of ``x, y [groups, rows, WIDTH]``, and ``offset [WIDTH]``
    if ``MOVED``; ``out`` is contiguous."""
    like: tl.constexpr = x.dtype.element_ty
    group = tl.program_id(2).to(tl.int64)
    row = tl.program_id(0).to(tl.int64) * BT + tl.arange(0, BT)  # [BT]
    col = tl.program_id(1) * BD + tl.arange(0, BD)  # [BD]
    inside = (row < rows)[:, None] & (col < WIDTH)[None, :]  # [BT, BD]
    kept = tl.load(
        x + group * x_group + row[:, None] * x_row + col[None, :], mask=inside, other=0.0
    ).to(tl.float32)
    added = tl.load(
        y + group * y_group + row[:, None] * y_row + col[None, :], mask=inside, other=0.0
    ).to(tl.float32)
    kept = _moved(kept, offset, col, WIDTH, MOVED)
    weight = _vector(gates + group * gates_group, col, WIDTH)
    total = kept + _rounded(added * weight[None, :], like, ROUNDS)
    tl.store(
        out + (group * rows + row)[:, None] * WIDTH + col[None, :],
        total.to(like),
        mask=inside,
    )


@triton.jit
def residual_norm_kernel(
    x,
    y,
    gates,
    offset,
    shift,
    scale,
    total_out,
    out,
    out_scales,
    rows,
    x_group,
    x_row,
    y_group,
    y_row,
    gates_group,
    shift_group,
    scale_group,
    eps,
    WIDTH: tl.constexpr,
    BT: tl.constexpr,
    BD: tl.constexpr,
    GATED: tl.constexpr,
    MOVED: tl.constexpr,
    AFFINE: tl.constexpr,
    ROUNDS_SUM: tl.constexpr,
    ROUNDS: tl.constexpr,
    FP8: tl.constexpr,
):
    """Add rows of one group of ``x, y [groups, rows, WIDTH]`` like ``gate_kernel`` and
    norm the sum like ``modulate_kernel``, or with weights if ``AFFINE``; outputs are
    contiguous."""
    like: tl.constexpr = x.dtype.element_ty
    group = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0).to(tl.int64) * BT + tl.arange(0, BT)  # [BT]
    col = tl.arange(0, BD)  # [BD]
    inside = (row < rows)[:, None] & (col < WIDTH)[None, :]  # [BT, BD]
    kept = tl.load(
        x + group * x_group + row[:, None] * x_row + col[None, :], mask=inside, other=0.0
    ).to(tl.float32)
    added = tl.load(
        y + group * y_group + row[:, None] * y_row + col[None, :], mask=inside, other=0.0
    ).to(tl.float32)
    kept = _moved(kept, offset, col, WIDTH, MOVED)
    if GATED:
        weight = _vector(gates + group * gates_group, col, WIDTH)
        added = _rounded(added * weight[None, :], like, ROUNDS_SUM)
    total = (kept + added).to(like)  # [BT, BD]
    place = group * rows + row  # [BT]
    at = place[:, None] * WIDTH + col[None, :]
    tl.store(total_out + at, total, mask=inside)

    normed = _normed(total.to(tl.float32), inside, eps, WIDTH)
    gain = _vector(scale + group * scale_group, col, WIDTH)
    lift = _vector(shift + group * shift_group, col, WIDTH)
    y = _weighted(normed, gain, lift, like, AFFINE, ROUNDS)
    _store(y, out + at, out_scales + place, inside, row < rows, FP8)


def modulate(
    x: Tensor,
    shift: Tensor,
    scale: Tensor,
    eps: float,
    offset: Tensor | None = None,
    affine: bool = False,
) -> Tensor:
    """See ``op.adaln_modulate``; nothing is checked here."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _modulate(x, shift, scale, eps, out, None, offset=offset, affine=affine)
    return out


def modulate_fp8(
    x: Tensor, shift: Tensor, scale: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """See ``op.adaln_modulate_fp8``; nothing is checked here."""
    out = torch.empty(x.shape, dtype=torch.float8_e4m3fn, device=x.device)
    scales = torch.empty((*x.shape[:-1], 1), dtype=torch.float32, device=x.device)
    _modulate(x, shift, scale, eps, out, scales)
    return out, scales


@on_its_device
def gate(x: Tensor, y: Tensor, gates: Tensor, offset: Tensor | None = None) -> Tensor:
    """See ``op.gated_residual``; nothing is checked here."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if not x.numel():
        return out

    x, y, gates = _grouped(x, gates), _grouped(y, gates), _rows_of(gates)
    groups, rows, width = x.shape
    block = min(1024, power_of_two(width))
    tile = 4096 // block if block < 1024 else 4
    gate_kernel[(triton.cdiv(rows, tile), triton.cdiv(width, block), groups)](
        x,
        y,
        gates,
        _or_any(offset, gates),
        out,
        rows,
        x.stride(0),
        x.stride(1),
        y.stride(0),
        y.stride(1),
        gates.stride(0),
        WIDTH=width,
        BT=tile,
        BD=block,
        MOVED=offset is not None,
        ROUNDS=gates.dtype == x.dtype,
        num_warps=8,
        enable_fp_fusion=False,
    )
    return out


@on_its_device
def _modulate(
    x: Tensor,
    shift: Tensor,
    scale: Tensor,
    eps: float,
    out: Tensor,
    out_scales: Tensor | None,
    *,
    offset: Tensor | None = None,
    affine: bool = False,
) -> None:
    if not x.numel():
        return

    x, shift, scale = _grouped(x, scale), _rows_of(shift), _rows_of(scale)
    groups, rows, width = x.shape
    block = power_of_two(width)
    tile = max(1, min(4, 8192 // block))
    modulate_kernel[(triton.cdiv(rows, tile), groups)](
        x,
        _or_any(offset, scale),
        shift,
        scale,
        out,
        out if out_scales is None else out_scales,
        rows,
        x.stride(0),
        x.stride(1),
        shift.stride(0),
        scale.stride(0),
        eps,
        WIDTH=width,
        BT=tile,
        BD=block,
        MOVED=offset is not None,
        AFFINE=affine,
        ROUNDS=scale.dtype == x.dtype,
        FP8=out_scales is not None,
        num_warps=8,
        enable_fp_fusion=False,
    )


@on_its_device
def residual_norm(
    x: Tensor,
    y: Tensor,
    gates: Tensor | None,
    shift: Tensor,
    scale: Tensor,
    eps: float,
    affine: bool,
    fp8: bool,
    offset: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """See ``op.residual_norm``; nothing is checked here. Scales are empty without
    ``fp8``."""
    total = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    out = torch.empty(
        x.shape, dtype=torch.float8_e4m3fn if fp8 else x.dtype, device=x.device
    )
    scales = torch.empty(
        (*x.shape[:-1], 1) if fp8 else (0,), dtype=torch.float32, device=x.device
    )
    if not x.numel():
        return total, out, scales

    # Vectors of the norm and of the gate may have different leading axes.
    by = gates if gates is not None else x.new_empty((1, x.shape[-1]))
    by = by if affine else scale
    rounds_sum = gates is not None and gates.dtype == x.dtype
    x, y = _grouped(x, by), _grouped(y, by)
    groups, rows, width = x.shape
    shift, scale = _rows_of(shift), _rows_of(scale)
    gate_rows = scale if gates is None else _rows_of(gates)

    block = power_of_two(width)
    tile = max(1, min(4, 8192 // block))
    residual_norm_kernel[(triton.cdiv(rows, tile), groups)](
        x,
        y,
        gate_rows,
        _or_any(offset, scale),
        shift,
        scale,
        total,
        out,
        scales,
        rows,
        x.stride(0),
        x.stride(1),
        y.stride(0),
        y.stride(1),
        gate_rows.stride(0),
        0 if affine else shift.stride(0),
        0 if affine else scale.stride(0),
        eps,
        WIDTH=width,
        BT=tile,
        BD=block,
        GATED=gates is not None,
        MOVED=offset is not None,
        AFFINE=affine,
        ROUNDS_SUM=rounds_sum,
        ROUNDS=scale.dtype == x.dtype,
        FP8=fp8,
        num_warps=8,
        enable_fp_fusion=False,
    )
    return total, out, scales


def _or_any(offset: Tensor | None, vectors: Tensor) -> Tensor:
    """Return ``offset [D]`` contiguous; for None a tensor that the kernel does not
    read."""
    return vectors if offset is None else offset.contiguous()


def _grouped(x: Tensor, vectors: Tensor) -> Tensor:
    """View ``x [*L, *N, D]`` as [groups, rows, D] with D contiguous; copies only if
    necessary."""
    x = x.reshape(vectors.shape[:-1].numel(), -1, x.shape[-1])
    return x if x.stride(2) == 1 else x.contiguous()


def _rows_of(vectors: Tensor) -> Tensor:
    """View ``vectors [*L, D]`` as [groups, D] with D contiguous; copies only if
    necessary."""
    vectors = vectors.reshape(-1, vectors.shape[-1])
    return vectors if vectors.stride(1) == 1 else vectors.contiguous()
