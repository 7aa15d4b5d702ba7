"""Timestep embedding and the scale, shift and gate it drives; sums are float32 islands."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["float32_layers", "gated_add", "modulate", "sinusoid"]

MAX_PERIOD = 10000.0


def sinusoid(timestep: Tensor, width: int) -> Tensor:
    """Return ``[B, width]`` float32: cosines then sines of ``timestep [B]``, angles in float64."""
    half = width // 2
    steps = torch.arange(half, dtype=torch.float64, device=timestep.device)
    angle = timestep.double()[:, None] * torch.exp(-math.log(MAX_PERIOD) / half * steps)
    return torch.cat([angle.cos(), angle.sin()], dim=1).float()


def float32_layers(layers: nn.Sequential | nn.Linear, x: Tensor) -> Tensor:
    """Apply linear layers and activations in float32 whatever dtype their weights have."""
    x = x.float()
    for layer in [layers] if isinstance(layers, nn.Linear) else layers:
        linear = isinstance(layer, nn.Linear)
        x = F.linear(x, layer.weight.float(), layer.bias.float()) if linear else layer(x)
    return x


def modulate(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Return ``x * (1 + scale) + shift``, in float32."""
    return x.float() * (1 + scale) + shift


def gated_add(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    """Return ``x + y * gate``, summed in float32 and rounded to the dtype of x."""
    return (x.float() + y.float() * gate).to(x.dtype)
