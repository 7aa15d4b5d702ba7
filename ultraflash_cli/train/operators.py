"""Operators that degrade clips: optics, generators, sensors, scaling, codecs.

A degradation is a list of operators whose parameters were sampled beforehand. The list
is also the log: the same list reproduces the same sample. Every operator is a pure
function of the clip and its own parameters; parameters apply to all frames of a clip,
except for noise, flicker and compression, which vary over time as in real footage.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ultraflash_cli.errors import ConfigError
from ultraflash_cli.train.operator import Clip, Coder, Operator
from ultraflash_cli.video.round_trip import shrink_and_compress

__all__ = [
    "Blur",
    "BrightnessFlicker",
    "Colour",
    "Deliver",
    "Grain",
    "Halo",
    "LatentNoise",
    "Repeat",
    "Smooth",
    "TextureFlicker",
    "Warp",
    "apply",
    "to_log",
]


@dataclass(frozen=True, kw_only=True)
class Blur(Operator):
    """An anisotropic gaussian blur."""

    name: ClassVar[str] = "blur"
    sigma_px: float
    """Sigma along the direction."""
    ratio: float
    """Sigma across the direction, relative to the one along it."""
    angle: float
    """Direction in radians."""

    def run(self, x_tchw: Tensor, coder: Coder | None) -> Tensor:
        reach = max(1, math.ceil(3 * self.sigma_px))
        at = torch.arange(-reach, reach + 1, dtype=torch.float32)
        y, x = torch.meshgrid(at, at, indexing="ij")
        along = x * math.cos(self.angle) + y * math.sin(self.angle)
        across = y * math.cos(self.angle) - x * math.sin(self.angle)
        taps = torch.exp(-0.5 * ((along / self.sigma_px) ** 2 + (across / (self.sigma_px * self.ratio)) ** 2))
        padded = F.pad(x_tchw, (reach,) * 4, mode="replicate").flatten(0, 1).unsqueeze(1)
        return F.conv2d(padded, (taps / taps.sum())[None, None]).squeeze(1).view_as(x_tchw)


@dataclass(frozen=True, kw_only=True)
class Smooth(Operator):
    """Edge-preserving smoothing (a self-guided filter), which removes texture and keeps
    edges."""

    name: ClassVar[str] = "smooth"
    radius_px: int
    epsilon: float
    """Variance below which detail counts as texture."""

    def run(self, x_tchw: Tensor, coder: Coder | None) -> Tensor:
        def mean(x: Tensor) -> Tensor:
            padded = F.pad(x, (self.radius_px,) * 4, mode="replicate")
            return F.avg_pool2d(padded, 2 * self.radius_px + 1, stride=1)

        low = mean(x_tchw)
        variance = (mean(x_tchw.square()) - low.square()).clamp_min(0)
        share = variance / (variance + self.epsilon)
        return mean(share) * x_tchw + mean(low * (1 - share))


@dataclass(frozen=True, kw_only=True)
class Halo(Operator):
    """Slight over-sharpening with its halos (unsharp mask)."""

    name: ClassVar[str] = "halo"
    sigma_px: float
    amount: float

    def run(self, x_tchw: Tensor, coder: Coder | None) -> Tensor:
        soft = Blur(sigma_px=self.sigma_px, ratio=1.0, angle=0.0).run(x_tchw, coder)
        return x_tchw + self.amount * (x_tchw - soft)


@dataclass(frozen=True, kw_only=True)
class Colour(Operator):
    """A drift of exposure, contrast and saturation, and of each channel."""

    name: ClassVar[str] = "colour"
    gains: tuple[float, float, float]
    contrast: float
    saturation: float

    def run(self, x_tchw: Tensor, coder: Coder | None) -> Tensor:
        x = x_tchw * torch.tensor(self.gains).view(1, 3, 1, 1)
        grey = x.mean(dim=1, keepdim=True)
        x = grey + self.saturation * (x - grey)
        level = x.mean()
        return level + self.contrast * (x - level)


@dataclass(frozen=True, kw_only=True)
class LatentNoise(Operator):
    """Low-amplitude noise on the latents, which brings out a decoder's artefacts. Needs
    a coder."""

    name: ClassVar[str] = "latent_noise"
    strength: float
    seed: int

    def run(self, x_tchw: Tensor, coder: Coder | None) -> Tensor:
        if coder is None:
            raise ConfigError("latent noise needs an encoder and a decoder")
        made = coder(x_tchw.transpose(0, 1)[None], self.strength, torch.Generator().manual_seed(self.seed))
        return made[0].transpose(0, 1)


@dataclass(frozen=True, kw_only=True)
class TextureFlicker(Operator):
    """Fine texture that changes from frame to frame, stronger in detailed areas."""

    name: ClassVar[str] = "texture_flicker"
    strength: float
    grain_px: float
    seed: int

    def run(self, x_tchw: Tensor, coder: Coder | None) -> Tensor:
        frames, _, height, width = x_tchw.shape
        generator = torch.Generator().manual_seed(self.seed)
        rows, columns = (max(2, math.ceil(side / self.grain_px)) for side in (height, width))
        grain = F.interpolate(
            torch.randn((frames, 1, rows, columns), generator=generator),
            size=(height, width),
            mode="bicubic",
            align_corners=False,
        )
        detail = (x_tchw - F.avg_pool2d(F.pad(x_tchw, (2,) * 4, mode="replicate"), 5, stride=1)).abs()
        return x_tchw + self.strength * grain * (0.3 + detail / detail.mean().clamp_min(1e-4)).clamp_max(3)


@dataclass(frozen=True, kw_only=True)
class Grain(Operator):
    """Sensor noise: new in every frame, stronger in bright areas, a little of it in
    chroma."""

    name: ClassVar[str] = "grain"
    strength: float
    """Standard deviation at mid grey."""
    seed: int

    def run(self, x_tchw: Tensor, coder: Coder | None) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        frames, colours, height, width = x_tchw.shape
        grey = torch.randn((frames, 1, height, width), generator=generator)
        colour = torch.randn((frames, colours, height, width), generator=generator)
        return x_tchw + self.strength * (0.5 + x_tchw).sqrt() * (0.9 * grey + 0.45 * colour)


@dataclass(frozen=True, kw_only=True)
class BrightnessFlicker(Operator):
    """Brightness that drifts from frame to frame."""

    name: ClassVar[str] = "brightness_flicker"
    strength: float
    seed: int

    def run(self, x_tchw: Tensor, coder: Coder | None) -> Tensor:
        steps = torch.randn(len(x_tchw), generator=torch.Generator().manual_seed(self.seed))
        return x_tchw * (1 + self.strength * steps.view(-1, 1, 1, 1))


@dataclass(frozen=True, kw_only=True)
class Warp(Operator):
    """A slight warping, below a pixel or two, smooth in space and time."""

    name: ClassVar[str] = "warp"
    amplitude_px: float
    cells: int
    """Knots of the displacement field per side."""
    knot_frames: int
    """Frames between knots of the displacement."""
    seed: int

    def run(self, x_tchw: Tensor, coder: Coder | None) -> Tensor:
        frames, _, height, width = x_tchw.shape
        knots = max(2, math.ceil(frames / self.knot_frames) + 1)
        coarse = torch.randn((1, 2, knots, self.cells, self.cells), generator=torch.Generator().manual_seed(self.seed))
        field = F.interpolate(coarse, size=(frames, height, width), mode="trilinear", align_corners=True)[0]
        shift_px = self.amplitude_px * field.permute(1, 2, 3, 0)
        identity = F.affine_grid(torch.eye(2, 3)[None].expand(frames, -1, -1), [frames, 3, height, width], False)
        scale = torch.tensor([2 / width, 2 / height])
        return F.grid_sample(
            x_tchw, identity + shift_px * scale, mode="bicubic", padding_mode="border", align_corners=False
        )


@dataclass(frozen=True, kw_only=True)
class Repeat(Operator):
    """Frozen frames, as generators produce them: each repeats the previous frame."""

    name: ClassVar[str] = "repeat"
    places: tuple[float, ...]
    """Positions of the repeated frames, as shares of the clip's length; the first frame
    is never replaced."""

    def run(self, x_tchw: Tensor, coder: Coder | None) -> Tensor:
        shown = list(range(len(x_tchw)))
        for place in self.places:
            at = min(len(shown) - 1, max(1, round(place * len(shown))))
            if len(shown) > 1:
                shown[at] = shown[at - 1]
        return x_tchw[shown]


@dataclass(frozen=True, kw_only=True)
class Deliver(Operator):
    """Scaling (including 4:2:0 chroma) and, with a codec, encoding and decoding."""

    name: ClassVar[str] = "deliver"
    size: tuple[int, int] | None = None
    """Output height and width; None keeps the size."""
    kernel: Literal["area", "bilinear", "bicubic", "lanczos"]
    codec: str | None = None
    crf: int = 23
    """Quality of the codec (its quantiser for mpeg2video)."""
    preset: str | None = None
    """Encoder preset; None is a fast one."""

    def run(self, x_tchw: Tensor, coder: Coder | None) -> Tensor:
        height, width = self.size or (x_tchw.shape[2], x_tchw.shape[3])
        frames = (x_tchw.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
        quality = {"qmin": str(self.crf), "qmax": str(self.crf)} if self.codec in _QUANTISED else {"crf": str(self.crf)}
        options = quality | _CODEC_OPTIONS.get(self.codec or "", {})
        options |= {"preset": self.preset} if self.preset else {}
        small = shrink_and_compress(
            frames, height=height, width=width, kernel=self.kernel, codec=self.codec, options=options
        )
        return torch.from_numpy(small).permute(0, 3, 1, 2).float() / 255


_QUANTISED = {"mpeg2video"}
"""Codecs whose quality value is the quantiser, 2 to 31."""
_CODEC_OPTIONS = {
    # Options that make each encoder reproducible: no choices by timing, threads or
    # processor features.
    "libx264": {"preset": "veryfast", "x264-params": "cpu-independent=1"},
    "libx265": {"preset": "ultrafast", "x265-params": "log-level=none:pools=none:frame-threads=1"},
    "mpeg2video": {"g": "12", "bf": "2"},
    "libvpx-vp9": {"b": "0", "deadline": "good", "cpu-used": "5", "row-mt": "0"},
}


def apply(frames_thwc: Clip, operators: Sequence[Operator], *, coder: Coder | None = None) -> Clip:
    """Apply all operators to a clip and return it in 8 bits; a pure function.

    Raises ConfigError for latent noise without a ``coder``.
    """
    x = torch.from_numpy(frames_thwc).permute(0, 3, 1, 2).float() / 255
    for operator in operators:
        x = operator.run(x, coder).clamp(0, 1)
    return (x * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


def to_log(operators: Sequence[Operator]) -> list[dict[str, Any]]:
    """Return the operators as JSON values."""
    return [{"operator": each.name, **dataclasses.asdict(each)} for each in operators]
