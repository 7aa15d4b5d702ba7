"""Degradations that turn a high-resolution clip into a low-resolution one, sampled as
lists of operators.

All recipes share one mixture of six kinds: ``clean`` clips are only downscaled,
``compressed`` ones look like everyday video files, ``generated`` ones like the
delivered output of video generators, ``noisy`` ones like low-light footage, ``tape``
ones like VHS, ``disc`` ones like DVDs.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from ultraflash_cli.train.operator import Clip, Operator
from ultraflash_cli.train.operators import (
    Blur,
    BrightnessFlicker,
    Colour,
    Deliver,
    Grain,
    Halo,
    LatentNoise,
    Repeat,
    Smooth,
    TextureFlicker,
    Warp,
    apply,
    to_log,
)
from ultraflash_cli.train.tape_operators import Dropouts, Fields, HeadSwitch, LineJitter, TapeColour, TapeNoise

__all__ = [
    "KINDS",
    "AigcConfig",
    "DegradationConfig",
    "Kind",
    "TapeConfig",
    "contact_sheet",
    "degrade",
    "draw",
    "draw_aigc",
    "draw_tape",
]

Kind = Literal["clean", "compressed", "generated", "noisy", "tape", "disc"]
KINDS: tuple[Kind, ...] = ("clean", "compressed", "generated", "noisy", "tape", "disc")
"""Kinds of degradation of a low-resolution clip."""


@dataclass(frozen=True, kw_only=True)
class AigcConfig:
    """Degradations of a 480P generator's output: probabilities and ranges; lengths are
    in high-resolution pixels.

    Source: the data part of the paper's training method (arXiv 2606.09150).
    """

    kernels: tuple[tuple[str, float], ...] = (("area", 0.3), ("bilinear", 0.2), ("bicubic", 0.3), ("lanczos", 0.2))
    """Downscaling kernels and their probabilities."""
    detour_share: float = 0.3
    """Probability that downscaling goes through an intermediate size."""
    blur: tuple[float, float, float] = (0.6, 0.3, 1.4)
    """Probability and range of the blur's sigma."""
    smooth: tuple[float, float, float] = (0.5, 0.0002, 0.003)
    """Probability and range of the variance that is smoothed away."""
    halo: tuple[float, float, float] = (0.4, 0.2, 0.8)
    """Probability and range of the over-sharpening."""
    colour_share: float = 0.5
    """Probability of colour drift."""
    latent_noise: tuple[float, float, float] = (0.5, 0.02, 0.15)
    """Probability and range of the noise on latents; used only if a coder is
    available."""
    texture_flicker: tuple[float, float, float] = (0.4, 0.004, 0.02)
    """Probability and range of flickering texture."""
    brightness_flicker: tuple[float, float, float] = (0.3, 0.004, 0.02)
    """Probability and range of flickering brightness."""
    warp: tuple[float, float, float] = (0.4, 0.2, 1.2)
    """Probability and range of the warping, in pixels."""
    repeat_share: float = 0.15
    """Probability that one or two frames repeat."""
    codecs: tuple[tuple[str, int, int, float], ...] = (
        ("libx264", 18, 32, 0.6),
        ("libx265", 20, 34, 0.2),
        ("libvpx-vp9", 24, 44, 0.2),
    )
    """Codecs with their quality range and their probability."""
    codec_share: float = 0.8
    """Probability of compression."""
    twice_share: float = 0.2
    """Probability of a second compression."""


def draw_aigc(
    config: AigcConfig, size: tuple[int, int], scale: int, rng: np.random.Generator, *, with_coder: bool = False
) -> tuple[Operator, ...]:
    """Sample the degradations of a video generator and its delivery for clips of
    ``size`` (height, width), the last of which downscales by ``scale``. Latent noise is
    included only ``with_coder``.
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


@dataclass(frozen=True, kw_only=True)
class TapeConfig:
    """Defects of VHS tapes: probabilities and ranges; lengths are in low-resolution
    pixels, about 720 per line."""

    luma_px: tuple[float, float] = (0.8, 1.8)
    """Range of the blur of brightness along lines: 3 MHz of bandwidth, worse after copies."""
    chroma_px: tuple[float, float] = (3.0, 8.0)
    """Range of the blur of colours along lines: half a megahertz."""
    shift_px: tuple[float, float] = (5.0, 3.0)
    """Maximum displacement of the colours to the left or right, and down."""
    ringing: tuple[float, float] = (0.0, 0.8)
    """Range of the sharpening applied by players."""
    noise: tuple[float, float, float] = (0.01, 0.04, 0.03)
    """Range of the luma noise, and the maximum of the chroma noise."""
    jitter_px: tuple[float, float] = (0.6, 0.25)
    """Maximum of the slow horizontal sway, and of each line's own jitter."""
    dropouts: tuple[float, float] = (0.3, 2.0)
    """Probability of dropouts, and their maximum number per frame."""
    head_switch: tuple[float, int] = (0.3, 12)
    """Probability that the torn lines at the bottom are kept, and their maximum number
    at 480 lines."""
    fields_share: float = 0.6
    """Probability that the clip was interlaced."""


def draw_tape(config: TapeConfig, size: tuple[int, int], rng: np.random.Generator) -> tuple[Operator, ...]:
    """Sample the degradations of a tape for clips of ``size`` (height, width) at low
    resolution."""

    def between(low: float, high: float) -> float:
        return float(rng.uniform(low, high))

    def seed() -> int:
        return int(rng.integers(2**31))

    chosen: list[Operator] = []
    if rng.random() < config.fields_share:
        chosen.append(_draw_fields(rng))
    across, down = config.shift_px
    chosen.append(
        TapeColour(
            luma_px=between(*config.luma_px),
            chroma_px=between(*config.chroma_px),
            shift_px=(between(-across, across), between(0, down)),
            ringing=between(*config.ringing),
        )
    )
    sway, unrest = config.jitter_px
    chosen.append(LineJitter(sway_px=between(0, sway), unrest_px=between(0, unrest), seed=seed()))
    low, high, chroma = config.noise
    chosen.append(
        TapeNoise(luma=between(low, high), chroma=between(0, chroma), streak_px=between(0.6, 1.5), seed=seed())
    )
    if rng.random() < config.dropouts[0]:
        most = config.dropouts[1]
        chosen.append(Dropouts(per_frame=between(0.1, most), length_px=size[1] * between(0.01, 0.06), seed=seed()))
    if rng.random() < config.head_switch[0]:
        lines = max(1, round(between(0.3, 1) * config.head_switch[1] * size[0] / 480))
        chosen.append(
            HeadSwitch(lines=lines, shift_px=size[1] * between(0.02, 0.1), noise=between(0, 0.1), seed=seed())
        )
    return tuple(chosen)


def _draw_fields(rng: np.random.Generator) -> Fields:
    methods: tuple[Literal["blend", "bob"], ...] = ("blend", "bob")
    return Fields(top_first=bool(rng.random() < 0.7), method=methods[int(rng.integers(2))])


@dataclass(frozen=True, kw_only=True)
class DegradationConfig:
    """Share and strength of each kind; lengths are in high-resolution pixels at x2."""

    shares: tuple[tuple[Kind, float], ...] = (("clean", 0.4), ("compressed", 0.6))
    """Kinds and the share of clips with each."""
    blur_share: float = 0.8
    """Probability that a compressed clip is blurred first."""
    blur_sigma: tuple[float, float] = (0.3, 1.1)
    """Range of that blur."""
    kernels: tuple[tuple[str, float], ...] = (("bicubic", 0.7), ("area", 0.1), ("bilinear", 0.1), ("lanczos", 0.1))
    """Scaling kernels of compressed clips and their probabilities."""
    crf: tuple[int, int] = (20, 32)
    """Range of the H.264 quality of compressed clips."""
    grain: tuple[float, float] = (0.01, 0.05)
    """Range of a noisy clip's noise."""
    grain_crf: tuple[int, int] = (16, 26)
    """Range of the H.264 quality of noisy clips, which need a higher bit rate."""
    tape: TapeConfig = field(default_factory=TapeConfig)
    """Degradations of a tape."""
    disc_quantiser: tuple[int, int] = (2, 9)
    """Range of the MPEG-2 quantiser of discs."""
    disc_fields_share: float = 0.4
    """Probability that the frames of a disc are interlaced."""
    aigc: AigcConfig = field(default_factory=AigcConfig)
    """Degradations of generated clips."""


def draw(
    config: DegradationConfig, size: tuple[int, int], scale: int, rng: np.random.Generator
) -> tuple[Kind, tuple[Operator, ...]]:
    """Sample a kind and a degradation that downscales clips of ``size`` (height, width)
    by ``scale``."""

    def pick(odds: Sequence[tuple[Any, float]]) -> Any:
        shares = np.array([share for _, share in odds])
        return odds[rng.choice(len(odds), p=shares / shares.sum())][0]

    kind: Kind = pick(config.shares)
    small = (size[0] // scale, size[1] // scale)
    if kind == "clean":
        return kind, (Deliver(size=small, kernel="bicubic"),)
    if kind == "generated":
        return kind, draw_aigc(config.aigc, size, scale, rng)
    chosen: list[Operator] = []
    if kind == "tape":
        chosen = [Deliver(size=small, kernel=pick(config.kernels)), *draw_tape(config.tape, small, rng)]
        quality = int(rng.integers(config.grain_crf[0], config.grain_crf[1] + 1))
        chosen.append(Deliver(kernel="bicubic", codec="libx264", crf=quality))
        return kind, tuple(chosen)
    if kind == "disc":
        if rng.random() < config.disc_fields_share:
            chosen += [Deliver(size=small, kernel=pick(config.kernels)), _draw_fields(rng)]
        quantiser = int(rng.integers(config.disc_quantiser[0], config.disc_quantiser[1] + 1))
        size_left = None if chosen else small
        chosen.append(Deliver(size=size_left, kernel=pick(config.kernels), codec="mpeg2video", crf=quantiser))
        return kind, tuple(chosen)
    if rng.random() < config.blur_share:
        chosen.append(Blur(sigma_px=float(rng.uniform(*config.blur_sigma)) * scale / 2, ratio=1.0, angle=0.0))
    crf = config.crf
    if kind == "noisy":
        chosen.append(Deliver(size=small, kernel=pick(config.kernels)))
        chosen.append(Grain(strength=float(rng.uniform(*config.grain)), seed=int(rng.integers(2**31))))
        small, crf = None, config.grain_crf
    preset = "medium" if rng.random() < 0.6 else "veryfast"
    kernel, quality = pick(config.kernels), int(rng.integers(crf[0], crf[1] + 1))
    chosen.append(Deliver(size=small, kernel=kernel, codec="libx264", crf=quality, preset=preset))
    return kind, tuple(chosen)


def degrade(frames_thwc: Clip, scale: int, config: DegradationConfig, rng: np.random.Generator) -> Clip:
    """Return the low-resolution version of a clip [T, H, W, 3], H / scale by W / scale
    pixels; a pure function."""
    return apply(frames_thwc, draw(config, frames_thwc.shape[1:3], scale, rng)[1])


def contact_sheet(
    frames_thwc: Clip, scale: int, config: AigcConfig, *, seed: int, count: int
) -> tuple[Clip, list[Any]]:
    """Return a contact sheet of ``count`` degradations of a clip, and their logs. The
    first column shows the clip only downscaled, each further column one degradation, in
    the first, the middle and the last frame.
    """
    _, height, width, _ = frames_thwc.shape
    clean = Deliver(size=(height // scale, width // scale), kernel="bicubic")
    logs: list[Any] = []
    columns: list[Clip] = []
    for number in range(count + 1):
        rng = np.random.default_rng((seed, number))
        operators = draw_aigc(config, (height, width), scale, rng) if number else (clean,)
        low = apply(frames_thwc, operators)
        columns.append(np.concatenate([low[0], low[len(low) // 2], low[-1]]))
        logs.append(to_log(operators))
    return np.concatenate(columns, axis=1), logs
