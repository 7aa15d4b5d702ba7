"""The feed-forward layers of the transformers: two matmuls with GELU in between."""

from torch import Tensor, nn

from ultraflash_kernels.fp8_linear import Fp8Linear, Fp8Rows, quantise_gelu_rows
from ultraflash_kernels.linear_gelu import epilogue_refusal, linear_gelu

__all__ = ["feed_forward"]


def feed_forward(layers: nn.Sequential, x: Tensor | Fp8Rows) -> Tensor:
    """Apply a linear layer, GELU in its tanh form and a linear layer.

    GELU is a separate pass only if neither the first matmul nor the quantisation before
    the second one can fuse it.
    """
    first, _, last = layers
    if isinstance(first, Fp8Linear) and isinstance(last, Fp8Linear):
        return last(quantise_gelu_rows(first(x)))
    if (
        type(first) is nn.Linear
        and isinstance(x, Tensor)
        and epilogue_refusal(x, first.weight, first.bias) is None
    ):
        return last(linear_gelu(x, first.weight, first.bias))
    return layers(x)
