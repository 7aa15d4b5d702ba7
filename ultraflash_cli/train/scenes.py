"""Procedural scenes with captions: simple illustrated landscapes that move, drawn by code at any size.

They teach a small text-to-video model what words look like without anybody's footage. A scene is a value; its frames
and its captions follow from it and from nothing else.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

__all__ = [
    "COLOURS",
    "Colour",
    "Kind",
    "Place",
    "Scene",
    "Thing",
    "Time",
    "Weather",
    "caption",
    "contact_sheet",
    "random_scene",
    "render",
]

Time = Literal["morning", "day", "sunset", "dusk", "night"]
Place = Literal["sea", "hills", "mountains", "snowy mountains", "city", "field"]
Weather = Literal["clear", "clouds", "rain", "snow"]
Kind = Literal["balloon", "bird", "boat", "ball", "car", "lantern"]
Colour = Literal["red", "orange", "yellow", "green", "blue", "purple", "pink", "white", "black"]
Motion = Literal["left", "right", "up"]

Plane = npt.NDArray[np.floating[Any]]
Rgb = tuple[float, float, float]

COLOURS: dict[Colour, Rgb] = {
    "red": (0.86, 0.13, 0.12),
    "orange": (0.96, 0.52, 0.11),
    "yellow": (0.97, 0.83, 0.18),
    "green": (0.18, 0.62, 0.27),
    "blue": (0.14, 0.36, 0.83),
    "purple": (0.52, 0.22, 0.69),
    "pink": (0.95, 0.47, 0.66),
    "white": (0.96, 0.96, 0.94),
    "black": (0.09, 0.09, 0.11),
}
"""What the colour words look like in daylight."""

_SKIES: dict[Time, tuple[Rgb, Rgb]] = {
    "morning": ((0.55, 0.74, 0.92), (0.98, 0.87, 0.72)),
    "day": ((0.25, 0.53, 0.90), (0.74, 0.88, 0.98)),
    "sunset": ((0.30, 0.24, 0.52), (0.99, 0.55, 0.24)),
    "dusk": ((0.13, 0.15, 0.36), (0.62, 0.42, 0.56)),
    "night": ((0.02, 0.03, 0.10), (0.08, 0.11, 0.24)),
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
_RISING: tuple[Kind, ...] = ("balloon", "lantern")
_WHERE: dict[Kind, tuple[Place, ...]] = {
    "balloon": get_args(Place),
    "bird": get_args(Place),
    "lantern": get_args(Place),
    "boat": ("sea",),
    "ball": ("hills", "field", "city", "snowy mountains", "mountains"),
    "car": ("city", "hills", "field", "mountains", "snowy mountains"),
}
_HORIZON = 0.62
"""Height of the horizon; 0 is the top of the picture."""


@dataclass(frozen=True, kw_only=True)
class Thing:
    """What moves in a scene."""

    kind: Kind
    colour: Colour
    motion: Motion
    count: int = 1
    """1 to 3."""
    speed: float = 0.10
    """Picture heights a second."""

    def __post_init__(self) -> None:
        assert 1 <= self.count <= 3, "a few things, not a crowd"


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A landscape, its light and weather, and at most one kind of thing in it."""

    time: Time
    place: Place
    weather: Weather
    thing: Thing | None
    seed: int = 0
    """Of the shapes: ridges, clouds, windows, where things are."""


def random_scene(seed: int) -> Scene:
    """Return a scene of this number; every word of the vocabulary turns up."""
    rng = Random(seed)
    place = rng.choice(get_args(Place))
    kinds = [kind for kind in get_args(Kind) if place in _WHERE[kind]]
    thing = None
    if rng.random() < 0.85:
        kind = rng.choice(kinds)
        motion: Motion = (
            "up" if kind in ("balloon", "lantern") and rng.random() < 0.5 else rng.choice(("left", "right"))
        )
        thing = Thing(
            kind=kind,
            colour=rng.choice(get_args(Colour)),
            motion=motion,
            count=rng.choice((1, 1, 1, 2, 3)),
            speed=rng.uniform(0.05, 0.16) * (1.8 if kind in ("car", "bird") else 1.0),
        )
    weather = rng.choice(("clear", "clear", "clouds", "rain", "snow"))
    return Scene(time=rng.choice(get_args(Time)), place=place, weather=weather, thing=thing, seed=seed)


# Captions

_TIME_WORDS: dict[Time, tuple[str, ...]] = {
    "morning": ("in the morning", "at sunrise", "in the early light"),
    "day": ("at noon", "in daylight", "on a bright day", "by day"),
    "sunset": ("at sunset", "in the evening sun", "under an orange sky"),
    "dusk": ("at dusk", "in the twilight", "after sunset"),
    "night": ("at night", "under the stars", "by moonlight"),
}
_WEATHER_WORDS: dict[Weather, tuple[str, ...]] = {
    "clear": ("", "", "with a clear sky"),
    "clouds": ("with drifting clouds", "under clouds", "on a cloudy day"),
    "rain": ("in the rain", "while it rains", "on a rainy day"),
    "snow": ("in falling snow", "while it snows", "in winter"),
}
_PLACE_WORDS: dict[Place, tuple[str, ...]] = {
    "sea": ("the sea", "the ocean", "calm water"),
    "hills": ("green hills", "rolling hills"),
    "mountains": ("mountains", "a mountain range"),
    "snowy mountains": ("snowy mountains", "snow-covered mountains", "white peaks"),
    "city": ("a city", "the skyline of a city", "tall buildings"),
    "field": ("a field", "a meadow", "golden fields"),
}
_KIND_WORDS: dict[Kind, tuple[tuple[str, str], ...]] = {
    "balloon": (("balloon", "balloons"), ("hot-air balloon", "hot-air balloons")),
    "bird": (("bird", "birds"),),
    "boat": (("boat", "boats"), ("sailing boat", "sailing boats")),
    "ball": (("ball", "balls"),),
    "car": (("car", "cars"),),
    "lantern": (("lantern", "lanterns"), ("paper lantern", "paper lanterns")),
}
_MOVES: dict[Kind, dict[Motion, tuple[str, ...]]] = {
    "balloon": {"up": ("rising", "floating up"), "left": ("drifting",), "right": ("drifting",)},
    "bird": {"up": ("flying",), "left": ("flying", "gliding"), "right": ("flying", "gliding")},
    "boat": {"up": ("sailing",), "left": ("sailing",), "right": ("sailing",)},
    "ball": {"up": ("bouncing",), "left": ("bouncing", "rolling"), "right": ("bouncing", "rolling")},
    "car": {"up": ("driving",), "left": ("driving",), "right": ("driving",)},
    "lantern": {"up": ("rising", "floating up"), "left": ("floating",), "right": ("floating",)},
}
_OVER: dict[Kind, tuple[str, ...]] = {
    "balloon": ("over", "above"),
    "bird": ("over", "above"),
    "lantern": ("over", "above"),
    "boat": ("on",),
    "ball": ("in front of", "before"),
    "car": ("past", "in front of"),
}
_COUNTS = {1: ("a",), 2: ("two",), 3: ("three",)}


def caption(scene: Scene, wording: int = 0) -> str:
    """Say what a scene shows; another ``wording`` says the same in other words."""
    rng = Random(f"{scene.seed}/{wording}")
    when = rng.choice(_TIME_WORDS[scene.time])
    weather = rng.choice(_WEATHER_WORDS[scene.weather])
    where = rng.choice(_PLACE_WORDS[scene.place])
    around = [words for words in (when, weather) if words]
    if rng.random() < 0.3:
        around.reverse()
    thing = scene.thing
    if thing is None:
        return " ".join([where, *around])
    one, many = rng.choice(_KIND_WORDS[thing.kind])
    article = rng.choice(_COUNTS[thing.count])
    if thing.count == 1 and thing.colour[0] in "aeiou":
        article = "an"
    noun = f"{article} {thing.colour} {one if thing.count == 1 else many}"
    move = rng.choice(_MOVES[thing.kind][thing.motion])
    if thing.motion != "up" and rng.random() < 0.4:
        move += f" to the {thing.motion}"
    return " ".join([noun, move, rng.choice(_OVER[thing.kind]), where, *around])


# Pictures


def render(scene: Scene, second: float, *, height_px: int = 480, width_px: int = 832) -> npt.NDArray[np.uint8]:
    """Draw a scene ``second`` seconds after its start: RGB ``[height_px, width_px, 3]``."""
    canvas = _Canvas(scene, height_px, width_px)
    canvas.sky(second)
    canvas.land(second)
    if scene.thing is not None:
        canvas.things(scene.thing, second)
    canvas.falling(second)
    return np.round(np.clip(canvas.rgb, 0, 1) * 255).astype(np.uint8)


def contact_sheet(
    scenes: Sequence[Scene], *, columns: int = 3, height_px: int = 160, width_px: int = 276
) -> npt.NDArray[np.uint8]:
    """Return one picture of many scenes, row by row, each at its start and two seconds later."""
    rows: list[npt.NDArray[np.uint8]] = []
    for at in range(0, len(scenes), columns):
        row = scenes[at : at + columns]
        shown = [
            render(scene, second, height_px=height_px, width_px=width_px) for scene in row for second in (0.5, 2.5)
        ]
        shown += [np.zeros_like(shown[0])] * (2 * columns - len(shown))
        rows.append(np.concatenate(shown, axis=1))
    return np.concatenate(rows)


class _Canvas:
    """A picture in the making; lengths are in picture heights, x from the left, y from the top."""

    def __init__(self, scene: Scene, height_px: int, width_px: int) -> None:
        self.scene = scene
        self.size = height_px, width_px
        self.width = width_px / height_px
        self.pixel = 1.0 / height_px
        self.y = ((np.arange(height_px, dtype=np.float32) + 0.5) / height_px)[:, None]
        self.x = ((np.arange(width_px, dtype=np.float32) + 0.5) / height_px)[None, :]
        self.rgb = np.zeros((height_px, width_px, 3), np.float32)
        self.light = np.array(_LIGHT[scene.time], np.float32)

    def lit(self, colour: Rgb, glow: float = 0.0) -> Plane:
        """Return a daylight colour under the scene's light; what glows keeps its own."""
        own = np.array(colour, np.float32)
        return own * (self.light * (1 - glow) + glow)

    def paint(self, cover: Plane, colour: Plane) -> None:
        """Lay a colour ``[3]`` or ``[H, W, 3]`` over the picture where ``cover [H, W]`` is, 0 to 1."""
        self.rgb += (colour - self.rgb) * cover[..., None]

    def inside(self, distance: Plane) -> Plane:
        """Turn a signed distance, negative inside, into cover with smooth edges."""
        return np.clip(0.5 - distance / (1.5 * self.pixel), 0, 1).astype(np.float32)

    def disc(self, x: float, y: float, radius: float) -> Plane:
        return self.inside(np.hypot(self.x - x, self.y - y) - radius)

    def ellipse(self, x: float, y: float, wide: float, high: float) -> Plane:
        scaled = np.hypot((self.x - x) / wide, (self.y - y) / high)
        return self.inside((scaled - 1) * min(wide, high))

    def box(self, x: float, y: float, wide: float, high: float, round_: float = 0.0) -> Plane:
        """A box around (x, y) with half sides ``wide`` and ``high``."""
        dx, dy = np.abs(self.x - x) - (wide - round_), np.abs(self.y - y) - (high - round_)
        outside = np.hypot(np.maximum(dx, 0), np.maximum(dy, 0))
        return self.inside(outside + np.minimum(np.maximum(dx, dy), 0) - round_)

    def polygon(self, corners: list[tuple[float, float]]) -> Plane:
        """A convex polygon, its corners clockwise as seen."""
        distance = np.full(self.size, -np.inf, np.float32)
        for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1], strict=True):
            length = max(np.hypot(x1 - x0, y1 - y0), 1e-6)
            distance = np.maximum(distance, ((y1 - y0) * (self.x - x0) - (x1 - x0) * (self.y - y0)) / length)
        return self.inside(distance)

    # Sky

    def sky(self, second: float) -> None:
        scene = self.scene
        top, low = (np.array(colour, np.float32) for colour in _SKIES[scene.time])
        grey = {"clear": 0.0, "clouds": 0.12, "rain": 0.45, "snow": 0.35}[scene.weather]
        share = np.clip(self.y / _HORIZON, 0, 1)[..., None] ** 1.4
        sky = top * (1 - share) + low * share
        sky = sky * (1 - grey) + sky.mean(axis=-1, keepdims=True) * grey * 0.92
        self.rgb[:] = np.broadcast_to(sky, self.rgb.shape)
        rng = np.random.default_rng((scene.seed, 1))
        if scene.time == "night" and scene.weather in ("clear", "clouds"):
            for x, y, size in rng.random((60, 3)):
                twinkle = 0.6 + 0.4 * np.sin(2 * second + 40 * x)
                star = self.disc(x * self.width, y * _HORIZON * 0.9, self.pixel * (0.7 + size))
                self.paint(star * twinkle, self.lit((1, 1, 1), 1))
        height, colour, radius = _SUN[scene.time]
        sun_x = self.width * (0.2 + 0.6 * rng.random())
        if scene.weather in ("clear", "clouds"):
            glow = np.exp(-((np.hypot(self.x - sun_x, self.y - height) / (3.2 * radius)) ** 2)) * 0.45
            self.paint(glow.astype(np.float32), np.array(colour, np.float32))
            self.paint(self.disc(sun_x, height, radius), np.array(colour, np.float32))
        if scene.weather != "clear":
            self.clouds(second)

    def clouds(self, second: float) -> None:
        rng = np.random.default_rng((self.scene.seed, 2))
        dark = self.scene.weather in ("rain", "snow")
        white = self.lit((0.62, 0.64, 0.68) if dark else (0.98, 0.98, 0.99))
        for _ in range(9 if dark else 5):
            x0, y, size, drift = rng.random(4)
            speed = 0.02 + 0.03 * drift
            x = (x0 * (self.width + 1) + second * speed) % (self.width + 1) - 0.5
            high = 0.06 + 0.30 * y
            cover = np.zeros(self.size, np.float32)
            for dx, dy, r in (
                (-0.11, 0.01, 0.7),
                (0.0, -0.02, 1.0),
                (0.10, 0.01, 0.75),
                (0.19, 0.025, 0.45),
                (-0.19, 0.03, 0.4),
            ):
                scale = 0.06 + 0.07 * size
                cover = np.maximum(
                    cover, self.ellipse(x + dx * scale * 9, high + dy * scale * 9, r * scale * 1.5, r * scale * 0.85)
                )
            self.paint(cover * 0.85, white)

    # Land

    def ridge(self, key: int, base: float, relief: float, waves: float) -> Plane:
        """Return the height of a skyline ``[1, W]``: a few sines of seeded phase."""
        rng = np.random.default_rng((self.scene.seed, 3, key))
        line = np.zeros_like(self.x)
        for octave in range(4):
            line += np.sin(self.x * waves * 2.1**octave + 6.28 * rng.random()) / 1.9**octave
        return base - relief * line

    def land(self, second: float) -> None:
        place = self.scene.place
        if place == "sea":
            self.sea(second)
        elif place == "city":
            self.city()
        else:
            if "mountains" in place:
                self.mountains()
            ground = self.lit(_GROUND[place])
            for key, base in enumerate((_HORIZON, _HORIZON + 0.08, _HORIZON + 0.17)):
                relief = 0.035 if place == "hills" else 0.012
                cover = self.inside(self.ridge(key, base, relief, 3.0 + key) - self.y)
                self.paint(cover, ground * (0.82 + 0.09 * key))

    def mountains(self) -> None:
        snowy = self.scene.place == "snowy mountains"
        rock = self.lit((0.45, 0.45, 0.52))
        for key, base in ((10, _HORIZON - 0.14), (11, _HORIZON - 0.06)):
            rng = np.random.default_rng((self.scene.seed, 4, key))
            line = np.full_like(self.x, _HORIZON + 0.05)
            for peak_x, peak_y, slope in rng.random((6, 3)):
                x, y = peak_x * self.width, base - 0.22 * peak_y
                line = np.minimum(line, y + np.abs(self.x - x) * (0.55 + 0.5 * slope))
            rough = self.ridge(key, 0.0, 0.006, 22.0)
            cover = self.inside(line + rough - self.y)
            self.paint(cover, rock * (0.8 if key == 10 else 1.0))
            if snowy:
                cap = np.clip((line + 0.10 + 3 * rough - self.y) / (2 * self.pixel), 0, 1).astype(np.float32)
                self.paint(cover * cap, self.lit((0.97, 0.98, 1.0)))

    def sea(self, second: float) -> None:
        cover = self.inside(_HORIZON - self.y + np.zeros_like(self.x))
        depth = np.clip((self.y - _HORIZON) / (1 - _HORIZON), 0, 1)[..., None]
        water = self.lit(_GROUND["sea"]) * (1.15 - 0.45 * depth)
        mirror = np.array(_SKIES[self.scene.time][1], np.float32)
        self.paint(cover, (water * 0.72 + mirror * 0.28 * (1 - 0.6 * depth)).astype(np.float32))
        near = 1 / np.maximum(self.y - _HORIZON + 0.03, 0.03)
        ripple = np.sin(near * 6 + 2.2 * second + 3 * np.sin(self.x * 5 + second)) * np.sin(
            self.x * (10 + 6 * near) - 1.3 * second
        )
        self.paint(cover * np.clip(ripple - 0.55, 0, 1) * 0.5, self.lit((0.95, 0.97, 1.0), 0.2))

    def city(self) -> None:
        rng = np.random.default_rng((self.scene.seed, 5))
        dark = self.scene.time in ("dusk", "night")
        for row, shade in ((0, 0.62), (1, 0.85)):
            x = -0.05
            while x < self.width + 0.1:
                wide, high, tone = 0.05 + 0.07 * rng.random(), 0.10 + 0.30 * rng.random(), rng.random()
                top = _HORIZON + 0.10 * row - high
                grey = self.lit((0.40 + 0.15 * tone, 0.42 + 0.12 * tone, 0.48 + 0.10 * tone)) * shade
                self.paint(self.box(x + wide / 2, (top + 1) / 2, wide / 2, (1 - top) / 2), grey)
                if row == 1:
                    self.windows(x, wide, top, rng, lights=dark)
                x += wide + 0.012 * rng.random()
        self.paint(self.inside(0.86 - self.y + np.zeros_like(self.x)), self.lit((0.24, 0.24, 0.27)))

    def windows(self, x: float, wide: float, top: float, rng: np.random.Generator, *, lights: bool) -> None:
        across, down = max(2, int(wide / 0.022)), int((0.84 - top) / 0.034)
        pane = np.array((1.0, 0.86, 0.48) if lights else (0.66, 0.76, 0.84), np.float32)
        pane = pane if lights else pane * self.light
        for i in range(across):
            for j in range(down):
                if rng.random() < (0.45 if lights else 0.8):
                    centre = x + (i + 0.5) * wide / across, top + 0.024 + j * 0.034
                    self.small_box(*centre, 0.30 * wide / across, 0.009, pane)

    def small_box(self, x: float, y: float, wide: float, high: float, colour: Plane) -> None:
        """A box painted in its own corner of the picture only, for things there are many of."""
        height_px, width_px = self.size
        rows = slice(max(0, round((y - high) * height_px)), max(0, min(height_px, round((y + high) * height_px))))
        columns = slice(max(0, round((x - wide) * height_px)), max(0, min(width_px, round((x + wide) * height_px))))
        self.rgb[rows, columns] = colour

    # Things

    def things(self, thing: Thing, second: float) -> None:
        rng = np.random.default_rng((self.scene.seed, 6))
        colour = np.array(COLOURS[thing.colour], np.float32)
        for number in range(thing.count):
            across, up, phase = rng.random(3)
            share = (number + 0.5 + 0.5 * (across - 0.5)) / thing.count
            way = {"left": -1.0, "right": 1.0, "up": 0.0}[thing.motion]
            travelled = second * thing.speed
            x = (share * self.width + way * travelled + 0.3) % (self.width + 0.6) - 0.3
            y = 0.16 + 0.26 * up
            if thing.motion == "up":
                x += 0.02 * np.sin(second + 6 * phase)
                y = (0.62 - 0.3 * up - travelled) % 1.3 - 0.15
            draw = getattr(self, f"_{thing.kind}")
            draw(float(x), float(y), colour, second + 5 * phase, way)

    def _balloon(self, x: float, y: float, colour: Plane, second: float, way: float) -> None:
        y += 0.008 * np.sin(1.3 * second)
        lit = colour * np.maximum(self.light, 0.45)
        self.paint(
            self.polygon(
                [(x - 0.062, y + 0.045), (x + 0.062, y + 0.045), (x + 0.018, y + 0.112), (x - 0.018, y + 0.112)]
            ),
            lit * 0.9,
        )
        self.paint(self.disc(x, y, 0.078), lit)
        self.paint(self.ellipse(x, y, 0.030, 0.078), lit * 0.82)
        self.paint(self.ellipse(x - 0.028, y - 0.030, 0.014, 0.022) * 0.5, np.ones(3, np.float32))
        self.paint(self.box(x, y + 0.140, 0.016, 0.013, 0.003), self.lit((0.45, 0.29, 0.15)))

    def _lantern(self, x: float, y: float, colour: Plane, second: float, way: float) -> None:
        y += 0.006 * np.sin(1.7 * second)
        glow = np.exp(-((np.hypot(self.x - x, self.y - y) / 0.11) ** 2)) * 0.45
        warm = colour * 0.6 + np.array((1.0, 0.75, 0.35), np.float32) * 0.4
        self.paint(glow.astype(np.float32), warm)
        self.paint(self.box(x, y, 0.034, 0.046, 0.016), colour * 0.85 + 0.12)
        self.paint(self.ellipse(x, y + 0.018, 0.018, 0.022) * 0.8, np.array((1.0, 0.93, 0.66), np.float32))

    def _bird(self, x: float, y: float, colour: Plane, second: float, way: float) -> None:
        lift = 0.045 * np.sin(7 * second)
        y += 0.012 * np.sin(1.1 * second)
        lit = colour * np.maximum(self.light, 0.4)
        side = way or 1.0
        self.paint(self.ellipse(x, y, 0.040, 0.015), lit)
        self.paint(self.disc(x + 0.038 * side, y - 0.010, 0.014), lit)
        for near, shade in ((0.010, 0.72), (-0.010, 0.88)):
            tip = (x + near - 0.022 * side, y - lift - (0.055 if lift > 0 else -0.055))
            corners = [(x + near - 0.020, y), tip, (x + near + 0.020, y)]
            self.paint(self.polygon(corners if tip[1] < y else corners[::-1]), lit * shade)

    def _boat(self, x: float, y: float, colour: Plane, second: float, way: float) -> None:
        y = 0.76 + 0.05 * (y - 0.29) + 0.006 * np.sin(1.5 * second)
        side = way or 1.0
        sail = [(x, y - 0.16), (x + side * -0.075, y - 0.030), (x, y - 0.030)]
        self.paint(self.polygon(sail if side < 0 else sail[::-1]), self.lit((0.97, 0.96, 0.92)))
        self.paint(self.box(x, y - 0.085, 0.0035, 0.085), self.lit((0.36, 0.25, 0.16)))
        self.paint(
            self.polygon(
                [(x - 0.10, y - 0.022), (x + 0.10, y - 0.022), (x + 0.066, y + 0.022), (x - 0.066, y + 0.022)]
            ),
            colour * np.maximum(self.light, 0.4),
        )
        self.paint(self.ellipse(x, y + 0.030, 0.085, 0.008) * 0.35, self.lit((0.9, 0.95, 1.0)))

    def _ball(self, x: float, y: float, colour: Plane, second: float, way: float) -> None:
        hop = abs(np.sin(2.6 * second))
        radius, floor = 0.052, 0.90
        self.paint(self.ellipse(x, floor + 0.008, 0.050 * (1.1 - 0.4 * hop), 0.010) * 0.4, np.zeros(3, np.float32))
        centre = floor - radius - 0.20 * hop
        lit = colour * np.maximum(self.light, 0.4)
        self.paint(self.disc(x, centre, radius), lit)
        self.paint(self.disc(x - 0.016, centre - 0.018, 0.014) * 0.55, np.ones(3, np.float32))

    def _car(self, x: float, y: float, colour: Plane, second: float, way: float) -> None:
        y, side = 0.905, way or 1.0
        lit = colour * np.maximum(self.light, 0.4)
        self.paint(self.box(x, y, 0.115, 0.028, 0.014), lit)
        self.paint(
            self.polygon(
                [(x - 0.055, y - 0.072), (x + 0.045, y - 0.072), (x + 0.078, y - 0.020), (x - 0.082, y - 0.020)]
            ),
            lit * 0.92,
        )
        self.paint(
            self.polygon(
                [(x - 0.046, y - 0.063), (x + 0.036, y - 0.063), (x + 0.058, y - 0.028), (x - 0.064, y - 0.028)]
            ),
            self.lit((0.70, 0.83, 0.92)),
        )
        for wheel in (-0.066, 0.066):
            self.paint(self.disc(x + wheel, y + 0.028, 0.026), self.lit((0.10, 0.10, 0.11)))
            self.paint(self.disc(x + wheel, y + 0.028, 0.011), self.lit((0.72, 0.72, 0.75)))
        if self.scene.time in ("dusk", "night"):
            self.paint(self.disc(x + 0.108 * side, y - 0.002, 0.010), np.array((1.0, 0.95, 0.7), np.float32))

    # Weather in front

    def falling(self, second: float) -> None:
        weather = self.scene.weather
        if weather not in ("rain", "snow"):
            return
        rng = np.random.default_rng((self.scene.seed, 7))
        colour = self.lit((0.80, 0.86, 0.95), 0.35) if weather == "rain" else self.lit((1.0, 1.0, 1.0), 0.45)
        for x, y, size, phase in rng.random((170 if weather == "rain" else 130, 4)):
            if weather == "rain":
                at_y = (y * 1.2 + second * (1.3 + 0.5 * size)) % 1.2 - 0.1
                at_x = x * self.width - 0.05 * at_y
                self.streak(at_x, at_y, 0.030 + 0.025 * size, colour)
                continue
            at_y = (y * 1.1 + second * (0.10 + 0.10 * size)) % 1.1 - 0.05
            at_x = x * self.width + 0.03 * np.sin(1.2 * second + 6.28 * phase)
            radius = 0.0035 + 0.005 * size
            self.small_box(at_x, at_y, radius, radius, colour)

    def streak(self, x: float, y: float, length: float, colour: Plane) -> None:
        """A slanted stroke one pixel wide, half transparent."""
        height_px, width_px = self.size
        steps = max(2, round(length * height_px))
        rows = np.round((y + np.linspace(0, length, steps)) * height_px).astype(int)
        columns = np.round((x - np.linspace(0, 0.25 * length, steps)) * height_px).astype(int)
        seen = (rows >= 0) & (rows < height_px) & (columns >= 0) & (columns < width_px)
        rows, columns = rows[seen], columns[seen]
        self.rgb[rows, columns] = 0.5 * self.rgb[rows, columns] + 0.5 * colour
