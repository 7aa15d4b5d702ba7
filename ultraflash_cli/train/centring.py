"""Remove the pixel-shuffle grid from a pixel path, so that all phases agree on smooth
pictures."""

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from ultraflash_cli.engine.layers.resample import lanczos_upscale
from ultraflash_cli.engine.profiles import LITE
from ultraflash_cli.engine.stages.pixel_path import PixelPath, PixelPathConfig
from ultraflash_cli.weights.load import load_strictly

__all__ = ["centred_phases", "phase_pattern"]

_LEVELS = (0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9)
_SIDE_PX = 48
_EDGE_CELLS = 6
"""Cells at the border, where padding shows, that are left out."""
_FRAMES = 3


def centred_phases(tensors: Mapping[str, Tensor], *, residual_gain: float | None = None) -> dict[str, Tensor]:
    """Return the weights of a pixel path with biases that leave no pattern on smooth
    pictures.

    A pixel shuffle gives each pixel of a cell a channel of its own. If training leaves
    their means different, a grid with the period of the cell appears: faint in numbers,
    but visible on skies and skin.
    """
    centred = {name: value.clone() for name, value in tensors.items()}
    network = _network(tensors, residual_gain)
    for scale in network.config.scales:
        bias = centred[f"project.{scale}.bias"]
        shift = phase_pattern(network, scale) / network.config.residual_gain
        bias -= shift.flatten().to(bias.dtype)
    return centred


@torch.inference_mode()
def phase_pattern(network: PixelPath, scale: int) -> Tensor:
    """Return each phase's mean residual on smooth pictures minus the mean over all
    phases, ``[3, phases]``.

    Phases are counted row by row within a cell of ``scale * patch`` pixels; values are in the range of the pictures.
    """
    cell = scale * network.config.patch
    sums = torch.zeros(3, cell * cell)
    smooth = _smooth()
    for frame_chw in smooth:
        frames = frame_chw[None, :, None].expand(1, 3, _FRAMES, -1, -1)
        residual = network.upscale(frames, None, scale=scale)[0][0, :, -1] - _enlarged(frame_chw, scale)
        cells = torch.nn.functional.pixel_unshuffle(residual, cell).unflatten(0, (3, -1))
        inner = cells[:, :, _EDGE_CELLS:-_EDGE_CELLS, _EDGE_CELLS:-_EDGE_CELLS]
        sums += inner.mean(dim=(2, 3))
    means = sums / len(smooth)
    return means - means.mean(dim=1, keepdim=True)


def _smooth() -> list[Tensor]:
    """Return grey pictures [3, H, W] and slopes in four directions, which cancel each other."""
    flat = [torch.full((3, _SIDE_PX, _SIDE_PX), level) for level in _LEVELS]
    slope = torch.linspace(0.2, 0.7, _SIDE_PX).expand(3, _SIDE_PX, -1)
    across = [slope, slope.flip(2)]
    return flat + across + [each.transpose(1, 2) for each in across]


def _enlarged(frame_chw: Tensor, scale: int) -> Tensor:
    return lanczos_upscale(frame_chw[None].contiguous(), scale)[0]


def _network(tensors: Mapping[str, Tensor], residual_gain: float | None) -> PixelPath:
    """Build the network for some weights; their shapes determine everything but the
    gain."""
    base = LITE.pixels or PixelPathConfig()
    width, inputs = tensors["embed.weight"].shape[:2]
    scales = tuple(sorted({int(name.split(".")[1]) for name in tensors if name.startswith("project.")}))
    blocks = len({name.split(".")[1] for name in tensors if name.startswith("blocks.")})
    config = replace(
        base,
        width=width,
        blocks=blocks,
        patch=math.isqrt(inputs // 3),
        scales=scales,
        scale=scales[0],
        residual_gain=base.residual_gain if residual_gain is None else residual_gain,
    )
    network = PixelPath(config)
    load_strictly(network, {name: value.float() for name, value in tensors.items()}, name="pixel path")
    return network.eval().requires_grad_(False)
