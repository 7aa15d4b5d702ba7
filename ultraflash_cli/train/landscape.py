"""Backgrounds of scenes: the sky with its clouds, and the land in front of it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ultraflash_cli.train.canvas import HORIZON, Canvas, Patch, Plane, small_box
from ultraflash_cli.train.scenes import Place, Rgb, Scene, Time

__all__ = ["Land", "Sky"]

SKIES: dict[Time, tuple[Rgb, Rgb]] = {
    "morning": ((0.60, 0.74, 0.90), (1.0, 0.85, 0.64)),
    "day": ((0.25, 0.53, 0.90), (0.74, 0.88, 0.98)),
    "sunset": ((0.30, 0.24, 0.52), (0.99, 0.55, 0.24)),
    "dusk": ((0.13, 0.15, 0.36), (0.62, 0.42, 0.56)),
    "night": ((0.03, 0.05, 0.15), (0.10, 0.14, 0.31)),
}
"""Sky colours at the top and at the horizon."""
_SUN: dict[Time, tuple[float, Rgb, float]] = {
    "morning": (0.30, (1.0, 0.93, 0.74), 0.050),
    "day": (0.14, (1.0, 0.98, 0.86), 0.045),
    "sunset": (0.50, (1.0, 0.72, 0.30), 0.075),
    "dusk": (0.60, (0.98, 0.58, 0.38), 0.055),
    "night": (0.17, (0.93, 0.94, 0.98), 0.050),
}
"""Height (0 is the top), colour and radius of the sun or moon."""
_GROUND: dict[Place, Rgb] = {
    "sea": (0.10, 0.36, 0.55),
    "hills": (0.32, 0.58, 0.24),
    "mountains": (0.38, 0.46, 0.30),
    "snowy mountains": (0.86, 0.90, 0.95),
    "city": (0.34, 0.35, 0.38),
    "field": (0.62, 0.64, 0.26),
}
_PUFFS = ((-0.11, 0.01, 0.7), (0.0, -0.02, 1.0), (0.10, 0.01, 0.75), (0.19, 0.025, 0.45), (-0.19, 0.03, 0.4))
"""Parts of a cloud: offsets right and down from its centre, and size."""


@dataclass(frozen=True)
class _Cloud:
    """A drifting cloud; ``cover`` is ``[rows, columns]`` with both outer columns
    empty."""

    row: int
    cover: Plane
    half: float
    """Distance from its left edge to its centre."""
    x: float
    speed: float


class Sky(Canvas):
    """The sky with its sun or moon, and with moving clouds and twinkling stars."""

    def __init__(self, scene: Scene, size: tuple[int, int]) -> None:
        super().__init__(scene, size)
        top, low = (np.array(colour, np.float32) for colour in SKIES[scene.time])
        grey = {"clear": 0.0, "clouds": 0.10, "rain": 0.36, "snow": 0.28}[scene.weather]
        share = np.clip(self.y / HORIZON, 0, 1) ** 1.4
        sky = top[:, None, None] * (1 - share) + low[:, None, None] * share
        self.rgb[:] = sky * (1 - grey) + sky.mean(axis=0) * grey * 0.92
        bright = scene.weather in ("clear", "clouds")
        rng = scene.rng("sun")
        stars = rng.random((60, 3)) if scene.time == "night" and bright else np.zeros((0, 3))
        height, colour, radius = _SUN[scene.time]
        sun_x = self.width * (0.2 + 0.6 * rng.random())
        if bright:
            distance = np.hypot(self.x - sun_x, self.y - height)
            glow = np.exp(-((distance / (3.2 * radius)) ** 2)) * 0.45
            shine = np.array(colour, np.float32)
            self.rgb += (shine[:, None, None] - self.rgb) * glow
            self.paint(self.disc(sun_x, height, radius), shine)

        self._stars = self._dots(stars)
        dark = not bright
        self._white = self.lit((0.62, 0.64, 0.68) if dark else (0.98, 0.98, 0.99))
        self._clouds = [] if scene.weather == "clear" else [*self._sprites(9 if dark else 5)]
        bottoms = [round(0.9 * HORIZON * size[0]) + 3] * bool(len(stars))
        bottoms += [cloud.row + len(cloud.cover) for cloud in self._clouds]
        self.moving_rows = min(size[0], max(bottoms, default=0))
        """Number of rows from the top that change between frames."""

    def _dots(self, stars: Plane) -> tuple[npt.NDArray[Any], ...]:
        """Return every pixel of every star: row, column, coverage and the x of its
        star."""
        found: list[Plane] = [np.zeros((4, 0))]
        for x, y, size in stars:
            patch = self.disc(x * self.width, y * HORIZON * 0.9, self.pixel * (0.7 + size))
            cover = self.cover(patch.distance)
            rows, columns = np.nonzero(cover)
            shown = cover[rows, columns]
            found.append(np.stack([rows + patch.rows.start, columns + patch.columns.start, shown, shown * 0 + x]))
        rows, columns, cover, place = np.concatenate(found, axis=1)
        return rows.astype(np.intp), columns.astype(np.intp), cover.astype(np.float32), place.astype(np.float32)

    def _sprites(self, count: int) -> Iterator[_Cloud]:
        height_px = self.size[0]
        rng = self.scene.rng("clouds")
        for _ in range(count):
            x0, y, size, drift = rng.random(4)
            scale = 0.06 + 0.07 * size
            half = 2.5 * scale + 4 * self.pixel
            paper = Canvas(self.scene, (height_px, int(2 * half * height_px) + 2))
            cover = np.zeros(paper.size, np.float32)
            for dx, dy, r in _PUFFS:
                at = half + dx * scale * 9, 0.06 + 0.30 * y + dy * scale * 9
                puff = paper.ellipse(*at, r * scale * 1.5, r * scale * 0.85)
                area = cover[puff.rows, puff.columns]
                np.maximum(area, paper.cover(puff.distance), out=area)
            rows = np.nonzero(cover.any(axis=1))[0]
            cut = cover[rows.min() : rows.max() + 1] * np.float32(0.85)
            yield _Cloud(int(rows.min()), cut, half, x0 * (self.width + 1), 0.02 + 0.03 * drift)

    def move(self, rgb: Plane, second: float) -> None:
        """Paint stars and clouds over the moving rows of the sky ``[3, moving_rows, W]``."""
        rows, columns, cover, place = self._stars
        rgb[:, rows, columns] += (1 - rgb[:, rows, columns]) * (cover * (0.6 + 0.4 * np.sin(2 * second + 40 * place)))
        for cloud in self._clouds:
            x = (cloud.x + second * cloud.speed) % (self.width + 1) - 0.5 - cloud.half
            whole, part = divmod(x * self.size[0], 1)
            left, long = int(whole), cloud.cover.shape[1]
            shown = slice(max(0, left + 1), max(0, min(self.size[1], left + long)))
            if shown.start >= shown.stop:
                continue
            cover = cloud.cover[:, shown.start - left : shown.stop - left] * np.float32(1 - part)
            cover += cloud.cover[:, shown.start - left - 1 : shown.stop - left - 1] * np.float32(part)
            area = rgb[:, cloud.row : cloud.row + len(cover), shown]
            area += (self._white[:, None, None] - area) * cover


class Land(Canvas):
    """The land in front of the sky, on a canvas whose fourth plane is its coverage of
    the sky."""

    def __init__(self, scene: Scene, size: tuple[int, int]) -> None:
        super().__init__(scene, size, planes=4)
        self._ripples: tuple[int, Plane, Plane, Plane, Plane] | None = None
        place = scene.place
        if place == "sea":
            self._sea()
        elif place == "city":
            self._city()
        else:
            if "mountains" in place:
                self._mountains()
            ground = self.lit(_GROUND[place])
            for key, base in enumerate((HORIZON, HORIZON + 0.08, HORIZON + 0.17)):
                relief = 0.035 if place == "hills" else 0.012
                self._below(self._ridge(key, base, relief, 3.0 + key) - self.y, ground * (0.82 + 0.09 * key))

    def before(self, rgb: Plane) -> Plane:
        """Return the top rows ``[3, rows, W]`` of a sky with the land painted in
        front."""
        rows = rgb.shape[1]
        return rgb * (1 - self.rgb[3, :rows]) + self.rgb[:3, :rows]

    def _solid(self, patch: Patch, colour: Plane) -> None:
        self.paint(patch, np.append(colour, np.float32(1)))

    def _below(self, distance: Plane, colour: Plane) -> None:
        """Fill everything below a line across the picture."""
        everything = slice(0, self.size[0]), slice(0, self.size[1])
        self._solid(Patch(*everything, np.broadcast_to(distance, self.size)), colour)

    def _ridge(self, key: int, base: float, relief: float, waves: float) -> Plane:
        """Return the height of a skyline ``[1, W]``: a sum of a few sines with seeded
        phases."""
        rng = self.scene.rng("ridges", key)
        line = np.zeros_like(self.x)
        for octave in range(4):
            line += np.sin(self.x * waves * 2.1**octave + 6.28 * rng.random()) / 1.9**octave
        return base - relief * line

    def _mountains(self) -> None:
        snowy = self.scene.place == "snowy mountains"
        rock = self.lit((0.45, 0.45, 0.52))
        for key, base in ((10, HORIZON - 0.14), (11, HORIZON - 0.06)):
            rng = self.scene.rng("peaks", key)
            line = np.full_like(self.x, HORIZON + 0.05)
            for peak_x, peak_y, slope in rng.random((6, 3)):
                x, y = peak_x * self.width, base - 0.22 * peak_y
                line = np.minimum(line, y + np.abs(self.x - x) * (0.55 + 0.5 * slope))
            rough = self._ridge(key, 0.0, 0.006, 22.0)
            self._below(line + rough - self.y, rock * (0.8 if key == 10 else 1.0))
            if snowy:
                cap = np.maximum(line + rough - self.y, self.y - line - 0.10 - 3 * rough)
                self._below(cap, self.lit((0.97, 0.98, 1.0)))

    def _sea(self) -> None:
        depth = np.clip((self.y - HORIZON) / (1 - HORIZON), 0, 1)[None]
        water = self.lit(_GROUND["sea"])[:, None, None] * (1.15 - 0.45 * depth)
        mirror = np.array(SKIES[self.scene.time][1], np.float32)[:, None, None]
        cover = self.cover(HORIZON - self.y)
        self.rgb[:3] = (water * 0.72 + mirror * 0.28 * (1 - 0.6 * depth)) * cover
        self.rgb[3] = cover
        first = int(HORIZON * self.size[0])
        y = self.y[first:]
        near = 1 / np.maximum(y - HORIZON + 0.03, 0.03)
        self._ripples = first, near * 6, self.x * 5, self.x * (10 + 6 * near), cover[first:] * 0.5

    def move(self, rgb: Plane, second: float) -> None:
        """Paint the ripples of the sea over the picture ``[3, H, W]``."""
        if self._ripples is None:
            return
        first, near, across, along, cover = self._ripples
        ripple = np.sin(near + np.float32(2.2 * second) + 3 * np.sin(across + np.float32(second)))
        ripple *= np.sin(along - np.float32(1.3 * second))
        ripple -= 0.55
        np.maximum(ripple, 0, out=ripple)
        ripple *= cover
        area = rgb[:, first:]
        area += (self.lit((0.95, 0.97, 1.0), 0.2)[:, None, None] - area) * ripple

    def _city(self) -> None:
        rng = self.scene.rng("city")
        dark = self.scene.time in ("dusk", "night")
        for row, shade in ((0, 0.62), (1, 0.85)):
            x = -0.05
            while x < self.width + 0.1:
                wide, high, tone = 0.05 + 0.07 * rng.random(), 0.10 + 0.30 * rng.random(), rng.random()
                top = HORIZON + 0.10 * row - high
                grey = self.lit((0.40 + 0.15 * tone, 0.42 + 0.12 * tone, 0.48 + 0.10 * tone)) * shade
                self._solid(self.box(x + wide / 2, (top + 1) / 2, wide / 2, (1 - top) / 2), grey)
                if row == 1:
                    self._windows(x, wide, top, rng, lights=dark)
                x += wide + 0.012 * rng.random()
        self._below(0.86 - self.y, self.lit((0.24, 0.24, 0.27)))

    def _windows(self, x: float, wide: float, top: float, rng: np.random.Generator, *, lights: bool) -> None:
        across, down = max(2, int(wide / 0.022)), int((0.84 - top) / 0.034)
        pane = np.array((1.0, 0.86, 0.48), np.float32) if lights else self.lit((0.66, 0.76, 0.84))
        for i in range(across):
            for j in range(down):
                if rng.random() < (0.45 if lights else 0.8):
                    centre = x + (i + 0.5) * wide / across, top + 0.024 + j * 0.034
                    rows, columns = small_box(self.size, *centre, 0.30 * wide / across, 0.009)
                    self.rgb[:, rows, columns] = np.append(pane, np.float32(1))[:, None, None]
