"""Operators for the defects of tapes and discs: soft and shifted colours, jittering and
torn lines, dropouts, fields."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ultraflash_cli.train.operator import Coder, Operator

__all__ = ["Dropouts", "Fields", "HeadSwitch", "LineJitter", "TapeColour", "TapeNoise"]

_YCC = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))
_RGB = ((1.0, 0.0, 1.402), (1.0, -0.344136, -0.714136), (1.0, 1.772, 0.0))


def _mixed(x_tchw: Tensor, matrix: tuple[tuple[float, ...], ...]) -> Tensor:
    return torch.einsum("oc,tchw->tohw", torch.tensor(matrix), x_tchw)


def _blurred(planes_tchw: Tensor, sigma_px: float, axis: Literal["across", "down"]) -> Tensor:
    """Blur along one axis."""
    reach = max(1, math.ceil(3 * sigma_px))
    taps = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma_px) ** 2)
    kernel = (taps / taps.sum()).view((1, 1, 1, -1) if axis == "across" else (1, 1, -1, 1))
    pad = (reach, reach, 0, 0) if axis == "across" else (0, 0, reach, reach)
    flat = planes_tchw.flatten(0, 1).unsqueeze(1)
    return F.conv2d(F.pad(flat, pad, mode="replicate"), kernel).squeeze(1).view_as(planes_tchw)


def _lines_moved(x_tchw: Tensor, shift_px_th: Tensor) -> Tensor:
    """Shift each line to the right by its own number of pixels ``[frames, lines]``."""
    frames, _, height, width = x_tchw.shape
    identity = F.affine_grid(torch.eye(2, 3)[None].expand(frames, -1, -1), [frames, 3, height, width], False)
    moved = identity.clone()
    moved[..., 0] -= shift_px_th[:, :, None] * 2 / width
    return F.grid_sample(x_tchw, moved, mode="bilinear", padding_mode="border", align_corners=False)


@dataclass(frozen=True, kw_only=True)
class TapeColour(Operator):
    """The limited bandwidth of a tape: soft luma, and much softer, displaced chroma."""

    name: ClassVar[str] = "tape_colour"
    luma_px: float
    """Sigma of the blur of brightness along lines."""
    chroma_px: float
    """Sigma of the blur of colours along lines."""
    shift_px: tuple[float, float]
    """Displacement of the colours to the right and down."""
    ringing: float = 0.0
    """Strength of the subsequent horizontal sharpening, with halos, as in players."""

    def run(self, x_tchw: Tensor, coder: Coder | None) -> Tensor:
        ycc = _mixed(x_tchw, _YCC)
        luma = _blurred(ycc[:, :1], self.luma_px, "across")
        luma = luma + self.ringing * (luma - _blurred(luma, 2 * self.luma_px, "across"))
        colours = _blurred(_blurred(ycc[:, 1:], self.chroma_px, "across"), max(0.3, self.chroma_px / 4), "down")
        frames, _, height, width = x_tchw.shape
        place = F.affine_grid(torch.eye(2, 3)[None].expand(frames, -1, -1), [frames, 2, height, width], False)
        place = place - torch.tensor([2 * self.shift_px[0] / width, 2 * self.shift_px[1] / height])
        colours = F.grid_sample(colours, place, mode="bilinear", padding_mode="border", align_corners=False)
        return _mixed(torch.cat([luma, colours], dim=1), _RGB)


@dataclass(frozen=True, kw_only=True)
class TapeNoise(Operator):
    """Tape noise: streaks along lines in luma, blotches in chroma, new in every
    frame."""

    name: ClassVar[str] = "tape_noise"
    luma: float
    """Standard deviation in brightness."""
    chroma: float
    """Standard deviation in the colour differences."""
    streak_px: float
    """Sigma of the noise along lines."""
    seed: int

    def run(self, x_tchw: Tensor, coder: Coder | None) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        frames, _, height, width = x_tchw.shape
        noise = torch.randn((frames, 3, height, width), generator=generator)
        luma = _blurred(noise[:, :1], self.streak_px, "across")
        blotches = _blurred(_blurred(noise[:, 1:], 3 * self.streak_px, "across"), 1.5, "down")
        scaled = [self.luma * luma / luma.std(), self.chroma * blotches / blotches.std()]
        return x_tchw + _mixed(torch.cat(scaled, dim=1), _RGB)


@dataclass(frozen=True, kw_only=True)
class LineJitter(Operator):
    """Lines that start slightly early or late: a slow sway down the picture, plus
    jitter of each line."""

    name: ClassVar[str] = "line_jitter"
    sway_px: float
    unrest_px: float
    seed: int

    def run(self, x_tchw: Tensor, coder: Coder | None) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        frames, _, height, _ = x_tchw.shape
        knots = torch.randn((frames, 1, max(3, height // 40)), generator=generator)
        sway = F.interpolate(knots, size=height, mode="linear", align_corners=True)[:, 0]
        unrest = torch.randn((frames, height), generator=generator)
        return _lines_moved(x_tchw, self.sway_px * sway + self.unrest_px * unrest)


@dataclass(frozen=True, kw_only=True)
class HeadSwitch(Operator):
    """The lines at the bottom where a player switches its heads: displaced, more so towards the edge, and noisy."""

    name: ClassVar[str] = "head_switch"
    lines: int
    shift_px: float
    noise: float
    seed: int

    def run(self, x_tchw: Tensor, coder: Coder | None) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        frames, _, height, width = x_tchw.shape
        lines = min(self.lines, height)
        ramp = torch.zeros(frames, height)
        ramp[:, height - lines :] = torch.linspace(0.6, 1.0, lines)
        moved = _lines_moved(x_tchw, self.shift_px * ramp * (1 + 0.2 * torch.randn((frames, 1), generator=generator)))
        noise = self.noise * torch.randn((frames, 1, lines, width), generator=generator)
        moved[:, :, height - lines :] += noise
        return moved


@dataclass(frozen=True, kw_only=True)
class Dropouts(Operator):
    """Short white or black streaks where the tape has lost its coating, at new
    positions in every frame."""

    name: ClassVar[str] = "dropouts"
    per_frame: float
    length_px: float
    seed: int

    def run(self, x_tchw: Tensor, coder: Coder | None) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        frames, _, height, width = x_tchw.shape
        changed = x_tchw.clone()
        counts = torch.poisson(torch.full((frames,), self.per_frame), generator=generator).long().tolist()
        for frame, count in enumerate(counts):
            for line, left, length, tone in torch.rand((count, 4), generator=generator).tolist():
                start = int(left * width)
                end = min(width, start + max(2, round(self.length_px * (0.3 + 1.4 * length))))
                level = 1.0 if tone < 0.7 else 0.0
                fade = torch.linspace(1, 0.2, end - start)
                row = changed[frame, :, int(line * height), start:end]
                row += fade * (level - row)
        return changed


@dataclass(frozen=True, kw_only=True)
class Fields(Operator):
    """Interlacing and deinterlacing: in each frame, every other line comes from half a
    frame later.

    ``blend`` averages the two moments, ``bob`` interpolates the lines of one field,
    ``weave`` leaves the combing.
    """

    name: ClassVar[str] = "fields"
    top_first: bool
    method: Literal["blend", "bob", "weave"]

    def run(self, x_tchw: Tensor, coder: Coder | None) -> Tensor:
        following = torch.cat([x_tchw[1:], x_tchw[-1:]])
        # The second field is halfway in time between two frames.
        woven = x_tchw.clone()
        later = 1 if self.top_first else 0
        woven[:, :, later::2] = ((x_tchw + following) / 2)[:, :, later::2]
        if self.method == "weave":
            return woven
        above = torch.cat([woven[:, :, 1:2], woven[:, :, :-1]], dim=2)
        below = torch.cat([woven[:, :, 1:], woven[:, :, -2:-1]], dim=2)
        if self.method == "blend":
            return woven / 2 + (above + below) / 4
        filled = woven.clone()
        filled[:, :, later::2] = ((above + below) / 2)[:, :, later::2]
        return filled
