"""Measure film grain (strength by brightness, and spectrum) and synthesise new grain
like it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ultraflash_cli.video.color import Picture, as_picture
from ultraflash_cli.video.samples import middle_of, ycc_of

__all__ = ["Grain", "GrainMaker", "GrainMeter"]

_LEAST = 1.0
"""Standard deviation, in levels of 255, below which there is no grain."""
_EVEN = 0.4
"""Minimum ratio of the variance in the quietest quarter of the blocks to that in the
noisiest quarter. Grain is uniform, motion and compression are not."""
_MOST = 25.0
"""Changes above this many levels are not grain: no film or tape has that much, but small scrolling text does."""
_LONGER = 1.35
"""Maximum ratio of the difference over two pictures to that over one. Grain differs
equally between any two pictures, motion accumulates."""
_COVERED = 0.15
"""Minimum fraction of all change at levels where grain was found."""
_SMOOTHER = 0.4
_MOST_SMOOTHER = 0.2
"""Maximum share of the picture at levels that change much less than the level with the
strongest grain. Grain occurs at every brightness except black and white."""
_QUARTER = 1.06
"""Ratio of the median noise of blocks to that of the quietest quarter if all have the
same grain."""
_MOST_REMOVED = 60.0
_BINS = 8
_BLOCK_PX = 16
_FLAT = 0.3
"""Fraction of the blocks at each brightness that are measured: those with the least
structure."""
_LEAST_BLOCKS = 12
_BLACK = 2.0
_TEMPLATE_PX = 512
_LARGEST_TEMPLATE_PX = 2048
_TO_BYTES = 24.0
"""Scale at which grain of deviation 1 is stored in bytes; five deviations fit."""
_REMOVAL = 1.5
"""Factor on the noise deviation needed by the filter, which assumes white noise."""


@dataclass(frozen=True, kw_only=True)
class Grain:
    """The grain of a clip; levels are in 0..255, full range."""

    levels: tuple[float, ...]
    """Increasing brightness levels at which its strength is known."""
    luma: tuple[float, ...]
    """Standard deviation of brightness at each level."""
    chroma: tuple[float, ...]
    """Standard deviation of the colour differences at each level."""
    luma_spectrum: tuple[tuple[float, ...], ...]
    """Power by vertical and horizontal frequency (as ``numpy.fft`` orders them), on average 1."""
    chroma_spectrum: tuple[tuple[float, ...], ...]

    @property
    def strength(self) -> float:
        """Standard deviation in the middle of the measured levels."""
        return float(np.median(self.luma))

    @property
    def removal(self) -> tuple[float, float]:
        """Noise strength to remove from luma and chroma, in levels."""
        luma = _REMOVAL * max(self.luma) * _peak(self.luma_spectrum)
        chroma = _REMOVAL * max(self.chroma) * _peak(self.chroma_spectrum)
        return round(min(luma, _MOST_REMOVED), 2), round(min(chroma, _MOST_REMOVED), 2)

    @property
    def size_px(self) -> float:
        """Approximate width of a grain; 1 if neighbouring pixels are uncorrelated."""
        return _peak(self.luma_spectrum)


def _peak(spectrum: tuple[tuple[float, ...], ...]) -> float:
    return float(np.sqrt(np.percentile(spectrum, 95)))


class GrainMeter:
    """Measures the change between consecutive pictures where there is neither structure
    nor motion. Structure is judged on the mean of two pictures and grain on their
    difference, in which noise is independent: choosing the smoothest blocks does not
    favour those with the least grain.
    """

    def __init__(self) -> None:
        self._blocks: list[NDArray[np.float32]] = []  # [blocks, 5]: see `push`
        self._spectra: list[NDArray[np.float32]] = []  # [blocks, 2, size, size]

    def push(self, pictures: Sequence[Picture]) -> None:
        """Add a run of neighbouring pictures of one size."""
        if len(pictures) < 2:
            return
        first, second, *third = (_blocks(ycc_of(middle_of(picture))) for picture in pictures[:3])
        if not first.size:
            return
        mean, change = (first + second) / 2, _change(first, second)
        level = mean[0].mean(axis=(1, 2))
        variance = (change * change).mean(axis=(2, 3))
        longer = np.ones_like(level)
        if third:
            far, near = ((_change(each, third[0])[0] ** 2).mean(axis=(1, 2)) for each in (first, second))
            longer = 2 * far / np.maximum(near + variance[0], 1e-6)
        # Level, structure, variance of luma, variance of chroma, and the ratio of
        # change over two pictures.
        chroma = (variance[1] + variance[2]) / 2
        rows = np.stack([level, mean[0].var(axis=(1, 2)), variance[0], chroma, longer], axis=1)
        window = np.outer(*[np.hanning(_BLOCK_PX + 2)[1:-1]] * 2).astype(np.float32)
        power = np.abs(np.fft.fft2(change * window)) ** 2
        usable = (level > _BLACK) & (variance[0] > 0)
        self._blocks.append(rows[usable])
        self._spectra.append(np.stack([power[0], (power[1] + power[2]) / 2], axis=1)[usable].astype(np.float32))

    def result(self) -> Grain | None:
        """Return the measured grain; None if there is hardly any, or too little
        material to measure it."""
        if not self._blocks:
            return None

        rows, spectra = np.concatenate(self._blocks), np.concatenate(self._spectra)
        bins = np.minimum((rows[:, 0] * _BINS / 256).astype(int), _BINS - 1)
        points: list[tuple[float, float, float]] = []
        chosen: list[int] = []
        covered = 0
        changes: list[tuple[int, float]] = []
        for number in range(_BINS):
            members = np.flatnonzero(bins == number)
            smooth = members[np.argsort(rows[members, 1], kind="stable")][: int(_FLAT * len(members))]
            if len(smooth) < _LEAST_BLOCKS:
                continue
            level = float(rows[smooth, 0].mean())
            least, most = np.percentile(rows[smooth, 2:4], (25, 75), axis=0)
            if 0 < number < _BINS - 1:
                changes.append((len(members), float(np.sqrt(least[0]))))
            if least[0] < _EVEN * most[0] or np.median(rows[smooth, 4]) > _LONGER:
                continue
            luma, chroma = _QUARTER * np.sqrt(least)
            if luma > _MOST:
                continue
            covered += len(members)
            points.append((level, float(luma), float(chroma)))
            # Only blocks of typical noise: motion would distort the spectrum.
            chosen += smooth[rows[smooth, 2] < 2 * float(luma) ** 2].tolist()

        typical = float(np.median([luma for _, luma, _ in points])) if points else 0.0
        strongest = max((luma for _, luma, _ in points), default=0.0)
        smoother = sum(count for count, change in changes if change < _SMOOTHER * strongest)
        if not chosen or typical < _LEAST or covered < _COVERED * len(rows) or smoother > _MOST_SMOOTHER * len(rows):
            return None

        levels, luma, chroma = (tuple(round(value, 3) for value in values) for values in zip(*points, strict=True))
        return Grain(
            levels=levels,
            luma=luma,
            chroma=chroma,
            luma_spectrum=_spectrum(spectra[chosen, 0]),
            chroma_spectrum=_spectrum(spectra[chosen, 1]),
        )


def _change(first: NDArray[np.float32], second: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the mean-free differences of blocks, scaled to the grain's deviation in
    one picture."""
    change = (first - second) / np.float32(np.sqrt(2))
    return change - change.mean(axis=(2, 3), keepdims=True)


def _blocks(planes: NDArray[np.float32]) -> NDArray[np.float32]:
    """Cut planes ``[3, H, W]`` into blocks ``[3, blocks, size, size]``."""
    rows, columns = (side // _BLOCK_PX for side in planes.shape[1:])
    whole = planes[:, : rows * _BLOCK_PX, : columns * _BLOCK_PX]
    cut = whole.reshape(3, rows, _BLOCK_PX, columns, _BLOCK_PX).transpose(0, 1, 3, 2, 4)
    return cut.reshape(3, rows * columns, _BLOCK_PX, _BLOCK_PX)


def _spectrum(power: NDArray[np.float32]) -> tuple[tuple[float, ...], ...]:
    mean = power.mean(axis=0)
    mean[0, 0] = min(mean[0, 0], mean[0, 1], mean[1, 0])  # the mean of each block was removed
    scaled = mean / max(float(mean.mean()), 1e-9)
    return tuple(tuple(round(float(value), 4) for value in row) for row in scaled)


class GrainMaker:
    """Adds grain to finished pictures, with the source's grain size relative to the
    picture. The grain of a picture depends only on ``seed`` and on its number.
    """

    def __init__(self, grain: Grain, *, seed: int, source_wh: tuple[int, int], target_wh: tuple[int, int]) -> None:
        rng = np.random.default_rng([seed, 0x6772])
        scale = target_wh[1] / source_wh[1], target_wh[0] / source_wh[0]
        spectra = (grain.luma_spectrum, grain.chroma_spectrum, grain.chroma_spectrum)
        self._templates = [_template(np.array(spectrum), scale, rng) for spectrum in spectra]
        self._seed = seed
        levels = np.arange(256)
        self._luma = (np.interp(levels, grain.levels, grain.luma) / _TO_BYTES).astype(np.float32)
        self._chroma = (np.interp(levels, grain.levels, grain.chroma) / _TO_BYTES).astype(np.float32)

    def add(self, rgb_hwc: Picture, number: int) -> Picture:
        """Return a picture with the grain of the frame ``number``."""
        rng = np.random.default_rng([self._seed, number])
        luma, blue, red = (_part(template, rgb_hwc.shape[:2], rng) for template in self._templates)
        deep = rgb_hwc.dtype == np.uint16
        levels = (rgb_hwc >> 8).astype(np.uint8) if deep else rgb_hwc
        weights = np.array([77, 150, 29], dtype=np.uint16)
        level = ((levels.astype(np.uint16) * weights).sum(axis=2, dtype=np.uint16) >> 8).astype(np.uint8)
        luma *= self._luma[level]
        strength = self._chroma[level]
        blue *= strength
        red *= strength
        most, scale = (65535, np.float32(257)) if deep else (255, np.float32(1))
        finished = np.empty_like(rgb_hwc)
        grains = (luma + 1.402 * red, luma - 0.344136 * blue - 0.714136 * red, luma + 1.772 * blue)
        for channel, added in enumerate(grains):
            noisy = rgb_hwc[:, :, channel] + added * scale
            finished[:, :, channel] = np.clip(np.rint(noisy), 0, most)
        return as_picture(finished)


def _template(spectrum: NDArray[np.float64], scale: tuple[float, float], rng: np.random.Generator) -> NDArray[np.int8]:
    """Return enlarged grain of deviation 1 as bytes; it is periodic, so that opposite
    edges match."""
    size = len(spectrum)
    side = _TEMPLATE_PX if max(scale) * _TEMPLATE_PX <= _LARGEST_TEMPLATE_PX else _TEMPLATE_PX // 4
    likeness = np.fft.fftshift(np.fft.ifft2(spectrum).real)
    wide = np.zeros((side, side))
    start = (side - size) // 2
    wide[start : start + size, start : start + size] = likeness
    power = np.fft.fft2(np.fft.ifftshift(wide)).real.clip(0)
    waves = np.fft.fft2(rng.standard_normal((side, side))) * np.sqrt(power / power.mean())
    height, width = (2 * max(8, round(side * each / 2)) for each in scale)
    waves = _resized(_resized(waves, height, 0), width, 1)
    grain = np.fft.ifft2(waves).real * (height * width / side**2)
    return np.rint(grain * _TO_BYTES).clip(-127, 127).astype(np.int8)


def _resized(waves: NDArray[np.complex128], size: int, axis: int) -> NDArray[np.complex128]:
    """Drop frequencies, or add empty ones, to resize a transformed picture."""
    waves = np.fft.fftshift(waves, axes=axis)
    before = waves.shape[axis]
    if size < before:
        start = (before - size) // 2
        waves = waves.take(range(start, start + size), axis=axis)
    else:
        more = (size - before) // 2
        waves = np.pad(waves, [(more, size - before - more) if axis == each else (0, 0) for each in (0, 1)])
    return np.fft.ifftshift(waves, axes=axis)


def _part(template: NDArray[np.int8], shape_hw: tuple[int, int], rng: np.random.Generator) -> NDArray[np.float32]:
    """Cut a piece from a random position of a template, possibly mirrored."""
    places: list[NDArray[np.int64]] = []
    for side, size in zip(shape_hw, template.shape, strict=True):
        place = (int(rng.integers(size)) + np.arange(side)) % size
        places.append(place[::-1] if rng.random() < 0.5 else place)
    return template[places[0]][:, places[1]].astype(np.float32)
