"""A reward for frames that look like the truth, by the learned distance of `metrics.lpips`."""

import torch
from torch import Tensor

from ultraflash_cli.engine.schedule import FRAMES_PER_LATENT
from ultraflash_cli.metrics.lpips import Trunk, learned_distance, weights_path

__all__ = ["LearnedLikeness"]


class LearnedLikeness:
    """Perceptual similarity to the ground truth; 1 is equal. Raises UsageError if the weights are not installed."""

    def __init__(self, *, tolerance: float = 0.25, trunk: Trunk = "alex", every: int = FRAMES_PER_LATENT + 1) -> None:
        """Take the distance ``tolerance`` for the one at which the score falls to 1/e.

        One frame in ``every`` is scored; by default one in five, so that each position within a latent has its turn.
        """
        self.path, self.tolerance = weights_path(trunk), tolerance
        self.trunk: Trunk = trunk
        self.every = every

    def score(self, frames_bcthw: Tensor, truth_bcthw: Tensor) -> Tensor:
        """Return ``[B, T / every, rounded up]`` in (0, 1], computed in the precision of autocast where that is on."""
        device = frames_bcthw.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else torch.float32
        frames, truth = (clip[:, :, :: self.every] for clip in (frames_bcthw, truth_bcthw))
        return torch.exp(-learned_distance(frames, truth, self.trunk, dtype) / self.tolerance)
