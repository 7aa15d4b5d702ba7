"""The frame type passed from decoder to encoder."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Frame"]


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """A picture with its time; the array must no longer be modified."""

    pts: int
    """Presentation time in ticks of the clip's time base."""
    duration: int
    """Duration in the same ticks."""
    rgb_hwc: "np.ndarray"
    """``[height, width, 3]`` in coded orientation, uint8 or uint16; for an encoder
    alternatively YUV 4:2:0 planes, ``[height * 3 / 2, width]``."""
    alpha_hw: "np.ndarray | None" = None
    """Opacity of each pixel, full range in the depth of ``rgb_hwc``; None if transparency is not kept."""

    @property
    def nbytes(self) -> int:
        """Size in bytes of the arrays."""
        return self.rgb_hwc.nbytes + (0 if self.alpha_hw is None else self.alpha_hw.nbytes)
