"""Scores of clips against the ground truth, for the logs of runs and for benchmarks."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from ultraflash_cli.errors import UsageError
from ultraflash_cli.metrics.lpips import learned_distance, weights_path
from ultraflash_cli.train.losses import luma

__all__ = ["Scores", "change_error", "edge_energy", "mean_scores", "scores_of"]


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Scores of RGB frames in [0, 1] against the true ones."""

    psnr: float
    """Signal-to-noise ratio in dB."""
    lpips: float | None
    """Learned distance (AlexNet) of two frames of the clip; None without its weights."""
    edges: float
    """Ratio of the finest detail's energy to that of the ground truth; 1 is ideal,
    lower is softer."""
    change: float
    """Root mean square error of the change between frames, luma, in 8-bit levels."""

    def __str__(self) -> str:
        lpips = "" if self.lpips is None else f"LPIPS {self.lpips:.4f}, "
        return f"PSNR {self.psnr:.2f} dB, {lpips}edges {self.edges:.2f}, change {self.change:.2f}"


@torch.no_grad()
def scores_of(frames_bcthw: Tensor, truth_bcthw: Tensor, dtype: torch.dtype = torch.float32) -> Scores:
    """Return the scores of clips of equal shape; the learned distance is computed in
    ``dtype``."""
    out, truth = frames_bcthw.float().clamp(0, 1), truth_bcthw.float()
    count = truth.shape[2]
    shown = [count // 5, 4 * count // 5]
    lpips = None
    if _has_likeness():
        lpips = float(learned_distance(out[:, :, shown], truth[:, :, shown], dtype=dtype).mean())
    return Scores(
        psnr=-10 * float(torch.log10((out - truth).square().mean().clamp_min(1e-10))),
        lpips=lpips,
        edges=edge_energy(out) / max(edge_energy(truth), 1e-12),
        change=change_error(out, truth),
    )


def change_error(frames_bcthw: Tensor, truth_bcthw: Tensor) -> float:
    """Return the root mean square error of the change of luma from frame to frame, in
    8-bit levels; 0 for a single frame. Frames are RGB in [0, 1]."""
    if frames_bcthw.shape[2] == 1:
        return 0.0
    changes = luma(frames_bcthw).diff(dim=2) - luma(truth_bcthw).diff(dim=2)
    return 255 * float(changes.square().mean().sqrt())


def edge_energy(frames_bcthw: Tensor) -> float:
    """Return the mean square of luma's Laplacian."""
    y = luma(frames_bcthw.float())
    inner = 4 * y[..., 1:-1, 1:-1]
    around = y[..., :-2, 1:-1] + y[..., 2:, 1:-1] + y[..., 1:-1, :-2] + y[..., 1:-1, 2:]
    return float((inner - around).square().mean())


def mean_scores(scores: Sequence[Scores]) -> Scores:
    """Return the mean of each number."""
    names = ("psnr", "edges", "change")
    means = {name: float(np.mean([asdict(each)[name] for each in scores])) for name in names}
    known = [each.lpips for each in scores if each.lpips is not None]
    return Scores(**means, lpips=float(np.mean(known)) if known else None)


def _has_likeness() -> bool:
    try:
        weights_path()
    except UsageError:
        return False
    return True
