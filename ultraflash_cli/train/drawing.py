"""Pictures of scenes: simple illustrations that move, drawn by code at any size."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ultraflash_cli.train.scenes import COLOURS, Kind, Place, Rgb, Scene, Time

__all__ = ["Renderer", "contact_sheet", "render"]

Plane = npt.NDArray[np.floating[Any]]

_SKIES: dict[Time, tuple[Rgb, Rgb]] = {
    "morning": ((0.60, 0.74, 0.90), (1.0, 0.85, 0.64)),
    "day": ((0.25, 0.53, 0.90), (0.74, 0.88, 0.98)),
    "sunset": ((0.30, 0.24, 0.52), (0.99, 0.55, 0.24)),
    "dusk": ((0.13, 0.15, 0.36), (0.62, 0.42, 0.56)),
    "night": ((0.03, 0.05, 0.15), (0.10, 0.14, 0.31)),
}
"""The sky at its top and at the horizon."""
_LIGHT: dict[Time, Rgb] = {
    "morning": (0.97, 0.95, 0.90),
    "day": (1.0, 1.0, 1.0),
    "sunset": (0.95, 0.70, 0.56),
    "dusk": (0.56, 0.52, 0.66),
    "night": (0.28, 0.31, 0.44),
}
"""What daylight colours are multiplied with."""
_SUN: dict[Time, tuple[float, Rgb, float]] = {
    "morning": (0.30, (1.0, 0.93, 0.74), 0.050),
    "day": (0.14, (1.0, 0.98, 0.86), 0.045),
    "sunset": (0.50, (1.0, 0.72, 0.30), 0.075),
    "dusk": (0.60, (0.98, 0.58, 0.38), 0.055),
    "night": (0.17, (0.93, 0.94, 0.98), 0.050),
}
"""Height (0 is the top), colour and radius of sun or moon."""
_GROUND: dict[Place, Rgb] = {
    "sea": (0.10, 0.36, 0.55),
    "hills": (0.32, 0.58, 0.24),
    "mountains": (0.38, 0.46, 0.30),
    "snowy mountains": (0.86, 0.90, 0.95),
    "city": (0.34, 0.35, 0.38),
    "field": (0.62, 0.64, 0.26),
}
_HORIZON = 0.62
"""Height of the horizon; 0 is the top of the picture."""
_RIM = 0.006
"""Width of the rim around things."""
_OWN_LIGHT = 0.7
"""A thing keeps so much of its colour in any light."""
_GAPS: dict[Kind, float] = {"balloon": 0.34, "bird": 0.32, "boat": 0.38, "ball": 0.26, "car": 0.40, "lantern": 0.28}
"""Between the middles of two things of a group."""
_MIDDLE_S = 2.5
"""When things are in the middle of their way, so that five seconds show them."""
_PUFFS = ((-0.11, 0.01, 0.7), (0.0, -0.02, 1.0), (0.10, 0.01, 0.75), (0.19, 0.025, 0.45), (-0.19, 0.03, 0.4))
"""A cloud's parts: right and down of its middle, and size."""


def render(scene: Scene, second: float, *, height_px: int = 480, width_px: int = 832) -> npt.NDArray[np.uint8]:
    """Draw a scene ``second`` seconds after its start: RGB ``[height_px, width_px, 3]``."""
    return Renderer(scene, height_px=height_px, width_px=width_px).frame(second)


def contact_sheet(
    scenes: Sequence[Scene], *, columns: int = 3, height_px: int = 160, width_px: int = 276
) -> npt.NDArray[np.uint8]:
    """Return one picture of many scenes, row by row, each at its start and two seconds later."""
    rows: list[npt.NDArray[np.uint8]] = []
    for at in range(0, len(scenes), columns):
        renderers = [Renderer(scene, height_px=height_px, width_px=width_px) for scene in scenes[at : at + columns]]
        shown = [renderer.frame(second) for renderer in renderers for second in (0.5, 2.5)]
        shown += [np.zeros_like(shown[0])] * (2 * columns - len(shown))
        rows.append(np.concatenate(shown, axis=1))
    return np.concatenate(rows)


class Renderer:
    """Draws the frames of one scene: what stands still once, what moves for every frame."""

    def __init__(self, scene: Scene, *, height_px: int = 480, width_px: int = 832) -> None:
        size = height_px, width_px
        self._sky, self._land = _Sky(scene, size), _Land(scene, size)
        self._things, self._falling = _Things(scene, size), _Falling(scene, size)
        self._still = self._land.before(self._sky.rgb)

    def frame(self, second: float) -> npt.NDArray[np.uint8]:
        """Draw the scene ``second`` seconds after its start: RGB ``[height_px, width_px, 3]``."""
        rgb = self._things.rgb
        rgb[:] = self._still
        top = rgb[:, : self._sky.moving_rows]
        if top.size:
            top[:] = self._sky.rgb[:, : self._sky.moving_rows]
            self._sky.move(top, second)
            top[:] = self._land.before(top)
        self._land.move(rgb, second)
        self._things.move(second)
        rgb *= 255
        rgb += 0.5
        frame = np.empty((*rgb.shape[1:], 3), np.uint8)
        for channel in range(3):
            frame[..., channel] = rgb[channel]
        self._falling.move(frame, second)
        return frame


@dataclass(frozen=True)
class _Patch:
    """A shape: signed distances, negative inside, in the part of the picture around it."""

    rows: slice
    columns: slice
    distance: Plane


class _Canvas:
    """A picture in the making; lengths are in picture heights, x from the left, y from the top."""

    def __init__(self, scene: Scene, size: tuple[int, int], planes: int = 3) -> None:
        height_px, width_px = size
        self.scene, self.size = scene, size
        self.width = width_px / height_px
        self.pixel = 1.0 / height_px
        self.y = ((np.arange(height_px, dtype=np.float32) + 0.5) / height_px)[:, None]
        self.x = ((np.arange(width_px, dtype=np.float32) + 0.5) / height_px)[None, :]
        self.rgb = np.zeros((planes, *size), np.float32)
        self.light = np.array(_LIGHT[scene.time], np.float32)

    def lit(self, colour: Rgb, glow: float = 0.0) -> Plane:
        """Return a daylight colour under the scene's light; what glows keeps its own."""
        own = np.array(colour, np.float32)
        return own * (self.light * (1 - glow) + glow)

    def paint(self, patch: _Patch, colour: Plane, opacity: float = 1.0, *, grow: float = 0.0) -> None:
        """Lay a colour ``[planes]`` over a shape, or over the shape grown on all sides; edges are smooth."""
        area = self.rgb[:, patch.rows, patch.columns]
        area += (colour[:, None, None] - area) * (self.cover(patch.distance - grow) * opacity)

    def cover(self, distance: Plane) -> Plane:
        """Turn a signed distance, negative inside, into cover with smooth edges."""
        return np.clip(0.5 - distance / (1.5 * self.pixel), 0, 1).astype(np.float32)

    def around(self, x: float, y: float, wide: float, high: float) -> tuple[slice, slice, Plane, Plane]:
        """Return the rows and columns that a shape can touch, and how far right and down of (x, y) they are."""
        height_px, width_px = self.size
        edge = _RIM + 2 * self.pixel
        top, low = (int(np.clip(height_px * at, 0, height_px)) for at in (y - high - edge, y + high + edge))
        left, right = (int(np.clip(height_px * at, 0, width_px)) for at in (x - wide - edge, x + wide + edge))
        rows, columns = slice(top, low), slice(left, right)
        return rows, columns, self.x[:, columns] - np.float32(x), self.y[rows] - np.float32(y)

    def disc(self, x: float, y: float, radius: float) -> _Patch:
        rows, columns, dx, dy = self.around(x, y, radius, radius)
        return _Patch(rows, columns, np.hypot(dx, dy) - np.float32(radius))

    def ellipse(self, x: float, y: float, wide: float, high: float) -> _Patch:
        rows, columns, dx, dy = self.around(x, y, wide, high)
        scaled = np.hypot(dx / np.float32(wide), dy / np.float32(high))
        return _Patch(rows, columns, (scaled - 1) * np.float32(min(wide, high)))

    def box(self, x: float, y: float, wide: float, high: float, round_: float = 0.0) -> _Patch:
        """Return a box around (x, y) with half sides ``wide`` and ``high``."""
        rows, columns, dx, dy = self.around(x, y, wide, high)
        dx, dy = np.abs(dx) - np.float32(wide - round_), np.abs(dy) - np.float32(high - round_)
        outside = np.hypot(np.maximum(dx, 0), np.maximum(dy, 0))
        return _Patch(rows, columns, outside + np.minimum(np.maximum(dx, dy), 0) - np.float32(round_))

    def polygon(self, corners: list[tuple[float, float]]) -> _Patch:
        """Return a convex polygon, its corners clockwise as seen."""
        (left, top), (right, low) = np.min(corners, axis=0), np.max(corners, axis=0)
        x, y = (left + right) / 2, (top + low) / 2
        rows, columns, dx, dy = self.around(x, y, (right - left) / 2, (low - top) / 2)
        distance = np.full((dy.shape[0], dx.shape[1]), -np.inf, np.float32)
        for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1], strict=True):
            length = max(float(np.hypot(x1 - x0, y1 - y0)), 1e-6)
            across, down = np.float32((y1 - y0) / length), np.float32((x1 - x0) / length)
            distance = np.maximum(distance, across * (dx + np.float32(x - x0)) - down * (dy + np.float32(y - y0)))
        return _Patch(rows, columns, distance)


@dataclass(frozen=True)
class _Cloud:
    """A cloud that drifts: how much it covers ``[rows, columns]``, both outer columns empty."""

    row: int
    cover: Plane
    half: float
    """From its left edge to its middle."""
    x: float
    speed: float


class _Sky(_Canvas):
    """The sky with its sun or moon; stars and clouds are what moves in it."""

    def __init__(self, scene: Scene, size: tuple[int, int]) -> None:
        super().__init__(scene, size)
        top, low = (np.array(colour, np.float32) for colour in _SKIES[scene.time])
        grey = {"clear": 0.0, "clouds": 0.10, "rain": 0.36, "snow": 0.28}[scene.weather]
        share = np.clip(self.y / _HORIZON, 0, 1) ** 1.4
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
        bottoms = [round(0.9 * _HORIZON * size[0]) + 3] * bool(len(stars))
        bottoms += [cloud.row + len(cloud.cover) for cloud in self._clouds]
        self.moving_rows = min(size[0], max(bottoms, default=0))
        """So many rows from the top are not the same in every frame."""

    def _dots(self, stars: Plane) -> tuple[npt.NDArray[Any], ...]:
        """Return every pixel of every star: row, column, cover, place of its star."""
        found: list[Plane] = [np.zeros((4, 0))]
        for x, y, size in stars:
            patch = self.disc(x * self.width, y * _HORIZON * 0.9, self.pixel * (0.7 + size))
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
            paper = _Canvas(self.scene, (height_px, int(2 * half * height_px) + 2))
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


class _Land(_Canvas):
    """What stands in front of the sky, on a canvas whose fourth plane says how much of the sky it covers."""

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
            for key, base in enumerate((_HORIZON, _HORIZON + 0.08, _HORIZON + 0.17)):
                relief = 0.035 if place == "hills" else 0.012
                self._below(self._ridge(key, base, relief, 3.0 + key) - self.y, ground * (0.82 + 0.09 * key))

    def before(self, rgb: Plane) -> Plane:
        """Return the topmost rows ``[3, rows, W]`` of a sky with the land in front of it."""
        rows = rgb.shape[1]
        return rgb * (1 - self.rgb[3, :rows]) + self.rgb[:3, :rows]

    def _solid(self, patch: _Patch, colour: Plane, opacity: float = 1.0) -> None:
        self.paint(patch, np.append(colour, np.float32(1)), opacity)

    def _below(self, distance: Plane, colour: Plane) -> None:
        """Fill everything below a line that runs through the picture."""
        everything = slice(0, self.size[0]), slice(0, self.size[1])
        self._solid(_Patch(*everything, np.broadcast_to(distance, self.size)), colour)

    def _ridge(self, key: int, base: float, relief: float, waves: float) -> Plane:
        """Return the height of a skyline ``[1, W]``: a few sines of seeded phase."""
        rng = self.scene.rng("ridges", key)
        line = np.zeros_like(self.x)
        for octave in range(4):
            line += np.sin(self.x * waves * 2.1**octave + 6.28 * rng.random()) / 1.9**octave
        return base - relief * line

    def _mountains(self) -> None:
        snowy = self.scene.place == "snowy mountains"
        rock = self.lit((0.45, 0.45, 0.52))
        for key, base in ((10, _HORIZON - 0.14), (11, _HORIZON - 0.06)):
            rng = self.scene.rng("peaks", key)
            line = np.full_like(self.x, _HORIZON + 0.05)
            for peak_x, peak_y, slope in rng.random((6, 3)):
                x, y = peak_x * self.width, base - 0.22 * peak_y
                line = np.minimum(line, y + np.abs(self.x - x) * (0.55 + 0.5 * slope))
            rough = self._ridge(key, 0.0, 0.006, 22.0)
            self._below(line + rough - self.y, rock * (0.8 if key == 10 else 1.0))
            if snowy:
                cap = np.maximum(line + rough - self.y, self.y - line - 0.10 - 3 * rough)
                self._below(cap, self.lit((0.97, 0.98, 1.0)))

    def _sea(self) -> None:
        depth = np.clip((self.y - _HORIZON) / (1 - _HORIZON), 0, 1)[None]
        water = self.lit(_GROUND["sea"])[:, None, None] * (1.15 - 0.45 * depth)
        mirror = np.array(_SKIES[self.scene.time][1], np.float32)[:, None, None]
        cover = self.cover(_HORIZON - self.y)
        self.rgb[:3] = (water * 0.72 + mirror * 0.28 * (1 - 0.6 * depth)) * cover
        self.rgb[3] = cover
        first = int(_HORIZON * self.size[0])
        y = self.y[first:]
        near = 1 / np.maximum(y - _HORIZON + 0.03, 0.03)
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
                top = _HORIZON + 0.10 * row - high
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
                    rows, columns = _small_box(self.size, *centre, 0.30 * wide / across, 0.009)
                    self.rgb[:, rows, columns] = np.append(pane, np.float32(1))[:, None, None]


def _small_box(size: tuple[int, int], x: float, y: float, wide: float, high: float) -> tuple[slice, slice]:
    """Return the rows and columns of a box with hard edges, for things there are many of."""
    height_px, width_px = size
    rows = slice(max(0, round((y - high) * height_px)), max(0, min(height_px, round((y + high) * height_px))))
    columns = slice(max(0, round((x - wide) * height_px)), max(0, min(width_px, round((x + wide) * height_px))))
    return rows, columns


class _Things(_Canvas):
    """Balloons and the like, each with a rim that tells it from whatever is behind it."""

    def move(self, second: float) -> None:
        """Paint the things over the picture, and the shadows and lights that belong to them."""
        thing = self.scene.thing
        if thing is None:
            return

        rng = self.scene.rng("things")
        colour = np.array(COLOURS[thing.colour], np.float32)
        way = {"left": -1.0, "right": 1.0, "up": 0.0}[thing.motion]
        gap = min(_GAPS[thing.kind], self.width / (thing.count + 0.5))
        usual = thing.speed if thing.laid_for is None else thing.laid_for
        slack = max(0.0, self.width - 0.40 - gap * (thing.count - 1) - abs(way) * usual * 2 * _MIDDLE_S)
        middle = self.width / 2 + (rng.random() - 0.5) * slack
        travelled = second * thing.speed - _MIDDLE_S * usual
        for number in range(thing.count):
            aside, up, phase = rng.random(3)
            x = middle + (number - (thing.count - 1) / 2 + 0.15 * (aside - 0.5)) * gap + way * travelled
            x = (x + 0.3) % (self.width + 0.6) - 0.3
            y = 0.18 + 0.26 * up
            if thing.motion == "up":
                x += 0.02 * np.sin(second + 6 * phase)
                y = (0.40 + 0.14 * (up - 0.5) - travelled + 0.15) % 1.3 - 0.15
            draw = getattr(self, f"_{thing.kind}")
            draw(float(x), float(y), colour, second + 5 * phase, way or 1.0)

    def _own(self, colour: Plane) -> Plane:
        """Return the colour of a thing under the scene's light, which leaves it most of itself."""
        return colour * (self.light * (1 - _OWN_LIGHT) + _OWN_LIGHT)

    def _body(self, *parts: tuple[_Patch, Plane]) -> None:
        """Paint parts in their order, a common rim around all of them: pale around dark ones, else dark."""
        colour = parts[0][1]
        rim = colour * 0.5 + 0.38 if colour.mean() < 0.2 else colour * 0.5
        for patch, _ in parts:
            self.paint(patch, rim, grow=_RIM)
        for patch, own in parts:
            self.paint(patch, own)

    def _balloon(self, x: float, y: float, colour: Plane, second: float, side: float) -> None:
        y += 0.008 * np.sin(1.3 * second) - 0.02
        own = self._own(colour)
        skirt = [(x - 0.083, y + 0.056), (x + 0.083, y + 0.056), (x + 0.024, y + 0.142), (x - 0.024, y + 0.142)]
        self._body((self.disc(x, y, 0.100), own), (self.polygon(skirt), own))
        self.paint(self.ellipse(x, y, 0.040, 0.098), own * 0.84)
        self.paint(self.ellipse(x - 0.038, y - 0.040, 0.016, 0.026), np.ones(3, np.float32), 0.5)
        self.paint(self.box(x, y + 0.176, 0.021, 0.017, 0.003), self.lit((0.45, 0.29, 0.15), 0.4))

    def _lantern(self, x: float, y: float, colour: Plane, second: float, side: float) -> None:
        y += 0.006 * np.sin(1.7 * second)
        rows, columns, dx, dy = self.around(x, y, 0.26, 0.26)
        glow = np.exp(-(np.square(dx) + np.square(dy)) * np.float32(1 / 0.12**2)) * np.float32(0.36)
        warm = colour * 0.6 + np.array((1.0, 0.75, 0.35), np.float32) * 0.4
        area = self.rgb[:, rows, columns]
        area += (warm[:, None, None] - area) * glow
        self._body((self.box(x, y, 0.060, 0.080, 0.024), colour * 0.94 + 0.04))
        self.paint(self.ellipse(x, y + 0.052, 0.024, 0.017), np.array((1.0, 0.93, 0.66), np.float32), 0.85)
        self.paint(self.box(x, y - 0.078, 0.034, 0.008), colour * 0.5)

    def _bird(self, x: float, y: float, colour: Plane, second: float, side: float) -> None:
        lift = 0.074 * np.sin(7 * second)
        y += 0.012 * np.sin(1.1 * second)
        own = self._own(colour)
        wings: list[tuple[_Patch, Plane]] = []
        for near, shade in ((0.020, 0.88), (-0.020, 0.97)):
            tip = (x + near - 0.040 * side, y - lift - (0.098 if lift > 0 else -0.098))
            corners = [(x + near - 0.042, y), tip, (x + near + 0.042, y)]
            wings.append((self.polygon(corners if tip[1] < y else corners[::-1]), own * shade))
        tail = [(x - side * 0.060, y), (x - side * 0.114, y - 0.022), (x - side * 0.114, y + 0.016)]
        self._body(
            (self.ellipse(x, y, 0.082, 0.034), own),
            (self.polygon(tail if side > 0 else tail[::-1]), own * 0.9),
            (self.disc(x + 0.076 * side, y - 0.020, 0.030), own),
            *wings,
        )
        beak = [(x + side * 0.102, y - 0.029), (x + side * 0.134, y - 0.014), (x + side * 0.102, y - 0.006)]
        self.paint(self.polygon(beak if side > 0 else beak[::-1]), self.lit((0.95, 0.62, 0.15), 0.6))

    def _boat(self, x: float, y: float, colour: Plane, second: float, side: float) -> None:
        y = 0.77 + 0.05 * (y - 0.29) + 0.006 * np.sin(1.5 * second)
        own = self._own(colour)
        self.paint(self.ellipse(x, y + 0.046, 0.120, 0.011), self.lit((0.9, 0.95, 1.0)), 0.35)
        sail = [(x + side * 0.012, y - 0.235), (x + side * -0.105, y - 0.050), (x + side * 0.012, y - 0.050)]
        hull = [(x - 0.140, y - 0.034), (x + 0.140, y - 0.034), (x + 0.092, y + 0.036), (x - 0.092, y + 0.036)]
        self.paint(self.box(x + side * 0.014, y - 0.125, 0.005, 0.122), self.lit((0.36, 0.25, 0.16), 0.3))
        self._body((self.polygon(hull), own), (self.polygon(sail if side < 0 else sail[::-1]), own * 0.94))
        self.paint(self.box(x, y - 0.026, 0.132, 0.006), self.lit((0.97, 0.96, 0.92), 0.4))

    def _ball(self, x: float, y: float, colour: Plane, second: float, side: float) -> None:
        hop = abs(np.sin(2.6 * second))
        radius, floor = 0.075, 0.92
        shadow = self.ellipse(x, floor + 0.008, 0.070 * (1.1 - 0.4 * hop), 0.013)
        self.paint(shadow, np.zeros(3, np.float32), 0.4)
        centre = floor - radius - 0.22 * hop
        own = self._own(colour)
        self._body((self.disc(x, centre, radius), own))
        self.paint(self.disc(x - 0.024, centre - 0.026, 0.019), np.ones(3, np.float32), 0.55)

    def _car(self, x: float, y: float, colour: Plane, second: float, side: float) -> None:
        y = 0.895
        own = self._own(colour)
        cabin = [(x - 0.072, y - 0.100), (x + 0.060, y - 0.100), (x + 0.104, y - 0.026), (x - 0.108, y - 0.026)]
        glass = [(x - 0.060, y - 0.086), (x + 0.050, y - 0.086), (x + 0.076, y - 0.042), (x - 0.082, y - 0.042)]
        self._body((self.box(x, y, 0.150, 0.042, 0.020), own), (self.polygon(cabin), own * 0.94))
        self.paint(self.polygon(glass), self.lit((0.70, 0.83, 0.92), 0.3))
        for wheel in (-0.088, 0.088):
            self.paint(self.disc(x + wheel, y + 0.040, 0.034), self.lit((0.10, 0.10, 0.11)))
            self.paint(self.disc(x + wheel, y + 0.040, 0.014), self.lit((0.72, 0.72, 0.75)))
        if self.scene.time in ("dusk", "night"):
            self.paint(self.disc(x + 0.140 * side, y - 0.004, 0.014), np.array((1.0, 0.95, 0.7), np.float32))


class _Falling:
    """Rain or snow in front of everything."""

    def __init__(self, scene: Scene, size: tuple[int, int]) -> None:
        self._weather, self._size = scene.weather, size
        canvas = _Canvas(scene, (1, 1))
        rain = scene.weather == "rain"
        colour = canvas.lit((0.80, 0.86, 0.95), 0.35) if rain else canvas.lit((1.0, 1.0, 1.0), 0.45)
        self._colour = np.round(255 * colour).astype(np.uint8)
        count = {"rain": 170, "snow": 130}.get(scene.weather, 0)
        self._drops = scene.rng("drops").random((count, 4))

    def move(self, frame: npt.NDArray[np.uint8], second: float) -> None:
        """Paint what falls over a finished picture ``[H, W, 3]``."""
        x, y, size, phase = self._drops.T
        if self._weather == "rain":
            self._streaks(frame, x, (y * 1.2 + second * (1.3 + 0.5 * size)) % 1.2 - 0.1, 0.030 + 0.025 * size)
            return
        height_px, width_px = self._size
        y = (y * 1.1 + second * (0.10 + 0.10 * size)) % 1.1 - 0.05
        x = x * width_px / height_px + 0.03 * np.sin(1.2 * second + 6.28 * phase)
        for at_x, at_y, radius in zip(x.tolist(), y.tolist(), (0.0035 + 0.005 * size).tolist(), strict=True):
            frame[_small_box(self._size, at_x, at_y, radius, radius)] = self._colour

    def _streaks(self, frame: npt.NDArray[np.uint8], x: Plane, y: Plane, length: Plane) -> None:
        """Slanted strokes one pixel wide, half transparent, from their upper ends ``[N]`` downwards."""
        height_px, width_px = self._size
        x = x * width_px / height_px - 0.05 * y
        steps = max(2, round(float(length.max()) * height_px))
        along = np.linspace(0, 1, steps)[:, None] * length
        rows = np.round((y + along) * height_px).astype(int).ravel()
        columns = np.round((x - 0.25 * along) * height_px).astype(int).ravel()
        seen = (rows >= 0) & (rows < height_px) & (columns >= 0) & (columns < width_px)
        rows, columns = rows[seen], columns[seen]
        frame[rows, columns] = (frame[rows, columns] >> 1) + (self._colour >> 1)
