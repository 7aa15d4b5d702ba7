"""Rotary position embedding over (frame, row, column), in interleaved pairs."""

import torch
from torch import Tensor

__all__ = ["rotate", "rotation_table"]

THETA = 10000.0


def _turns(first: int | Tensor, count: int, pairs: int, device: torch.device) -> Tensor:
    """Unit complex numbers [count, pairs] for positions first, first + 1, ...; evaluated in float64."""
    position = torch.arange(count, dtype=torch.float64, device=device) + first
    speed = THETA ** (-torch.arange(pairs, dtype=torch.float64, device=device) / max(pairs, 1))
    angle = position[:, None] * speed
    return torch.polar(torch.ones_like(angle), angle).to(torch.complex64)


def rotation_table(
    head_width: int, *, first_frame: int | Tensor, frames: int, rows: int, cols: int, device: torch.device
) -> Tensor:
    """Return unit complex numbers ``[frames, rows, cols, head_width / 2]``.

    A third of the pairs (rounded down) turns with the row, as many with the column, the rest with the absolute
    frame index ``first_frame + f``. On the device as a 0-dimensional tensor it is read there, as a graph needs it.
    """
    pairs, side = head_width // 2, head_width // 6
    table = torch.empty(frames, rows, cols, pairs, dtype=torch.complex64, device=device)
    table[..., : pairs - 2 * side] = _turns(first_frame, frames, pairs - 2 * side, device)[:, None, None]
    table[..., pairs - 2 * side : pairs - side] = _turns(0, rows, side, device)[None, :, None]
    table[..., pairs - side :] = _turns(0, cols, side, device)[None, None]
    return table


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Turn the pairs (2i, 2i + 1) of ``x [..., D]`` by ``table [..., D / 2]``, in float32; returned contiguous."""
    wide = x.to(torch.float32, memory_format=torch.contiguous_format)
    turned = torch.view_as_complex(wide.unflatten(-1, (-1, 2))) * table
    return torch.view_as_real(turned).flatten(-2).to(x.dtype)
