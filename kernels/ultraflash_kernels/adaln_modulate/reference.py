"""The reference of ``adaln_modulate`` and ``gated_residual`` in plain PyTorch."""

import torch.nn.functional as F
from torch import Tensor

__all__ = ["gate", "modulate", "residual_norm"]


def modulate(
    x: Tensor,
    shift: Tensor,
    scale: Tensor,
    eps: float,
    offset: Tensor | None = None,
    affine: bool = False,
) -> Tensor:
    """See ``op.adaln_modulate``; nothing is checked here."""
    if affine:
        return _layer_norm(x, scale, shift, eps, offset)
    normed = F.layer_norm(_moved(x, offset), x.shape[-1:], eps=eps).to(x.dtype)
    return (normed.to(scale.dtype) * (1 + _over(scale, x)) + _over(shift, x)).to(x.dtype)


def gate(x: Tensor, y: Tensor, gates: Tensor, offset: Tensor | None = None) -> Tensor:
    """See ``op.gated_residual``; nothing is checked here."""
    product = y.to(gates.dtype) * _over(gates, x)
    if offset is None:
        return (x.to(gates.dtype) + product).to(x.dtype)
    return (_moved(x, offset) + product.float()).to(x.dtype)


def residual_norm(
    x: Tensor,
    y: Tensor,
    gates: Tensor | None,
    shift: Tensor,
    scale: Tensor,
    eps: float,
    affine: bool,
    offset: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """See ``op.residual_norm``; nothing is checked here."""
    if gates is not None:
        total = gate(x, y, gates, offset)
    else:
        total = x + y if offset is None else (_moved(x, offset) + y.float()).to(x.dtype)
    return total, modulate(total, shift, scale, eps, affine=affine)


def _moved(x: Tensor, offset: Tensor | None) -> Tensor:
    """Return ``x + offset`` in float32, or x without an offset."""
    return x if offset is None else x.float() + offset.float()


def _layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, offset: Tensor | None
) -> Tensor:
    """Return the norm of ``x + offset`` with weight and bias, in the dtype of x."""
    if offset is None:
        return F.layer_norm(x, x.shape[-1:], weight, bias, eps)
    moved = _moved(x, offset)
    return F.layer_norm(moved, x.shape[-1:], weight.float(), bias.float(), eps).to(x.dtype)


def _over(vectors: Tensor, x: Tensor) -> Tensor:
    """Reshape ``vectors [*L, D]`` to broadcast over ``x [*L, *N, D]``."""
    return vectors.view(
        *vectors.shape[:-1], *(1,) * (x.ndim - vectors.ndim), vectors.shape[-1]
    )
