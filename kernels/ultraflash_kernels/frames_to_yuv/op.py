"""Convert RGB frames to YUV 4:2:0 planes in 8 or 10 bits on their own device, which
halves the bytes to transfer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ultraflash_kernels.dispatch import Impl, chooses_triton
from ultraflash_kernels.frames_to_yuv import reference
from ultraflash_kernels.frames_to_yuv.levels import Levels

__all__ = ["Matrix", "YuvPlanes", "frames_to_yuv"]

Matrix = Literal["bt601", "bt709", "bt2020nc"]

RED_BLUE: dict[Matrix, tuple[float, float]] = {
    "bt601": (0.299, 0.114),
    "bt709": (0.2126, 0.0722),
    "bt2020nc": (0.2627, 0.0593),
}
"""Weights of red and blue in luma (ITU-R BT.601, BT.709, BT.2020 with non-constant
luminance)."""


@dataclass(frozen=True)
class YuvPlanes:
    """Frames as planes in one contiguous buffer, frame by frame, so that a single copy
    moves them to the host."""

    packed: Tensor
    """``[N, height * width + 2 * rows * cols]``: luma, blue and red difference; uint8,
    or uint16 for 10 bits."""
    height_px: int
    width_px: int

    @property
    def chroma_px(self) -> tuple[int, int]:
        """Height and width of the chroma planes; odd sizes are rounded up."""
        return (self.height_px + 1) // 2, (self.width_px + 1) // 2

    @property
    def y(self) -> Tensor:
        """``[N, height, width]``."""
        return self._plane(0, self.height_px, self.width_px)

    @property
    def u(self) -> Tensor:
        """Blue difference, ``[N, rows, cols]``."""
        return self._plane(self.height_px * self.width_px, *self.chroma_px)

    @property
    def v(self) -> Tensor:
        """Red difference, ``[N, rows, cols]``."""
        rows, cols = self.chroma_px
        return self._plane(self.height_px * self.width_px + rows * cols, rows, cols)

    def _plane(self, first: int, rows: int, cols: int) -> Tensor:
        return self.packed[:, first : first + rows * cols].unflatten(1, (rows, cols))


def frames_to_yuv(
    frames_nchw: Tensor,
    *,
    matrix: Matrix = "bt709",
    full_range: bool = False,
    bits: int = 8,
    impl: Impl = "auto",
) -> YuvPlanes:
    """Convert ``frames_nchw [N, 3, H, W]``, red first, of any floating dtype; values
    are clamped to [0, 1], NaN is 0.

    Luma is ``kr R + kg G + kb B``. Chroma samples are positioned at the left of their
    two columns and between their two rows (MPEG-2): they are the mean over two rows,
    with weights of 1, 2, 1 over columns around the even ones; edges are replicated. A
    sample is ``floor(level + 1/2)``. Everything is computed in float32. Raises
    ValueError for invalid arguments.
    """
    if frames_nchw.ndim != 4 or frames_nchw.shape[1] != 3 or 0 in frames_nchw.shape[2:]:
        raise ValueError(
            f"frames_to_yuv: frames must be [N, 3, H, W], got {list(frames_nchw.shape)}"
        )
    if not frames_nchw.is_floating_point() or bits not in (8, 10):
        raise ValueError(
            f"frames_to_yuv: floating point to 8 or 10 bits, got {frames_nchw.dtype} to "
            f"{bits}"
        )
    if matrix not in RED_BLUE:
        raise ValueError(f"frames_to_yuv: unknown matrix {matrix!r}")

    count, _, height, width = frames_nchw.shape
    samples = height * width + 2 * ((height + 1) // 2) * ((width + 1) // 2)
    dtype = torch.uint8 if bits == 8 else torch.uint16
    out = torch.empty((count, samples), dtype=dtype, device=frames_nchw.device)
    planes = YuvPlanes(out, height, width)
    levels = _levels(matrix, full_range, bits)
    work = frames_nchw.detach()
    double = "it computes in float32, got float64." if work.dtype == torch.float64 else None
    if chooses_triton("frames_to_yuv", impl, work, out, refusal=double):
        _write(work, planes.packed, list(levels))
    else:
        reference.forward(work, (planes.y, planes.u, planes.v), levels)
    return planes


def _levels(matrix: Matrix, full_range: bool, bits: int) -> Levels:
    red, blue = RED_BLUE[matrix]
    step, top = 1 << (bits - 8), (1 << bits) - 1
    luma, chroma = (top, top) if full_range else (219 * step, 224 * step)
    return Levels(
        red=red,
        green=1 - red - blue,
        blue=blue,
        luma=float(luma),
        black=0.0 if full_range else 16.0 * step,
        blue_difference=chroma / (2 * (1 - blue)),
        red_difference=chroma / (2 * (1 - red)),
        grey=128.0 * step,
        top=float(top),
    )


@torch.library.custom_op("ultraflash::frames_to_yuv", mutates_args=("packed",))
def _write(frames_nchw: Tensor, packed: Tensor, levels: Sequence[float]) -> None:
    from ultraflash_kernels.frames_to_yuv import kernel

    kernel.forward(frames_nchw, packed, Levels(*levels))
