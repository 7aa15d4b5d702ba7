"""A fresh autoencoder as the principal components of blocks of pixels in space and time.

Encoder and decoder start as one linear map and its inverse, written into the middle of their kernels; what nothing was
written into is random and quiet. Gradient descent alone would take thousands of steps to get there.
"""

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ultraflash_cli.engine.layers.memory_block import MemoryBlock, TimeGrowth, TimePool
from ultraflash_cli.errors import ConfigError
from ultraflash_cli.train.roles import CascadeRoles

__all__ = ["start_from_components"]

SPAN = 0.3
"""Standard deviation of the first component inside the networks; the others have its share to the power of a half."""
QUIET = 0.2
"""Factor on the last kernel of a memory block: what it adds comes later."""


@dataclass(frozen=True)
class _Level:
    """Values x [.., n] to channels B (x - mean) * gain + offset, all of them above zero for nearly every x."""

    basis: Tensor
    mean: Tensor
    gain: Tensor
    offset: Tensor

    @classmethod
    def of(cls, x: Tensor, count: int, *, white: bool = False) -> "_Level":
        mean = x.mean(0)
        variance, axes = torch.linalg.eigh((x - mean).T @ (x - mean) / len(x))
        deviation = variance.flip(0)[:count].clamp_min(1e-10).sqrt()
        basis = axes.T.flip(0)[:count]
        basis = basis * basis.gather(1, basis.abs().argmax(1, keepdim=True)).sign()  # an axis has no sign of its own
        if white:
            return cls(basis, mean, 1 / deviation, torch.zeros(count, dtype=x.dtype))
        span = SPAN * (deviation / deviation[0]).sqrt()
        return cls(basis, mean, span / deviation, 4 * span + 0.1)

    def apply(self, x: Tensor) -> Tensor:
        weight, bias = self.forward_map()
        return x @ weight.T + bias

    def forward_map(self) -> tuple[Tensor, Tensor]:
        """Return weight and bias from values to channels."""
        weight = self.basis * self.gain[:, None]
        return weight, self.offset - weight @ self.mean

    def backward_map(self) -> tuple[Tensor, Tensor]:
        """Return weight and bias from channels to values."""
        weight = self.basis.T / self.gain
        return weight, self.mean - weight @ self.offset


@torch.no_grad()
def start_from_components(roles: CascadeRoles, clips_bcthw: Tensor) -> None:
    """Write the components of ``clips`` (T a multiple of 4) into the roles' encoder and low-resolution decoder.

    Raises ConfigError for networks that shrink and grow anywhere but in their unshuffle and shuffle.
    """
    config, out = roles.encoder.config, roles.low_decoder.config
    if config.strides != (1, 1, 1) or config.time_pools != (2, 2, 1) or out.last_shuffle != config.patch:
        raise ConfigError("components start an encoder and a decoder that keep one size between unshuffle and shuffle")
    if set(out.widths) != {config.width}:
        raise ConfigError("components start an encoder and a decoder of one width")
    inner = config.width - 1  # the last channel holds a constant, in place of the biases that some layers lack
    cells = F.pixel_unshuffle(clips_bcthw.double().transpose(1, 2), config.patch)  # [B, T, n, h, w]
    frames = cells.permute(0, 1, 3, 4, 2)
    one = _Level.of(frames.flatten(0, 3), inner)
    two_values = _pairs(one.apply(frames))
    two = _Level.of(two_values.flatten(0, 3), inner)
    four_values = _pairs(two.apply(two_values))
    four = _Level.of(four_values.flatten(0, 3), inner)
    last = _Level.of(four.apply(four_values).flatten(0, 3), config.latent_channels, white=True)
    _write_encoder(roles.encoder.encoder, (one, two, four, last), inner)
    _write_decoder(roles.low_decoder.decoder, (one, two, four, last), inner)


def _pairs(x_bthwn: Tensor) -> Tensor:
    """Join the values of every two frames."""
    return torch.cat([x_bthwn[:, 0::2], x_bthwn[:, 1::2]], dim=-1)


def _write_encoder(layers: nn.Sequential, levels: tuple[_Level, ...], inner: int) -> None:
    one, two, four, last = levels
    first, end = cast("nn.Conv2d", layers[0]), cast("nn.Conv2d", layers[-1])
    _write(first, *one.forward_map())
    _constant(first, inner)
    pools = [layer for layer in layers.children() if isinstance(layer, TimePool)]
    for pool, level in zip(pools, (two, four), strict=False):
        weight, bias = level.forward_map()
        kernel = torch.zeros_like(pool.conv.weight[:, :, 0, 0])
        kernel[:inner, :inner], kernel[:inner, inner + 1 : 2 * inner + 1] = weight.float().split(inner, dim=1)
        kernel[:inner, inner] = bias.float()
        kernel[inner, inner] = 1
        pool.conv.weight.copy_(kernel[:, :, None, None])
    _identity(pools[2].conv)
    for layer in list(layers.children())[2:-1]:
        if isinstance(layer, nn.Conv2d):
            _identity(layer)
    _hush(layers, inner)
    _write(end, *last.forward_map())


def _write_decoder(layers: nn.Sequential, levels: tuple[_Level, ...], inner: int) -> None:
    one, two, four, last = levels
    first, end = cast("nn.Conv2d", layers[1]), cast("nn.Conv2d", layers[-2])
    latents = last.basis.shape[0]
    _write(first, SPAN * torch.eye(latents), torch.full((latents,), 4 * SPAN))
    _constant(first, inner)
    # From the first layer's channels back to what two frames have in their channels, pair by pair.
    back, shift = last.backward_map()
    weight, bias = four.backward_map()
    weight, bias = weight @ back / SPAN, bias + weight @ (shift - back.sum(1) * 4)
    growths = [layer for layer in layers.children() if isinstance(layer, TimeGrowth)]
    _write_growth(growths[0], weight, bias, inner)
    _write_growth(growths[1], *two.backward_map(), inner)
    _identity(growths[2].conv)
    for layer in list(layers.children())[3:-2]:
        if isinstance(layer, nn.Conv2d):
            _identity(layer)
    _hush(layers, inner)
    _write(end, *one.backward_map())


def _write(layer: nn.Conv2d, weight: Tensor, bias: Tensor) -> None:
    """Put a linear map into the middle of a kernel; rows beyond it stay random, but hear only what they did."""
    rows, columns = weight.shape
    layer.weight[:rows] = 0
    layer.weight[:rows, :columns, 1, 1] = weight.float()
    assert layer.bias is not None
    layer.bias[:rows] = bias.float()


def _constant(layer: nn.Conv2d, channel: int) -> None:
    assert layer.bias is not None
    layer.weight[channel] = 0
    layer.bias[channel] = 1


def _write_growth(growth: TimeGrowth, weight: Tensor, bias: Tensor, inner: int) -> None:
    """Make a frame's channels two frames'; ``weight`` has the rows of both."""
    kernel = torch.zeros_like(growth.conv.weight[:, :, 0, 0])
    for frame, (rows, shift) in enumerate(zip(weight.float().chunk(2), bias.float().chunk(2), strict=True)):
        at = frame * (inner + 1)
        kernel[at : at + inner, : rows.shape[1]] = rows
        kernel[at : at + inner, inner] = shift
        kernel[at + inner, inner] = 1
    growth.conv.weight.copy_(kernel[:, :, None, None])


def _identity(layer: nn.Conv2d) -> None:
    nn.init.zeros_(layer.weight)
    middle = layer.kernel_size[0] // 2
    layer.weight[:, :, middle, middle] = torch.eye(layer.weight.shape[0])


def _hush(layers: nn.Sequential, constant: int) -> None:
    for block in layers.children():
        if isinstance(block, MemoryBlock):
            quiet = cast("nn.Conv2d", block.conv[4])
            assert quiet.bias is not None
            quiet.weight *= QUIET
            quiet.weight[constant], quiet.bias[constant] = 0, 0
