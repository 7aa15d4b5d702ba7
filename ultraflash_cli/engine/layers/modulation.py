"""Timestep embedding, and modulation by scale, shift and gate; sums are computed in
float32."""

import math
from contextlib import nullcontext
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ultraflash_kernels.adaln_modulate import (
    adaln_modulate,
    adaln_modulate_fp8,
    residual_norm,
)
from ultraflash_kernels.fp8_linear import Fp8Linear, Fp8Rows

__all__ = [
    "Addend",
    "float32_layers",
    "modulate",
    "sinusoid",
    "sum_and_norm",
]

MAX_PERIOD = 10000.0


def sinusoid(timestep: Tensor, width: int) -> Tensor:
    """Return ``[B, width]`` float32: cosines then sines of ``timestep [B]``, angles in
    float64."""
    half = width // 2
    steps = torch.arange(half, dtype=torch.float64, device=timestep.device)
    angle = timestep.double()[:, None] * torch.exp(-math.log(MAX_PERIOD) / half * steps)
    return torch.cat([angle.cos(), angle.sin()], dim=1).float()


def float32_layers(layers: nn.Sequential | nn.Linear, x: Tensor) -> Tensor:
    """Apply linear layers and activations in float32 regardless of the dtype of their
    weights, also under autocast."""
    kind = x.device.type
    autocasts = torch.amp.is_autocast_available(kind)  # tensors without storage do not
    with torch.autocast(kind, enabled=False) if autocasts else nullcontext():
        x = x.float()
        for layer in [layers] if isinstance(layers, nn.Linear) else layers:
            if isinstance(layer, nn.Linear):
                bias = cast("Tensor | None", layer.bias)
                x = F.linear(
                    x, layer.weight.float(), None if bias is None else bias.float()
                )
            else:
                x = layer(x)
    return x


def modulate(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Return ``x * (1 + scale) + shift``, in float32."""
    return x.float() * (1 + scale) + shift


class Addend(NamedTuple):
    """A pending addition to the residual stream."""

    y: Tensor | None = None
    """``[*L, *N, D]``; None if there is none but the offset."""
    gate: Tensor | None = None
    """``[*L, D]``; None stands for 1."""
    offset: Tensor | None = None
    """``[D]``, a constant that the stream lacks; None for zeros."""

    @property
    def offset_after(self) -> Tensor | None:
        """The offset that the stream still lacks after ``sum_and_norm``, which adds it
        only together with a tensor."""
        return self.offset if self.y is None else None


def sum_and_norm(
    layer: nn.Module,
    x: Tensor,
    addend: Addend,
    shift: Tensor,
    scale: Tensor,
    eps: float,
    *,
    affine: bool = False,
) -> tuple[Tensor, Tensor | Fp8Rows]:
    """Return the residual stream with the pending addition, and its norm in the form
    expected by ``layer``, in 8 bits for 8-bit layers; ``affine`` is a norm with weight
    and bias. A pending offset alone is normed, but not added to the stream."""
    fp8 = isinstance(layer, Fp8Linear)
    if addend.y is not None:
        return residual_norm(
            x,
            addend.y.to(x.dtype),
            addend.gate,
            shift,
            scale,
            offset=addend.offset,
            eps=eps,
            affine=affine,
            fp8=fp8,
        )

    if fp8:
        assert addend.offset is None and not affine, "8-bit layers are not folded"
        return x, adaln_modulate_fp8(x, shift, scale, eps=eps)
    offset = addend.offset
    return x, adaln_modulate(x, shift, scale, offset=offset, eps=eps, affine=affine)
