"""Causal latent upsampler (version 3): one flat list of layers that becomes narrower
stage by stage; scales are powers of two."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ultraflash_cli.engine.layers.memory_block import (
    MemoryBlock,
    MemoryInit,
    MemorySequential,
    MemoryState,
    TimeGrowth,
    in_pieces,
    to_clip,
    to_frames,
)
from ultraflash_cli.errors import ConfigError

__all__ = ["LatentUpsamplerV3", "LatentUpsamplerV3Config"]


@dataclass(frozen=True, kw_only=True)
class LatentUpsamplerV3Config:
    """Sizes of the upsampler; the defaults are the published ones
    (reference/cascade.md 3.2)."""

    scale: int = 2
    """Spatial growth per side, a power of two; each of the first stages doubles the
    size."""
    latent_channels: int = 16
    """Number of channels of a latent frame, in and out."""
    widths: tuple[int, ...] = (256, 128, 64)
    """Internal channels, stage by stage."""
    blocks: int = 3
    """Memory blocks in each stage."""
    memory_init: MemoryInit = "replicate"
    """The memory before the first frame."""

    def __post_init__(self) -> None:
        if not self.widths or min(self.latent_channels, self.blocks, *self.widths) < 1:
            raise ConfigError("upsampler sizes must be positive")
        if self.scale not in {2**doubled for doubled in range(len(self.widths) + 1)}:
            raise ConfigError(
                f"the scale of {len(self.widths)} stages must be a power of two up to "
                f"{2 ** len(self.widths)}, got {self.scale}"
            )


class _Enlarge(nn.Module):
    """Doubles the size by a convolution and a pixel shuffle, or keeps it."""

    def __init__(self, width: int, *, doubles: bool) -> None:
        super().__init__()
        self.factor = 2 if doubles else 1
        layers = (
            (nn.Conv2d(width, width * 4, 3, padding=1), nn.PixelShuffle(2))
            if doubles
            else ()
        )
        self.block = nn.Sequential(*layers)

    def forward(self, x_nchw: Tensor) -> Tensor:
        """Map [N, C, H, W] to [N, C, factor * H, factor * W]."""
        return self.block(x_nchw).contiguous(memory_format=torch.channels_last)


class LatentUpsamplerV3(nn.Module):
    """Latents [B, C, T, H, W] to [B, C, T, scale * H, scale * W], frame by frame, with
    a memory of one frame."""

    def __init__(self, config: LatentUpsamplerV3Config) -> None:
        super().__init__()
        self.config = config
        widths = config.widths
        layers: list[nn.Module] = [
            nn.Conv2d(config.latent_channels, widths[0], 3, padding=1),
            nn.ReLU(inplace=True),
        ]
        for stage, width in enumerate(widths):
            layers += [
                MemoryBlock(width, init=config.memory_init) for _ in range(config.blocks)
            ]
            layers += [
                _Enlarge(width, doubles=2**stage < config.scale),
                TimeGrowth(width, 1),
            ]
            if stage + 1 < len(widths):
                layers.append(nn.Conv2d(width, widths[stage + 1], 3, padding=1, bias=False))

        layers += [
            nn.ReLU(inplace=True),
            nn.Conv2d(widths[-1], config.latent_channels, 3, padding=1),
        ]
        self.net = MemorySequential(*layers)

    def upsample(
        self, latents_bcthw: Tensor, memories: tuple[Tensor, ...] | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Upsample a piece of a clip at once; differentiable. ``memories`` is None at
        the start of a stream."""
        batch = latents_bcthw.shape[0]
        x, after = self.net.stream(to_frames(latents_bcthw), memories, batch)
        return to_clip(x, batch), after

    def init_state(self, *, batch: int, height: int, width: int) -> MemoryState:
        """Return the state before the first latent frame of ``height`` x ``width``."""
        factor = 1
        shapes: list[tuple[int, ...]] = []
        for layer in self.net:
            if isinstance(layer, _Enlarge):
                factor *= layer.factor
            elif isinstance(layer, MemoryBlock):
                shapes.append((batch, layer.width, height * factor, width * factor))
        return MemoryState.empty(shapes, like=self._weight)

    def group_size(self, state: MemoryState) -> int:
        """Return 1: a group is any number of latents."""
        return 1

    def step(self, state: MemoryState, latents_bcthw: Tensor) -> tuple[MemoryState, Tensor]:
        """Return equally many latents at the high resolution."""
        latents = latents_bcthw.to(self._weight.dtype)
        return in_pieces(self.upsample, state, latents, size=1)

    @property
    def _weight(self) -> Tensor:
        first = self.net[0]
        assert isinstance(first, nn.Conv2d), "the list starts with a convolution"
        return first.weight
