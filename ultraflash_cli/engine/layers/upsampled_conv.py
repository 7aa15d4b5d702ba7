"""A convolution over doubled pictures, and what is computed together with it."""

import torch
from torch import Tensor, nn

from ultraflash_cli.engine.layers.derived import Derived
from ultraflash_cli.engine.layers.memory_block import TimeGrowth
from ultraflash_kernels.memory_conv import (
    head_taps,
    phase_taps,
    upsampled_conv,
    upsampled_head,
)

__all__ = ["UpsampledConv"]


class UpsampledConv(nn.Conv2d):
    """A convolution over pictures doubled by nearest neighbours; with ``rectifies`` it
    includes ReLU.

    Without gradients the time growth before it and a convolution after it are computed
    with it: the weights of the first are composed with its own, and nothing of the
    doubled size is written between it and the second.
    """

    def __init__(self, width: int, out_width: int, *, bias: bool, rectifies: bool) -> None:
        super().__init__(width, out_width, 3, padding=1, bias=bias)
        self.slope = 0.0 if rectifies else 1.0
        self._taps: Derived[Tensor] = Derived()
        self._both: Derived[tuple[Tensor, Tensor]] = Derived()

    def forward(
        self,
        input: Tensor,
        growth: TimeGrowth | None = None,
        head: nn.Conv2d | None = None,
    ) -> Tensor:
        """Map [N, C, H, W] to [N * F, C', 2 H, 2 W], with F = 1 without ``growth``."""
        like = input.dtype  # under autocast weights are wider
        weight, bias = self.weight.to(like), _as(self.bias, like)
        grown = None if growth is None else growth.conv.weight.to(like)
        slope = self.slope
        if torch.is_grad_enabled() and _wants_gradients(input, self, growth, head):
            made = upsampled_conv(input, weight, bias, growth=grown, negative_slope=slope)
            return made if head is None else head(made)

        layers = [each for each in (growth and growth.conv, self, head) if each is not None]
        weights = [each.weight for each in layers]
        if head is None:
            taps = self._taps.get(lambda: phase_taps(weight, grown), like, *weights)
            return upsampled_conv(
                input, weight, bias, growth=grown, taps=taps, negative_slope=slope
            )
        last, last_bias = head.weight.to(like), _as(head.bias, like)
        both = self._both.get(
            lambda: (phase_taps(weight, grown), head_taps(last)), like, *weights
        )
        return upsampled_head(
            input,
            weight,
            bias,
            last,
            last_bias,
            growth=grown,
            taps=both,
            negative_slope=slope,
        )


def _wants_gradients(input: Tensor, *layers: nn.Module | None) -> bool:
    weights = (x for layer in layers if layer is not None for x in layer.parameters())
    return input.requires_grad or any(x.requires_grad for x in weights)


def _as(bias: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if bias is None else bias.to(dtype)
