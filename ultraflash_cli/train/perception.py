"""A reward for perceptual similarity to the ground truth, by the learned distance of
`metrics.lpips`."""

import torch
from torch import Tensor

from ultraflash_cli.engine.schedule import FRAMES_PER_LATENT
from ultraflash_cli.metrics.lpips import Trunk, learned_distance, weights_path

__all__ = ["LearnedLikeness"]


class LearnedLikeness:
    """Perceptual similarity to the ground truth; 1 is equal. Raises UsageError if the weights are not installed."""

    def __init__(self, *, tolerance: float = 0.25, trunk: Trunk = "alex", every: int = FRAMES_PER_LATENT + 1) -> None:
        """Score so that a distance of ``tolerance`` yields 1/e. Only one frame in
        ``every`` is scored, by default one in five, so that all positions within a
        latent occur.
        """
        self.path, self.tolerance = weights_path(trunk), tolerance
        self.trunk: Trunk = trunk
        self.every = every

    def score(self, frames_bcthw: Tensor, truth_bcthw: Tensor) -> Tensor:
        """Return scores ``[B, ceil(T / every)]`` in (0, 1], computed in the precision
        of autocast if it is on."""
        device = frames_bcthw.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else torch.float32
        frames, truth = (clip[:, :, :: self.every] for clip in (frames_bcthw, truth_bcthw))
        return torch.exp(-learned_distance(frames, truth, self.trunk, dtype) / self.tolerance)
