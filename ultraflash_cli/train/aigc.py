"""What a 480P generator's output looks like, made of clean clips: the AIGC-oriented degradation.

A degradation is a list of operators with their parameters drawn beforehand. The list is the log: the same list makes
the same sample again. Every operator is a pure function of the clip and its own parameters; one draw holds for all
frames of a clip, but for noise, flicker and compression, which vary in time as they do in life. Source: the data part
of the paper's training method (arXiv 2606.09150).
"""

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from ultraflash_cli.errors import ConfigError
from ultraflash_cli.video.round_trip import shrink_and_compress

__all__ = ["OPERATORS", "AigcConfig", "Coder", "Operator", "apply", "contact_sheet", "draw", "from_log", "to_log"]

Clip = npt.NDArray[np.uint8]
"""RGB frames [T, H, W, 3]."""
Coder = Callable[[Tensor, float, torch.Generator], Tensor]
"""Frames ``[1, 3, T, H, W]`` in [0, 1], a strength s and a generator of noise to ``D(E(x) + s * eps)``."""


@dataclass(frozen=True, kw_only=True)
class Operator(ABC):
    """One step of a degradation."""

    name: ClassVar[str]

    @abstractmethod
    def run(self, x_tchw: Tensor, coder: Coder | None) -> Tensor:
        """Return the clip [T, 3, H, W] in [0, 1], changed."""


@dataclass(frozen=True, kw_only=True)
class Blur(Operator):
    """An anisotropic gaussian blur."""

    name: ClassVar[str] = "blur"
    sigma_px: float
    """Along its direction."""
    ratio: float
    """Sigma across, as a share of the one along."""
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
    """Edge-preserving smoothing (a guided filter led by the clip itself): texture goes, edges stay."""

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
    """Noise of low amplitude on the latents, so that the artefacts of a decoder appear. Needs a coder."""

    name: ClassVar[str] = "latent_noise"
    strength: float
    seed: int

    def run(self, x_tchw: Tensor, coder: Coder | None) -> Tensor:
        if coder is None:
            raise ConfigError("latent noise needs an encoder and a decoder, none was given")
        made = coder(x_tchw.transpose(0, 1)[None], self.strength, torch.Generator().manual_seed(self.seed))
        return made[0].transpose(0, 1)


@dataclass(frozen=True, kw_only=True)
class TextureFlicker(Operator):
    """Fine texture that changes from frame to frame, stronger where there is detail."""

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
class BrightnessFlicker(Operator):
    """A brightness that wanders from frame to frame."""

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
    """Knots of the displacement a side."""
    knot_frames: int
    """Frames from one displacement to the next."""
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
    """Frames that a generator has stuck on: each of these shows the one before it."""

    name: ClassVar[str] = "repeat"
    places: tuple[float, ...]
    """Shares of the clip's length; the first frame is never replaced."""

    def run(self, x_tchw: Tensor, coder: Coder | None) -> Tensor:
        shown = list(range(len(x_tchw)))
        for place in self.places:
            at = min(len(shown) - 1, max(1, round(place * len(shown))))
            if len(shown) > 1:
                shown[at] = shown[at - 1]
        return x_tchw[shown]


@dataclass(frozen=True, kw_only=True)
class Deliver(Operator):
    """Scale (4:2:0 chroma included) and, with a codec, a trip through its bitstream."""

    name: ClassVar[str] = "deliver"
    size: tuple[int, int] | None = None
    """Height and width afterwards; None keeps them."""
    kernel: Literal["area", "bilinear", "bicubic", "lanczos"]
    codec: str | None = None
    crf: int = 23

    def run(self, x_tchw: Tensor, coder: Coder | None) -> Tensor:
        height, width = self.size or (x_tchw.shape[2], x_tchw.shape[3])
        frames = (x_tchw.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
        options = {"crf": str(self.crf)} | _CODEC_OPTIONS.get(self.codec or "", {})
        small = shrink_and_compress(
            frames, height=height, width=width, kernel=self.kernel, codec=self.codec, options=options
        )
        return torch.from_numpy(small).permute(0, 3, 1, 2).float() / 255


_CODEC_OPTIONS = {
    # Each with what makes it give the same bits again: no choice by timing, threads or the processor's features.
    "libx264": {"preset": "veryfast", "x264-params": "cpu-independent=1"},
    "libx265": {"preset": "ultrafast", "x265-params": "log-level=none:pools=none:frame-threads=1"},
    "libvpx-vp9": {"b": "0", "deadline": "good", "cpu-used": "5", "row-mt": "0"},
}

_KINDS: tuple[type[Operator], ...] = (
    Blur,
    Smooth,
    Halo,
    Colour,
    LatentNoise,
    TextureFlicker,
    BrightnessFlicker,
    Warp,
    Repeat,
    Deliver,
)
OPERATORS: dict[str, type[Operator]] = {kind.name: kind for kind in _KINDS}
"""Every operator by its name in a log."""


@dataclass(frozen=True, kw_only=True)
class AigcConfig:
    """Odds and ranges of the operators; lengths are in high-resolution pixels."""

    kernels: tuple[tuple[str, float], ...] = (("area", 0.3), ("bilinear", 0.2), ("bicubic", 0.3), ("lanczos", 0.2))
    """Down-scaling kernels and their odds."""
    detour_share: float = 0.3
    """How often down-scaling goes through an intermediate size."""
    blur: tuple[float, float, float] = (0.6, 0.3, 1.4)
    """Odds and range of the blur's sigma."""
    smooth: tuple[float, float, float] = (0.5, 0.0002, 0.003)
    """Odds and range of the variance that is smoothed away."""
    halo: tuple[float, float, float] = (0.4, 0.2, 0.8)
    """Odds and range of the over-sharpening."""
    colour_share: float = 0.5
    """How often colours drift."""
    latent_noise: tuple[float, float, float] = (0.5, 0.02, 0.15)
    """Odds and range of the noise on latents; drawn only where there is a coder."""
    texture_flicker: tuple[float, float, float] = (0.4, 0.004, 0.02)
    """Odds and range of flickering texture."""
    brightness_flicker: tuple[float, float, float] = (0.3, 0.004, 0.02)
    """Odds and range of flickering brightness."""
    warp: tuple[float, float, float] = (0.4, 0.2, 1.2)
    """Odds and range of the warping, in pixels."""
    repeat_share: float = 0.15
    """How often a frame or two repeat."""
    codecs: tuple[tuple[str, int, int, float], ...] = (
        ("libx264", 18, 32, 0.6),
        ("libx265", 20, 34, 0.2),
        ("libvpx-vp9", 24, 44, 0.2),
    )
    """Codecs with their range of quality and their odds."""
    codec_share: float = 0.8
    """How often the clip is compressed at all."""
    twice_share: float = 0.2
    """How often it is compressed once more."""


def draw(
    config: AigcConfig, size: tuple[int, int], scale: int, rng: np.random.Generator, *, with_coder: bool = False
) -> tuple[Operator, ...]:
    """Draw a degradation of clips of ``size`` (height, width) to 1 / ``scale`` of it, in the order of life.

    Noise on latents is drawn only ``with_coder``.
    """

    def odds(share: float) -> bool:
        return bool(rng.random() < share)

    def between(low: float, high: float) -> float:
        return float(rng.uniform(low, high))

    def seed() -> int:
        return int(rng.integers(2**31))

    def kernel() -> Any:
        names = [name for name, _ in config.kernels]
        return names[rng.choice(len(names), p=np.array([share for _, share in config.kernels]))]

    chosen: list[Operator] = []
    if odds(config.blur[0]):
        sigma, ratio, angle = between(*config.blur[1:]), between(0.5, 1.0), between(0, math.pi)
        chosen.append(Blur(sigma_px=sigma, ratio=ratio, angle=angle))
    if odds(config.smooth[0]):
        chosen.append(Smooth(radius_px=int(rng.integers(2, 5)), epsilon=between(*config.smooth[1:])))
    if odds(config.detour_share):
        step = between(1.1, 0.75 * scale)
        chosen.append(Deliver(size=_divided(size, step), kernel=kernel()))
    chosen.append(Deliver(size=(size[0] // scale, size[1] // scale), kernel=kernel()))
    if with_coder and odds(config.latent_noise[0]):
        chosen.append(LatentNoise(strength=between(*config.latent_noise[1:]), seed=seed()))
    if odds(config.halo[0]):
        chosen.append(Halo(sigma_px=between(0.6, 1.2), amount=between(*config.halo[1:])))
    if odds(config.colour_share):
        gains = (between(0.96, 1.04), between(0.96, 1.04), between(0.96, 1.04))
        chosen.append(Colour(gains=gains, contrast=between(0.92, 1.08), saturation=between(0.9, 1.15)))
    if odds(config.warp[0]):
        amplitude = between(*config.warp[1:]) / scale
        chosen.append(Warp(amplitude_px=amplitude, cells=int(rng.integers(3, 7)), knot_frames=4, seed=seed()))
    if odds(config.texture_flicker[0]):
        strength, grain = between(*config.texture_flicker[1:]), between(1.0, 2.5)
        chosen.append(TextureFlicker(strength=strength, grain_px=grain, seed=seed()))
    if odds(config.brightness_flicker[0]):
        chosen.append(BrightnessFlicker(strength=between(*config.brightness_flicker[1:]), seed=seed()))
    if odds(config.repeat_share):
        chosen.append(Repeat(places=tuple(between(0, 1) for _ in range(int(rng.integers(1, 3))))))
    if odds(config.codec_share):
        for _ in range(2 if odds(config.twice_share) else 1):
            names = [name for name, *_ in config.codecs]
            which = int(rng.choice(len(names), p=np.array([share for *_, share in config.codecs])))
            codec, low, high, _ = config.codecs[which]
            crf = int(rng.integers(low, high + 1))
            chosen.append(Deliver(kernel="bicubic", codec=codec, crf=crf))
    return tuple(chosen)


def _divided(size: tuple[int, int], by: float) -> tuple[int, int]:
    height, width = (2 * max(1, round(side / by / 2)) for side in size)
    return height, width


def apply(frames_thwc: Clip, operators: Sequence[Operator], *, coder: Coder | None = None) -> Clip:
    """Return a clip after all operators, in 8 bits; a pure function of its arguments.

    Raises ConfigError for noise on latents without a ``coder``.
    """
    x = torch.from_numpy(frames_thwc).permute(0, 3, 1, 2).float() / 255
    for operator in operators:
        x = operator.run(x, coder).clamp(0, 1)
    return (x * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


def to_log(operators: Sequence[Operator]) -> list[dict[str, Any]]:
    """Return the operators as JSON values."""
    return [{"operator": each.name, **dataclasses.asdict(each)} for each in operators]


def from_log(log: Sequence[dict[str, Any]]) -> tuple[Operator, ...]:
    """Return the operators of a log. Raises ConfigError for an operator that there is not."""
    made: list[Operator] = []
    for entry in log:
        kind = OPERATORS.get(str(entry.get("operator")))
        values = {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}
        values.pop("operator", None)
        try:
            if kind is None:
                raise TypeError("no such operator")
            made.append(kind(**values))
        except TypeError as error:
            raise ConfigError(f"a degradation's log holds {entry}: {error}") from error
    return tuple(made)


def contact_sheet(
    frames_thwc: Clip, scale: int, config: AigcConfig, *, seed: int, count: int
) -> tuple[Clip, list[Any]]:
    """Return a picture of ``count`` degradations of a clip, and their logs.

    The first column shows the clip scaled down and nothing else; each further one a degradation, at the first, the
    middle and the last frame.
    """
    _, height, width, _ = frames_thwc.shape
    clean = Deliver(size=(height // scale, width // scale), kernel="bicubic")
    logs: list[Any] = []
    columns: list[Clip] = []
    for number in range(count + 1):
        rng = np.random.default_rng((seed, number))
        operators = draw(config, (height, width), scale, rng) if number else (clean,)
        low = apply(frames_thwc, operators)
        columns.append(np.concatenate([low[0], low[len(low) // 2], low[-1]]))
        logs.append(to_log(operators))
    return np.concatenate(columns, axis=1), logs
