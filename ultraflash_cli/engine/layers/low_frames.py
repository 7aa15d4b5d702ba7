"""Low-resolution frames as a second input of a decoder."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ultraflash_cli.engine.layers.resample import lanczos_upscale
from ultraflash_cli.engine.schedule import FRAMES_PER_LATENT

__all__ = ["LowFrames", "by_latent"]

GAIN = 10.0
"""Factor on the convolutions' results, so that weights that start at zero next to
trained ones need not grow as far."""


def by_latent(frames_bcthw: Tensor) -> Tensor:
    """Return frames [B, 3, 4T, H, W] as [B, 12, T, H, W]: the frames of each latent
    become its channels."""
    frames = frames_bcthw.unflatten(2, (-1, FRAMES_PER_LATENT))
    return frames.permute(0, 3, 1, 2, 4, 5).flatten(1, 2)


class LowFrames(nn.Module):
    """Adds low-resolution frames to a decoder: to the features before its last stage,
    and to its output frames. Both convolutions start at zero, so that a decoder with
    this input initially equals one without. They read frames enlarged by a Lanczos
    filter, and therefore work at every scale.

    Args:
        width: Channels of the last stage.
        cell_px: Sides of a cell of that stage, in pixels of the result.
        cell_frames: Frames that the stage makes of one.
    """

    def __init__(self, width: int, *, cell_px: int, cell_frames: int) -> None:
        super().__init__()
        self.cell_px = cell_px
        self.cell_frames = cell_frames
        values = 3 * cell_frames * cell_px**2
        self.features = nn.Conv2d(values, width, 3, padding=1)
        self.pixels = nn.Conv2d(3, 3, 3, padding=1)
        for layer in (self.features, self.pixels):
            nn.init.zeros_(layer.weight)
            assert layer.bias is not None, "the convolutions have biases"
            nn.init.zeros_(layer.bias)

    def forward(self, low_bcthw: Tensor, height_px: int) -> tuple[Tensor, Tensor]:
        """Return the additions to the features and to the frames, frame by frame.
        ``low_bcthw`` has the form returned by ``by_latent``; ``height_px`` is the
        height of the result.
        """
        low = low_bcthw.unflatten(1, (FRAMES_PER_LATENT, 3)).permute(0, 3, 1, 2, 4, 5)
        low_nchw = low.flatten(0, 2).to(self.pixels.weight.dtype)
        scale = height_px // low_nchw.shape[2]
        shown = lanczos_upscale(low_nchw, scale) if scale > 1 else low_nchw
        shown = shown.contiguous(memory_format=torch.channels_last)

        together = shown.unflatten(0, (-1, self.cell_frames)).flatten(1, 2)
        cells = F.pixel_unshuffle(together, self.cell_px)
        cells = cells.contiguous(memory_format=torch.channels_last)
        return GAIN * self.features(cells), GAIN * self.pixels(shown)
