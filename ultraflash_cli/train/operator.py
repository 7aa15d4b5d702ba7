"""Base class of degradation operators."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = ["Clip", "Coder", "Operator"]

Clip = npt.NDArray[np.uint8]
"""RGB frames [T, H, W, 3]."""
Coder = Callable[[Tensor, float, torch.Generator], Tensor]
"""A function from frames ``[1, 3, T, H, W]`` in [0, 1], a strength s and a noise
generator to ``D(E(x) + s * eps)``."""


@dataclass(frozen=True, kw_only=True)
class Operator(ABC):
    """One step of a degradation."""

    name: ClassVar[str]

    @abstractmethod
    def run(self, x_tchw: Tensor, coder: Coder | None) -> Tensor:
        """Return the degraded clip, [T, 3, H, W] in [0, 1]."""
