"""A small critic that tells real frames from generated ones by their detail and its
change between frames."""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ultraflash_cli.train.losses import luma

__all__ = ["Critic", "relativistic_loss", "reversed_gradient"]

SOFT_PX = 5
"""Window of the local mean that is subtracted from luma before the critic sees it."""
CHANGE_GAIN = 4.0
"""Factor on the frame difference shown to the critic."""


class _Bounded(nn.Conv2d):
    """A convolution with spectral normalisation, which keeps no estimate between
    steps."""

    def forward(self, input: Tensor) -> Tensor:
        size = torch.linalg.matrix_norm(self.weight.float().flatten(1), 2)
        return self._conv_forward(input, self.weight / size, self.bias)


class Critic(nn.Module):
    """Maps the high-passed luma of a frame, and its change since the previous frame, to
    scores of realism."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        sizes = ((2, width, 2), (width, 2 * width, 2), (2 * width, 2 * width, 1))
        layers: list[nn.Module] = []
        for wide, out, stride in sizes:
            layers += [_Bounded(wide, out, 4 if stride == 2 else 3, stride, 1), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, _Bounded(2 * width, 1, 3, padding=1))

    def forward(self, frames_bcthw: Tensor) -> Tensor:
        """Return a score map for every two consecutive frames, [B * (T - 1), 1, h,
        w]."""
        y = luma(frames_bcthw.float())
        batch = y.shape[0]
        planes = y.transpose(1, 2).flatten(0, 1)
        detail = planes - F.avg_pool2d(planes, SOFT_PX, 1, SOFT_PX // 2, count_include_pad=False)
        detail = detail.unflatten(0, (batch, -1))
        seen = torch.cat([detail[:, 1:], CHANGE_GAIN * detail.diff(dim=1)], dim=2).flatten(0, 1)
        return self.layers((8 * seen).contiguous(memory_format=torch.channels_last))


def relativistic_loss(false: Tensor, true: Tensor) -> Tensor:
    """Return the critic's loss: real scores should exceed the mean of the fake ones,
    and fake scores stay below the mean of the real ones (Jolicoeur-Martineau, *The
    relativistic discriminator*, 2018)."""
    return (F.softplus(false - true.mean()).mean() + F.softplus(false.mean() - true).mean()) / 2


class _Reversal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return -gradients[0]


def reversed_gradient(x: Tensor) -> Tensor:
    """Return ``x`` with its gradient negated in the backward pass, so that one loss
    trains both a critic and the network that it judges."""
    return cast("Tensor", _Reversal.apply(x))
