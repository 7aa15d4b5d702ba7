"""The reference of ``adaln_modulate`` and ``gated_residual`` in plain PyTorch."""

import torch.nn.functional as F
from torch import Tensor

__all__ = ["gate", "modulate", "residual_norm"]


def modulate(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    """See ``op.adaln_modulate``; nothing is checked here."""
    normed = F.layer_norm(x, x.shape[-1:], eps=eps)
    return (normed.to(scale.dtype) * (1 + _over(scale, x)) + _over(shift, x)).to(x.dtype)


def gate(x: Tensor, y: Tensor, gates: Tensor) -> Tensor:
    """See ``op.gated_residual``; nothing is checked here."""
    return (x.to(gates.dtype) + y.to(gates.dtype) * _over(gates, x)).to(x.dtype)


def residual_norm(
    x: Tensor,
    y: Tensor,
    gates: Tensor | None,
    shift: Tensor,
    scale: Tensor,
    eps: float,
    affine: bool,
) -> tuple[Tensor, Tensor]:
    """See ``op.residual_norm``; nothing is checked here."""
    total = x + y if gates is None else gate(x, y, gates)
    if affine:
        return total, F.layer_norm(total, total.shape[-1:], scale, shift, eps)
    return total, modulate(total, shift, scale, eps)


def _over(vectors: Tensor, x: Tensor) -> Tensor:
    """Reshape ``vectors [*L, D]`` to broadcast over ``x [*L, *N, D]``."""
    return vectors.view(
        *vectors.shape[:-1], *(1,) * (x.ndim - vectors.ndim), vectors.shape[-1]
    )
