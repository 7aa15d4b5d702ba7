"""The learned distance of `metrics.lpips` in training: as a reward, and on random views
of frames, which a network cannot deceive."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ultraflash_cli.engine.schedule import FRAMES_PER_LATENT
from ultraflash_cli.metrics.lpips import Trunk, learned_distance, weights_path

__all__ = ["LearnedLikeness", "random_views", "viewed_distance"]


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


def random_views(
    frames_n3hw: Tensor, truth_n3hw: Tensor, rng: torch.Generator, *, side_px: int, zoom: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """Return both pictures ``[N, 3, side_px, side_px]`` under the same random rotation,
    mirroring, zoom (its range is given in octaves) and shift, resampled bicubically.

    A network that is trained on a learned distance finds patterns, such as hatching
    along edges, that its features mistake for texture at one orientation and size.
    Random views of both pictures keep the distance, but not those patterns.

    Source: M. Kettunen, E. Härkönen, J. Lehtinen, *E-LPIPS: robust perceptual image
    similarity via random transformation ensembles*, 2019.
    """
    count, _, height, width = frames_n3hw.shape
    angle, octaves, mirror, down, right = torch.rand((5, count), generator=rng)
    turn, scale = 2 * math.pi * angle, side_px / 2 ** (zoom[0] + (zoom[1] - zoom[0]) * octaves)
    cos, sin, flip = turn.cos() * scale, turn.sin() * scale, 2 * (mirror < 0.5) - 1
    rows = torch.stack([flip * cos / width, -sin / width, (2 * right - 1) * (1 - scale / width).clamp_min(0)], dim=1)
    columns = torch.stack(
        [flip * sin / height, cos / height, (2 * down - 1) * (1 - scale / height).clamp_min(0)], dim=1
    )
    affine = torch.stack([rows, columns], dim=1).to(frames_n3hw.device)
    grid = F.affine_grid(affine, [count, 3, side_px, side_px], align_corners=False)
    return (
        F.grid_sample(frames_n3hw.float(), grid, mode="bicubic", padding_mode="reflection", align_corners=False),
        F.grid_sample(truth_n3hw.float(), grid, mode="bicubic", padding_mode="reflection", align_corners=False),
    )


def viewed_distance(
    frames_bcthw: Tensor,
    truth_bcthw: Tensor,
    trunks: Sequence[Trunk],
    rng: torch.Generator,
    *,
    side_px: int | None,
    zoom: tuple[float, float],
    dtype: torch.dtype,
) -> tuple[Trunk, Tensor]:
    """Return the mean learned distance of one random frame of every clip on a random
    view (``side_px`` None: on the whole frame), and which of ``trunks``, picked at
    random, has measured it."""
    at = int(torch.randint(truth_bcthw.shape[2], (1,), generator=rng))
    trunk = trunks[int(torch.randint(len(trunks), (1,), generator=rng))]
    seen, wanted = frames_bcthw[:, :, at].clamp(0, 1), truth_bcthw[:, :, at]
    if side_px is not None:
        seen, wanted = random_views(seen, wanted, rng, side_px=side_px, zoom=zoom)
    return trunk, learned_distance(seen[:, :, None], wanted[:, :, None], trunk, dtype).mean()
