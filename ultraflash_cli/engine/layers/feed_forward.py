"""The feed-forward layers of the transformers: two matmuls with GELU in between."""

from typing import cast

from torch import Tensor, nn

from ultraflash_cli.engine.layers.residual import add_linear
from ultraflash_kernels.fp8_linear import Fp8Linear, Fp8Rows, quantise_gelu_rows
from ultraflash_kernels.linear_gelu import epilogue_refusal, linear_gelu

__all__ = ["feed_forward"]


def feed_forward(
    layers: nn.Sequential, x: Tensor | Fp8Rows, *, into: Tensor | None = None
) -> Tensor:
    """Apply a linear layer, GELU in its tanh form and a linear layer; if ``into`` is
    given, add to it by ``add_linear``.

    GELU is a separate pass only if neither the first matmul nor the quantisation before
    the second one can fuse it.
    """
    first, gelu, last = layers
    if isinstance(first, Fp8Linear) and isinstance(last, Fp8Linear):
        return last(quantise_gelu_rows(first(x)))
    if (
        type(first) is nn.Linear
        and isinstance(x, Tensor)
        and epilogue_refusal(x, first.weight, first.bias) is None
    ):
        hidden = linear_gelu(x, first.weight, first.bias)
    elif into is None:
        return layers(x)  # as a module, whose hooks gather sharded weights in training
    else:
        hidden = gelu(first(x))
    return (
        last(hidden) if into is None else add_linear(into, hidden, cast("nn.Linear", last))
    )
