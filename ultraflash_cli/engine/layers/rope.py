"""Rotation tables of the rotary position embedding over (frame, row, column), in
interleaved pairs."""

import torch
from torch import Tensor

from ultraflash_kernels.rms_norm_rope import AxisTables

__all__ = ["rotation_tables"]

THETA = 10000.0


def _turns(first: int | Tensor, count: int, pairs: int, device: torch.device) -> Tensor:
    """Return unit complex numbers [count, pairs] for positions first, first + 1, ...,
    evaluated in float64."""
    position = torch.arange(count, dtype=torch.float64, device=device) + first
    speed = THETA ** (
        -torch.arange(pairs, dtype=torch.float64, device=device) / max(pairs, 1)
    )
    angle = position[:, None] * speed
    return torch.polar(torch.ones_like(angle), angle).to(torch.complex64)


def rotation_tables(
    head_width: int,
    *,
    first_frame: int | Tensor,
    frames: int,
    rows: int,
    cols: int,
    device: torch.device,
) -> AxisTables:
    """Return the rotations of ``frames`` x ``rows`` x ``cols`` tokens, starting at
    ``first_frame``. A third of the pairs (rounded down) is rotated by row, as many by
    column, and the rest by absolute frame index. ``first_frame`` may be a 0-dimensional
    tensor on the device, as CUDA graphs require.
    """
    pairs, side = head_width // 2, head_width // 6
    return AxisTables.of(
        _turns(first_frame, frames, pairs - 2 * side, device),
        _turns(0, rows, side, device),
        _turns(0, cols, side, device),
    )
