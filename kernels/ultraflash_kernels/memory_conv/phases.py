"""Convolutions over doubled pictures as 2x2 convolutions over the original ones.

Pixel pairs of a doubled picture that share a window of two original pixels are those of
rows 2i - 1 and 2i, for i = 0..H, and of columns likewise. One convolution with 2x2
kernels over the picture padded by a pixel computes all four pixels of each pair of
pairs, its *phases*: ``[N, 4 * O, H + 1, W + 1]``, channels in the order (row, column,
O). Row -1 and row 2H lie outside of the doubled picture.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["head_taps", "interleave_", "phase_taps", "shuffle_", "without_border_"]


def phase_taps(weight: Tensor, growth: Tensor | None = None) -> Tensor:
    """Return the kernels ``[F, 4 * O, C, 2, 2]`` of the phases of ``conv(up(x), W)``,
    or with ``growth`` those of F pictures ``conv(up(conv(x, G_f)), W)``.

    ``weight`` is ``[O, K, 3, 3]``, ``growth`` is ``[F * K, C, 1, 1]``; without it F is
    1 and C is K. Taps that fall on the same original pixel are summed, and the two
    linear maps composed, in float64 (float32 where a device has none), then rounded
    once to the dtype of ``weight``.
    """
    outs, width = weight.shape[:2]
    wide = torch.float32 if weight.device.type == "mps" else torch.float64
    taps = weight.to(wide)
    if growth is None:
        taps = taps.unsqueeze(0)
    else:
        maps = growth.to(wide).flatten(1).unflatten(0, (-1, width))  # [F, K, C]
        taps = taps.permute(0, 2, 3, 1) @ maps[:, None, None]  # [F, O, 3, 3, C]
        taps = taps.permute(0, 1, 4, 2, 3)
    taps = _summed(
        _summed(taps, 3), 5
    )  # [F, O, C, 2, 2, 2, 2]: row, its tap, column, its tap
    taps = taps.permute(0, 3, 5, 1, 2, 4, 6).flatten(0, 3)
    taps = taps.to(weight.dtype).contiguous(memory_format=torch.channels_last)
    return taps.unflatten(0, (-1, 4 * outs))


def _summed(taps: Tensor, dim: int) -> Tensor:
    """Replace the axis of three taps by one of two phases and one of two taps."""
    before, here, after = taps.unbind(dim)
    first, second = (before + here, after), (before, here + after)
    return torch.stack([torch.stack(pair, dim) for pair in (first, second)], dim)


def head_taps(weight: Tensor) -> Tensor:
    """Return the kernels ``[P * 4, 4 * O, 2, 2]`` of a 3x3 convolution ``weight [P, O,
    3, 3]`` that reads phases.

    Its results are four pixels as consecutive channels, as ``pixel_shuffle`` expects
    them. The taps are those of ``weight`` and zeros.
    """
    grids = [F.pad(weight, (q, 1 - q, p, 1 - p)) for p in (0, 1) for q in (0, 1)]
    taps = torch.stack(grids, 1).unflatten(4, (2, 2)).unflatten(3, (2, 2))
    # [P, pixel, O, tap, row, tap, column] to [P, pixel, row, column, O, tap, tap]
    taps = taps.permute(0, 1, 4, 6, 2, 3, 5).flatten(2, 4).flatten(0, 1)
    return taps.contiguous(memory_format=torch.channels_last)


def interleave_(out_nchw: Tensor, phases: Tensor) -> None:
    """Write the pixels of ``phases [N, 4 * O, H + 1, W + 1]`` to their places in ``out
    [N, O, 2H, 2W]``."""
    height, width = (side // 2 for side in out_nchw.shape[2:])
    split = phases.unflatten(1, (2, 2, -1))
    for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):
        # The first row of a pair is odd: 2i - 1, and there is none at i = 0.
        top, left = 1 - row, 1 - column
        part = split[:, row, column, :, top : top + height, left : left + width]
        out_nchw[:, :, top::2, left::2].copy_(part)


def without_border_(phases: Tensor) -> Tensor:
    """Set the pixels of ``phases`` outside of the doubled picture to zero, which is the
    padding of the next convolution; returns ``phases``."""
    split = phases.unflatten(1, (2, 2, -1))
    split[:, 0, :, :, 0].zero_()
    split[:, 1, :, :, -1].zero_()
    split[:, :, 0, :, :, 0].zero_()
    split[:, :, 1, :, :, -1].zero_()
    return phases


def shuffle_(out_nchw: Tensor, pixels: Tensor) -> None:
    """Write ``pixels [N, P * 4, H, W]``, the four pixels of a pair of pairs as
    consecutive channels, to ``out [N, P, 2H, 2W]``."""
    split = pixels.unflatten(1, (-1, 2, 2)).permute(0, 1, 4, 2, 5, 3)
    out_nchw.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).copy_(split)
