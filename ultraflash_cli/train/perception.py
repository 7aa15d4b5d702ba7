"""A reward for frames that look like the truth, by the learned distance of `metrics.lpips`."""

import torch
from torch import Tensor

from ultraflash_cli.metrics.lpips import Trunk, learned_distance, weights_path

__all__ = ["LearnedLikeness"]


class LearnedLikeness:
    """How alike frames and truth look; 1 is equal. Raises UsageError if the weights are not installed."""

    def __init__(self, *, tolerance: float = 0.05, trunk: Trunk = "alex") -> None:
        """Take the distance ``tolerance`` for the one at which the score falls to 1/e."""
        self.path, self.tolerance = weights_path(trunk), tolerance
        self.trunk: Trunk = trunk

    def score(self, frames_bcthw: Tensor, truth_bcthw: Tensor) -> Tensor:
        """Return ``[B, T]`` in (0, 1]."""
        distance = learned_distance(frames_bcthw, truth_bcthw, self.trunk)
        return torch.exp(-distance / self.tolerance)
