"""Linear layers that add to the residual stream inside their matmul."""

import torch
from torch import Tensor, nn

from ultraflash_kernels import dispatch

__all__ = ["FoldedLinear", "add_linear", "stream_for"]


class FoldedLinear(nn.Module):
    """``nn.Linear`` in front of a gated sum, with the gate in its weight; inference
    only.

    The bias stays out of the residual stream: ``offset`` is the sum of the gated biases
    of all layers up to this one, and whoever reads the stream adds it.
    """

    weight: nn.Parameter
    offset: Tensor
    """``[out]``, float32."""

    def __init__(self, layer: nn.Linear, gate: Tensor | None, offset: Tensor) -> None:
        """Take over the weight of ``layer`` and multiply it, in place, by ``gate
        [out]`` (None for 1); ``offset [out]`` is that of the layer before, float32."""
        super().__init__()
        weight, bias = layer.weight, layer.bias.detach().float()
        if gate is not None:
            weight.data.mul_(gate[:, None])
            bias = bias * gate
        self.weight = nn.Parameter(weight.detach(), requires_grad=False)
        self.register_buffer("offset", offset + bias)

    def forward(self, x: Tensor) -> Tensor:
        """Raise: without the stream the result would lack its bias."""
        raise AssertionError("a folded layer adds to the residual stream")


def stream_for(layer: nn.Module, stream: Tensor, *, gated: bool) -> Tensor | None:
    """Return ``stream`` if ``add_linear`` may add the result of ``layer`` to it, or
    None if that takes a pass of its own.

    Folded layers always add to it; others, unless the result is gated, on GPUs in one
    dtype and without gradients.
    """
    adds = isinstance(layer, FoldedLinear) or (
        not gated
        and type(layer) is nn.Linear
        and dispatch.prefers_kernels(stream.device)
        and not torch.is_grad_enabled()
        and layer.weight.dtype == stream.dtype
        and not _autocasts(stream.device.type)
    )
    return stream if adds else None


def add_linear(stream: Tensor, x: Tensor, layer: nn.Linear | FoldedLinear) -> Tensor:
    """Add ``x @ weight^T`` to ``stream``, in place and without the bias, and return it;
    the sum is rounded once.

    ``x [..., in]`` has the rows of ``stream [..., out]`` in the same order, which is
    contiguous.
    """
    rows, weight = x.reshape(-1, x.shape[-1]), layer.weight
    stream.view(-1, stream.shape[-1]).addmm_(rows, weight.t())
    return stream


def _autocasts(kind: str) -> bool:
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
