"""Single frames of rendered scenes."""

import numpy as np
import numpy.typing as npt

from ultraflash_cli.train.drawing import Renderer
from ultraflash_cli.train.scenes import Scene

__all__ = ["render"]


def render(scene: Scene, second: float, *, height_px: int, width_px: int) -> npt.NDArray[np.uint8]:
    """Render a scene ``second`` seconds after its start."""
    return Renderer(scene, height_px=height_px, width_px=width_px).frame(second)
