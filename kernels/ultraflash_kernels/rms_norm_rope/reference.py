"""The definition of ``rms_norm_rope`` in plain PyTorch."""

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
    """See ``op.rms_norm_rope``; nothing is checked here. Differentiable where no destination is given."""
    places = _places(size, block, q.device)  # [blocks, T] of each axis
    padding = (places[0] >= size[0]) | (places[1] >= size[1]) | (places[2] >= size[2])
    cuts = [n * p for n, p in zip(positions, pairs, strict=True)]
    axes = torch.view_as_complex(turns).split(cuts)
    table = torch.cat(
        [
            axis.view(n, p)[place.clamp(max=n - 1)]
            for axis, n, p, place in zip(axes, positions, pairs, places, strict=True)
        ],
        dim=-1,
    )  # [blocks, T, d / 2]
    heads = q.shape[-1] // (2 * table.shape[-1])
    made = (
        _turned(_split(_normed(q, q_weight, eps), heads), table),
        _turned(_split(_normed(k, k_weight, eps), heads), table),
        _split(v, heads),
    )
    made = tuple(x.masked_fill(padding[..., None], 0.0) for x in made)
    if out is None:
        return made[0].contiguous(), made[1].contiguous(), made[2].contiguous()
    for to, x in zip(out, made, strict=True):
        to.copy_(x)
    return out


def _places(size: Three, block: Three, device: torch.device) -> tuple[Tensor, ...]:
    """Frame, row and column of every token in block order, padding included: three tensors [blocks, T]."""
    counts = [-(-n // b) for n, b in zip(size, block, strict=True)]
    lines = [torch.arange(n * b, device=device) for n, b in zip(counts, block, strict=True)]
    grids = torch.meshgrid(*lines, indexing="ij")
    nt, ny, nx = counts
    bt, by, bx = block
    return tuple(
        grid.view(nt, bt, ny, by, nx, bx).permute(0, 2, 4, 1, 3, 5).reshape(nt * ny * nx, bt * by * bx)
        for grid in grids
    )


def _normed(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.contiguous().float()
    return (wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)).to(x.dtype) * weight


def _split(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).permute(0, 3, 1, 2, 4)


def _turned(x: Tensor, table: Tensor) -> Tensor:
    wide = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(wide * table).flatten(-2).to(x.dtype)
