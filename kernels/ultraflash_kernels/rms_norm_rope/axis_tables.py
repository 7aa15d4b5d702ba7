"""Rotations of the rotary embedding by frame, row and column."""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["AxisTables"]


@dataclass(frozen=True)
class AxisTables:
    """Rotations of the rotary embedding by frame, by row and by column; its size does
    not grow with their product."""

    turns: Tensor
    """``[frames * pt + rows * ps + cols * ps, 2]`` float32: cosine and sine, by axis
    and position."""
    positions: tuple[int, int, int]
    """Number of frames, rows and columns covered."""
    pairs: tuple[int, int, int]
    """Pairs of channels of a head that are rotated by frame, row and column: pt, ps,
    ps."""

    @classmethod
    def of(cls, frames: Tensor, rows: Tensor, cols: Tensor) -> "AxisTables":
        """Join unit complex numbers ``[positions, pairs]`` of the three axes.

        A graph captured with ``turns`` uses new positions once they are copied into it.
        """
        axes = (frames, rows, cols)
        if any(axis.ndim != 2 or not axis.is_complex() for axis in axes):
            raise ValueError(
                "tables must be complex [positions, pairs], got "
                f"{[list(axis.shape) for axis in axes]}"
            )
        turns = torch.cat(
            [torch.view_as_real(axis.to(torch.complex64)).reshape(-1, 2) for axis in axes]
        )
        positions, pairs = zip(*(tuple(axis.shape) for axis in axes), strict=True)
        return cls(turns, positions, pairs)

    @property
    def head_width(self) -> int:
        """Number of channels of a head."""
        return 2 * sum(self.pairs)
