"""The reference of ``rms_norm_rope`` in plain PyTorch."""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["forward"]

Three = tuple[int, int, int]


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    turns: Tensor,
    pairs: Three,
    positions: Three,
    size: Three,
    block: Three,
    eps: float,
    out: tuple[Tensor, Tensor, Tensor] | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """See ``op.rms_norm_rope``; nothing is checked here. Differentiable without a
    destination."""
    counts = [-(-n // b) for n, b in zip(size, block, strict=True)]
    cuts = [n * p for n, p in zip(positions, pairs, strict=True)]
    axes = [
        axis.view(n, p)
        for axis, n, p in zip(
            torch.view_as_complex(turns).split(cuts), positions, pairs, strict=True
        )
    ]
    table = _in_blocks(_table(axes, counts, block), counts, block)  # [blocks, T, d / 2]
    heads = q.shape[-1] // (2 * table.shape[-1])
    made = (
        _turned(_split(_normed(q, q_weight, eps), heads), table),
        _turned(_split(_normed(k, k_weight, eps), heads), table),
        _split(v, heads),
    )
    if any(n % b for n, b in zip(size, block, strict=True)):
        padding = _padding(size, counts, block, q.device)
        made = tuple(x.masked_fill(padding[..., None], 0.0) for x in made)

    if out is None:
        return made[0].contiguous(), made[1].contiguous(), made[2].contiguous()

    for to, x in zip(out, made, strict=True):
        to.copy_(x)
    return out


def _table(axes: Sequence[Tensor], counts: Sequence[int], block: Three) -> Tensor:
    """Return rotations [frames, rows, cols, d / 2] of all tokens, including padding;
    values beyond a table are arbitrary."""
    sides = [n * b for n, b in zip(counts, block, strict=True)]
    parts = [
        axis[torch.arange(side, device=axis.device).clamp(max=len(axis) - 1)]
        for axis, side in zip(axes, sides, strict=True)
    ]
    frames, rows, cols = parts
    wide = (frames[:, None, None], rows[None, :, None], cols[None, None])
    return torch.cat([part.expand(*sides, -1) for part in wide], dim=-1)


def _padding(
    size: Three, counts: Sequence[int], block: Three, device: torch.device
) -> Tensor:
    """Return a mask [blocks, T] of the tokens that are padding."""
    sides = [n * b for n, b in zip(counts, block, strict=True)]
    real = torch.zeros(*sides, 1, dtype=torch.bool, device=device)
    real[: size[0], : size[1], : size[2]] = True
    return ~_in_blocks(real, counts, block)[..., 0]


def _in_blocks(x: Tensor, counts: Sequence[int], block: Three) -> Tensor:
    """Rearrange ``x [frames, rows, cols, C]`` to [blocks, T, C]."""
    (nt, ny, nx), (bt, by, bx) = counts, block
    x = x.view(nt, bt, ny, by, nx, bx, x.shape[-1]).permute(0, 2, 4, 1, 3, 5, 6)
    return x.reshape(nt * ny * nx, bt * by * bx, x.shape[-1])


def _normed(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.contiguous().to(_wide(x))
    return (wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)).to(
        x.dtype
    ) * weight


def _wide(x: Tensor) -> torch.dtype:
    return x.dtype if x.dtype == torch.float64 else torch.float32


def _split(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).permute(0, 3, 1, 2, 4)


def _turned(x: Tensor, table: Tensor) -> Tensor:
    wide = x.to(_wide(x), memory_format=torch.contiguous_format)
    turned = torch.view_as_complex(wide.unflatten(-1, (-1, 2))) * table
    return torch.view_as_real(turned).flatten(-2).to(x.dtype)
