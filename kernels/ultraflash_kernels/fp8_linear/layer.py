"""A linear layer with its weight in 8-bit floating point, and the conversion of a
network's layers."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from ultraflash_kernels.fp8_linear.op import (
    MULTIPLE,
    Fp8Impl,
    Fp8Rows,
    fp8_linear,
    quantise_rows,
)

__all__ = ["Fp8Linear", "quantise_linears"]


class Fp8Linear(nn.Module):
    """``nn.Linear`` with a weight quantised row by row; inference only.

    The weight is stored in integer buffers, so that ``.to(dtype)`` of a network leaves
    it unchanged.
    """

    weight_bytes: Tensor
    scale_bits: Tensor

    def __init__(
        self, rows: Fp8Rows, bias: Tensor | None, *, impl: Fp8Impl = "auto"
    ) -> None:
        super().__init__()
        self.impl: Fp8Impl = impl
        self.out_features, self.in_features = rows.values.shape
        self.register_buffer("weight_bytes", rows.values.view(torch.uint8))
        self.register_buffer("scale_bits", rows.scales.view(torch.int32))
        self.bias = (
            None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        )

    @classmethod
    def of(cls, layer: nn.Linear, *, impl: Fp8Impl = "auto") -> "Fp8Linear":
        """Quantise the weight of ``layer`` on its device; the bias is unchanged."""
        return cls(quantise_rows(layer.weight.detach()), layer.bias, impl=impl)

    @property
    def rows(self) -> Fp8Rows:
        """The weight ``[out, in]``."""
        return Fp8Rows(
            self.weight_bytes.view(torch.float8_e4m3fn), self.scale_bits.view(torch.float32)
        )

    def forward(self, x: Tensor | Fp8Rows) -> Tensor:
        """Map ``x [..., in]`` to ``[..., out]`` in the dtype of x.

        For rows that are already quantised, the result has the dtype of the bias, or
        bfloat16 without one.
        """
        like = self.bias if isinstance(x, Fp8Rows) else x
        return fp8_linear(
            x,
            self.rows,
            self.bias,
            dtype=None if like is None else like.dtype,
            impl=self.impl,
        )

    def extra_repr(self) -> str:
        sizes = f"in_features={self.in_features}, out_features={self.out_features}"
        return f"{sizes}, bias={self.bias is not None}"


def quantise_linears(
    network: nn.Module, *, keep: Sequence[str] = (), impl: Fp8Impl = "auto"
) -> tuple[str, ...]:
    """Replace the linear layers inside ``network`` with 8-bit ones; return the names of
    the replaced layers. ``keep`` lists names, with ``*`` for any characters, of layers
    to leave unchanged: those that run in float32, and those to which the result is
    sensitive. Layers whose widths are not multiples of 16, and subclasses of
    ``nn.Linear``, are also left unchanged. Raises ValueError for a name in ``keep``
    that no layer has.
    """
    layers = {
        name: layer
        for name, layer in network.named_modules()
        if type(layer) is nn.Linear and name
    }
    for pattern in keep:
        if not any(fnmatchcase(name, pattern) for name in layers):
            raise ValueError(f"quantise_linears: no linear layer matches {pattern!r}")
    done: list[str] = []
    for name, layer in layers.items():
        odd = layer.in_features % MULTIPLE or layer.out_features % MULTIPLE
        if odd or any(fnmatchcase(name, pattern) for pattern in keep):
            continue
        parent, _, own = name.rpartition(".")
        setattr(network.get_submodule(parent), own, Fp8Linear.of(layer, impl=impl))
        done.append(name)
    return tuple(done)
