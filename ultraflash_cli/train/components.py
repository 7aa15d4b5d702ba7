"""Initialise an autoencoder with the principal components of blocks of pixels in space
and time.

Encoder and decoder start as one linear map and its inverse, written into the centre
taps of their kernels; memory blocks start by adding zero. Gradient descent alone would
need thousands of steps to reach this point.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ultraflash_cli.engine.layers.memory_block import MemoryBlock, TimeGrowth, TimePool
from ultraflash_cli.engine.stages.decoder import DecoderConfig, ShuffleUp
from ultraflash_cli.engine.stages.encoder import EncoderConfig
from ultraflash_cli.errors import ConfigError
from ultraflash_cli.train.roles import CascadeRoles

__all__ = ["start_from_components"]

SPAN = 0.3
"""Standard deviation of the first component inside the networks; the others are scaled
by the square root of their ratio to it."""
LATENT_SPAN = 0.4
"""Standard deviation of the latents: outliers are many times larger, and a decoder
bounds its input."""


RIDGE = 1e-4
"""Ridge penalty of the predictions from neighbours, relative to the latents' mean
square."""


@dataclass(frozen=True)
class _Level:
    """Principal components of values x [.., n], kept in channels: (basis (x - mean)) * gain."""

    basis: Tensor
    mean: Tensor
    gain: Tensor

    @classmethod
    def of(cls, x: Tensor, count: int, *, mean: Tensor | None = None, span: float | None = None) -> "_Level":
        """Find the first ``count`` components; with a ``span`` all channels have that standard deviation."""
        mean = torch.zeros_like(x[0]) if mean is None else mean
        variance, axes = torch.linalg.eigh((x - mean).T @ (x - mean) / len(x))
        deviation = variance.flip(0)[:count].clamp_min(1e-10).sqrt()
        basis = axes.T.flip(0)[:count]
        basis = basis * basis.gather(1, basis.abs().argmax(1, keepdim=True)).sign()  # axes have no sign
        wanted = SPAN * (deviation / deviation[0]).sqrt() if span is None else torch.full_like(deviation, span)
        return cls(basis, mean, wanted / deviation)

    def values(self, x: Tensor) -> Tensor:
        """Return the components without gain, which preserve sums of squares."""
        return (x - self.mean) @ self.basis.T

    def forward_map(self, before: "_Level") -> Tensor:
        """Return the weight that maps the joined channels of the previous level to
        components."""
        return self.basis * self.gain[:, None] / self._joined(before)

    def backward_map(self, before: "_Level") -> Tensor:
        """Return the weight that maps components back to the joined channels of the
        previous level."""
        return self.basis.T / self.gain * self._joined(before)[:, None]

    def _joined(self, before: "_Level") -> Tensor:
        return before.gain.repeat(self.basis.shape[1] // len(before.gain))


@torch.no_grad()
def start_from_components(roles: CascadeRoles, clips_bcthw: Tensor) -> None:
    """Write the components of ``clips`` (T a multiple of 4) into the roles' encoder and decoder of the base size.

    Every encoder layer that joins frames or cells is one level; the decoder inverts the
    levels in reverse order. Raises ConfigError if the decoder does not mirror the
    encoder's downsampling, or if it upsamples in space by repetition, which no linear
    map can invert.
    """
    config, decoder = roles.encoder.config, roles.decoder
    out = decoder.config
    _check(config, out)
    cells = F.pixel_unshuffle(clips_bcthw.double().transpose(1, 2), config.patch)  # [B, T, n, h, w]
    values = cells.permute(0, 1, 3, 4, 2)
    mean = values.flatten(0, 3).mean(0)
    levels = [_Level.of(values.flatten(0, 3), min(values.shape[-1], config.width), mean=mean)]
    values = levels[0].values(values)
    for pool, stride in zip(config.time_pools, config.strides, strict=True):
        for join in (_pairs,) * (pool == 2) + (_squares,) * (stride == 2):
            values = join(values)
            levels.append(_Level.of(values.flatten(0, 3), min(values.shape[-1], config.width)))
            values = levels[-1].values(values)
    levels.append(_Level.of(values.flatten(0, 3), config.latent_channels, span=LATENT_SPAN))
    _write_encoder(roles.encoder.encoder, levels)
    latents = levels[-1].values(values) * levels[-1].gain
    _write_decoder(decoder.decoder, levels, _guess(latents, values * levels[-2].gain))


def _guess(latents_bthwn: Tensor, values_bthwn: Tensor) -> Tensor:
    """Return the kernel [values, latents, 3, 3] that predicts all values of a cell from
    the latents of the cell and its neighbours.

    The first values equal the latents; the others are not stored, but correlate with
    the latents of neighbours.
    """
    seen = 3 * torch.tanh(latents_bthwn / 3)  # bounded as at the decoder's input
    patches = F.unfold(seen.flatten(0, 1).permute(0, 3, 1, 2), 3, padding=1).transpose(1, 2).flatten(0, 1)
    wanted = values_bthwn.flatten(0, 3)
    products = patches.T @ patches
    ridge = RIDGE * products.diagonal().mean() * torch.eye(len(products), dtype=products.dtype)
    kernel = torch.linalg.solve(products + ridge, patches.T @ wanted)
    return kernel.T.unflatten(1, (-1, 3, 3))


def _check(config: EncoderConfig, out: DecoderConfig) -> None:
    """Raise ConfigError if no linear map in the decoder can invert one in the
    encoder."""
    factors = {*config.time_pools, *config.strides, *(stage.time_growth for stage in out.stages)}
    shrinks = [each for pair in zip(config.time_pools, config.strides, strict=True) for each in _steps(*pair)]
    grows = [each for stage in out.stages for each in reversed(_steps(stage.time_growth, 1 + stage.upsample))]
    if factors - {1, 2} or out.last_shuffle != config.patch or shrinks[::-1] != grows:
        raise ConfigError(f"the decoder grows by {grows}, expected one that mirrors the encoder, by {shrinks[::-1]}")
    if "space" in grows and out.upsampling != "pixel_shuffle":
        raise ConfigError(f"the decoder enlarges by {out.upsampling}, components need pixel_shuffle")
    if not (config.linear_trunk and out.linear_trunk):
        raise ConfigError("the trunk has activations, components need linear_trunk in encoder and decoder")
    if min(out.widths) < config.width:
        raise ConfigError(
            f"the decoder is {min(out.widths)} channels wide, components need the encoder's {config.width}"
        )


def _steps(time: int, space: int) -> list[str]:
    return ["time"] * (time == 2) + ["space"] * (space == 2)


def _pairs(x_bthwn: Tensor) -> Tensor:
    """Concatenate the values of every two frames."""
    return torch.cat([x_bthwn[:, 0::2], x_bthwn[:, 1::2]], dim=-1)


def _squares(x_bthwn: Tensor) -> Tensor:
    """Concatenate the values of every two by two cells, row by row."""
    return torch.cat([x_bthwn[:, :, row::2, column::2] for row in (0, 1) for column in (0, 1)], dim=-1)


def _write_encoder(layers: nn.Sequential, levels: list[_Level]) -> None:
    first, end = cast("nn.Conv2d", layers[0]), cast("nn.Conv2d", layers[-1])
    weight = levels[0].basis * levels[0].gain[:, None]
    _write(first, weight, -weight @ levels[0].mean)

    maps = [level.forward_map(before) for before, level in pairwise(levels)]
    following = iter(maps)
    for layer in list(layers.children())[1:-1]:
        if isinstance(layer, TimePool):
            if layer.factor == 1:
                _identity(layer.conv)
                continue
            nn.init.zeros_(layer.conv.weight)
            width = layer.conv.weight.shape[0]
            for frame, part in enumerate(next(following).float().chunk(2, dim=1)):
                layer.conv.weight[: len(part), frame * width : frame * width + part.shape[1], 0, 0] = part
        elif isinstance(layer, nn.Conv2d):
            if layer.stride == (1, 1):
                _identity(layer)
                continue
            nn.init.zeros_(layer.weight)
            for cell, part in enumerate(next(following).float().chunk(4, dim=1)):
                layer.weight[: len(part), : part.shape[1], 1 + cell // 2, 1 + cell % 2] = part

    _hush(layers)
    _write(end, maps[-1])


def _write_decoder(layers: nn.Sequential, levels: list[_Level], guess: Tensor) -> None:
    parts = list(layers.children())
    first, end = cast("nn.Conv2d", parts[1]), [x for x in parts if isinstance(x, nn.Conv2d)][-1]
    assert first.bias is not None
    nn.init.zeros_(first.weight)
    nn.init.zeros_(first.bias)
    first.weight[: len(guess)] = guess.float()
    weight = torch.eye(len(guess), dtype=guess.dtype)
    for number in range(len(levels) - 2, 0, -1):
        growth = next(x for x in parts if isinstance(x, TimeGrowth | ShuffleUp) and _factor(x) == 2)
        del parts[: parts.index(growth) + 1]
        back = levels[number].backward_map(levels[number - 1])
        _write_growth(growth, back @ weight)
        weight = torch.eye(len(levels[number - 1].gain), dtype=back.dtype)
    for layer in layers.children():
        if isinstance(layer, TimeGrowth) and layer.factor == 1:
            _identity(layer.conv)
        elif isinstance(layer, nn.Conv2d) and layer not in (first, end):
            _identity(layer)
    _hush(layers)
    _write(end, levels[0].basis.T / levels[0].gain @ weight, levels[0].mean)


def _factor(layer: nn.Module) -> int:
    return layer.factor if isinstance(layer, TimeGrowth) else 2


def _write(layer: nn.Conv2d, weight: Tensor, bias: Tensor | None = None) -> None:
    """Write a linear map into the centre tap of a kernel; rows beyond it keep their
    random weights."""
    rows, columns = weight.shape
    layer.weight[:rows] = 0
    layer.weight[:rows, :columns, 1, 1] = weight.float()
    assert layer.bias is not None
    layer.bias[:rows] = 0 if bias is None else bias.float()


def _write_growth(growth: TimeGrowth | ShuffleUp, weight: Tensor) -> None:
    """Initialise a layer that turns one frame into two, or one cell into four;
    ``weight`` has the rows of all of them."""
    layer = growth.conv if isinstance(growth, TimeGrowth) else growth.conv_up
    pieces = 2 if isinstance(growth, TimeGrowth) else 4
    middle, width = layer.kernel_size[0] // 2, layer.weight.shape[0] // pieces
    nn.init.zeros_(layer.weight)
    for piece, rows in enumerate(weight.float().chunk(pieces)):
        # Output channels are grouped by frame, but interleaved by cell.
        at = torch.arange(len(rows)) + piece * width if pieces == 2 else torch.arange(len(rows)) * pieces + piece
        layer.weight[at, : rows.shape[1], middle, middle] = rows
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def _identity(layer: nn.Conv2d) -> None:
    nn.init.zeros_(layer.weight)
    middle = layer.kernel_size[0] // 2
    same = min(layer.weight.shape[:2])
    layer.weight[:same, :same, middle, middle] = torch.eye(same)


def _hush(layers: nn.Sequential) -> None:
    for block in layers.children():
        if isinstance(block, MemoryBlock):
            quiet = cast("nn.Conv2d", block.conv[4])
            assert quiet.bias is not None
            nn.init.zeros_(quiet.weight)
            nn.init.zeros_(quiet.bias)
