"""Pixel losses: luma, chroma, temporal and structural terms."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "PictureTerms",
    "charbonnier",
    "detail_loss",
    "information_loss",
    "luma",
    "picture_terms",
    "shuffle_loss",
    "spread_term",
    "temporal_loss",
    "to_ycbcr",
    "weave_loss",
]

STRUCTURE_STRIDE = 4
"""The structural terms are computed on one frame in four, because they are expensive."""

_FLOOR = 1 / 255
"""Amplitude of luma detail below which its spread does not matter."""

_RGB_TO_YCBCR = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))


@dataclass(frozen=True, kw_only=True)
class PictureTerms:
    """Weights of the terms relative to the luma error; structural terms of weight 0 are
    not computed."""

    chroma: float = 0.5
    """Weight of the chroma error."""
    temporal: float = 0.5
    """Weight of the frame-difference error."""
    temporal_knee: float = 1e-3
    """Frame-difference errors are squared below this value and absolute above it."""
    square: float = 0.0
    """Weight of the mean square error of luma, which large errors (edges) dominate."""
    information: float = 0.0
    """Weight of the lost visual information (luma)."""
    detail: float = 0.0
    """Weight of the lost detail (luma)."""


def picture_terms(out_bcthw: Tensor, target_bcthw: Tensor, weights: PictureTerms) -> dict[str, Tensor]:
    """Return the weighted loss terms between RGB clips in [0, 1] and their targets, in
    float32."""
    out, target = to_ycbcr(out_bcthw.float()), to_ycbcr(target_bcthw.float())
    terms = {
        "luma": charbonnier(out[:, :1], target[:, :1]),
        "chroma": charbonnier(out[:, 1:], target[:, 1:]) * weights.chroma,
        "temporal": temporal_loss(out[:, :1], target[:, :1], weights.temporal_knee) * weights.temporal,
    }
    if weights.square:
        terms["square"] = (out[:, :1] - target[:, :1]).square().mean() * weights.square
    planes = [x[:, :1, 1::STRUCTURE_STRIDE].transpose(1, 2).flatten(0, 1).contiguous() for x in (out, target)]
    if weights.information:
        terms["information"] = information_loss(*planes) * weights.information
    if weights.detail:
        terms["detail"] = detail_loss(*planes) * weights.detail
    return terms


def spread_term(latents_bcthw: Tensor) -> Tensor:
    """Return the deviation of the latents' channels from mean 0 and standard deviation
    1."""
    wide = latents_bcthw.float()
    mean, deviation = wide.mean((0, 2, 3, 4)), (wide.var((0, 2, 3, 4)) + 1e-4).sqrt()
    return (mean.square() + (deviation - 1).square()).mean()


def to_ycbcr(rgb_bcthw: Tensor) -> Tensor:
    """Return full-range BT.601 Y, Cb, Cr (chroma around 0) of RGB with channels on axis 1."""
    matrix = torch.tensor(_RGB_TO_YCBCR, dtype=rgb_bcthw.dtype, device=rgb_bcthw.device)
    return torch.einsum("oc,bcthw->bothw", matrix, rgb_bcthw)


def luma(rgb_bcthw: Tensor) -> Tensor:
    """Return the luma plane [B, 1, T, H, W]."""
    return to_ycbcr(rgb_bcthw)[:, :1]


def charbonnier(a: Tensor, b: Tensor, eps: float = 1e-3) -> Tensor:
    """Return the mean of sqrt((a - b)^2 + eps^2)."""
    return ((a - b).square() + eps**2).sqrt().mean()


def temporal_loss(out_bcthw: Tensor, target_bcthw: Tensor, knee: float = 1e-3) -> Tensor:
    """Return the Charbonnier distance of the frame differences, quadratic below ``knee``."""
    return charbonnier(out_bcthw.diff(dim=2), target_bcthw.diff(dim=2), knee)


def information_loss(out_n1hw: Tensor, target_n1hw: Tensor, *, noise: float = 2.0 / 255**2, scales: int = 4) -> Tensor:
    """Return 1 - visual information fidelity (pixel domain, Sheikh and Bovik 2006), mean over scales.

    Gains above 1 are ignored, so that contrast enhancement cannot lower the loss.
    Inputs are luma planes [N, 1, H, W] in [0, 1]; ``noise`` is the variance of the
    visual noise.
    """
    total = out_n1hw.new_zeros(())
    a, b = out_n1hw, target_n1hw
    for _ in range(scales):
        mean_a, mean_b = _smooth(a), _smooth(b)
        var_a = (_smooth(a * a) - mean_a**2).clamp_min(0)
        var_b = (_smooth(b * b) - mean_b**2).clamp_min(0)
        cov = _smooth(a * b) - mean_a * mean_b
        gain = (cov / (var_b + 1e-7)).clamp(0, 1)
        left = (var_a - gain * cov).clamp_min(1e-7)
        seen = torch.log1p(gain**2 * var_b / (left + noise))
        there = torch.log1p(var_b / noise)
        total = total + 1 - (seen.sum() + 1e-3) / (there.sum() + 1e-3)
        a, b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)
    return total / scales


def detail_loss(out_n1hw: Tensor, target_n1hw: Tensor, *, scales: int = 3) -> Tensor:
    """Return the share of the target's detail that is missing, weighted as in
    detail-loss metrics.

    Per scale and Haar band, the output's coefficient counts only up to the target's
    magnitude, and only with the same sign (after Li et al. 2011); bands are pooled with
    exponent 3. Inputs are luma planes [N, 1, H, W].
    """
    total = out_n1hw.new_zeros(())
    a, b = out_n1hw, target_n1hw
    for _ in range(scales):
        bands_a, bands_b = _haar(a), _haar(b)
        kept = torch.minimum((bands_a * bands_b.sign()).relu(), bands_b.abs())
        size = bands_b.abs()
        got = ((kept * kept * kept).sum((0, 2, 3)) + 1e-4).pow(1 / 3).sum()
        want = ((size * size * size).sum((0, 2, 3)) + 1e-4).pow(1 / 3).sum()
        total = total + 1 - got / want
        a, b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)
    return total / scales


def weave_loss(out_bcthw: Tensor, target_bcthw: Tensor, period: int, *, cells: int = 6) -> Tensor:
    """Return the part of the error in luma detail that repeats every ``period`` pixels,
    over ``cells`` periods per side.

    A network that ends in a pixel shuffle may leave its grid on cloth and skin, which
    pixel errors and learned distances hardly notice.
    """
    error = luma(out_bcthw.float() - target_bcthw.float()).transpose(1, 2).flatten(0, 1)
    detail = error - F.avg_pool2d(error, period + 1 - period % 2, 1, period // 2, count_include_pad=False)
    height, width = (side // period * period for side in detail.shape[2:])
    phases = F.pixel_unshuffle(detail[..., :height, :width], period)
    return F.avg_pool2d(phases, min(cells, *phases.shape[2:]), 1).abs().mean()


def shuffle_loss(out_bcthw: Tensor, target_bcthw: Tensor, period: int, *, cells: int = 12) -> Tensor:
    """Return how differently the energy of luma detail is spread over the ``period^2``
    positions within the cells of a pixel shuffle, compared with the target's; measured
    over windows of ``cells`` x ``cells`` cells, 0 is equal.

    In natural pictures all positions have the same energy. A network that is rewarded
    for texture puts it into some of them only, which looks like a fine grid, whatever
    the signs (``weave_loss`` sees a grid whose signs agree).
    """
    spread: list[Tensor] = []
    for frames in (out_bcthw, target_bcthw):
        plane = luma(frames.float()).transpose(1, 2).flatten(0, 1)
        detail = plane - F.avg_pool2d(plane, 3, 1, 1, count_include_pad=False)
        height, width = (side // period * period for side in detail.shape[2:])
        energy = F.pixel_unshuffle(detail[..., :height, :width].square(), period)
        local = F.avg_pool2d(energy, min(cells, *energy.shape[2:])) + _FLOOR**2
        spread.append(local / local.mean(dim=1, keepdim=True))
    return (spread[0] - spread[1]).abs().mean()


def _smooth(x_n1hw: Tensor) -> Tensor:
    """Smooth with two 3x3 box filters, a 5x5 window in total."""
    return F.avg_pool2d(F.avg_pool2d(x_n1hw, 3, 1), 3, 1)


def _haar(x_n1hw: Tensor) -> Tensor:
    """Return the three undecimated Haar detail bands [N, 3, H - 1, W - 1]."""
    p, q = x_n1hw[..., :-1, :-1], x_n1hw[..., :-1, 1:]
    r, s = x_n1hw[..., 1:, :-1], x_n1hw[..., 1:, 1:]
    return torch.cat([p + q - r - s, p - q + r - s, p - q - r + s], dim=1) / 2
