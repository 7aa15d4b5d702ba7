"""Scenes: a landscape, its light and weather, and at most one kind of thing that moves in it.

They teach a small text-to-video model the meaning of words without any real footage. A
scene is a value that fully determines its frames (``train/drawing.py``) and its
captions (``train/captions.py``).
"""

from dataclasses import dataclass
from random import Random
from typing import Literal, get_args

import numpy as np

__all__ = [
    "COLOURS",
    "Colour",
    "Kind",
    "Motion",
    "Place",
    "Rgb",
    "Scene",
    "Shapes",
    "Thing",
    "Time",
    "Weather",
    "random_scene",
]

Time = Literal["morning", "day", "sunset", "dusk", "night"]
Place = Literal["sea", "hills", "mountains", "snowy mountains", "city", "field"]
Weather = Literal["clear", "clouds", "rain", "snow"]
Kind = Literal["balloon", "bird", "boat", "ball", "car", "lantern"]
Colour = Literal["red", "orange", "yellow", "green", "blue", "purple", "pink", "white", "black"]
Motion = Literal["left", "right", "up"]
Shapes = Literal["sun", "clouds", "ridges", "peaks", "city", "things", "drops"]
"""Independent random sequences: sun and stars, clouds, skylines, mountains, houses,
positions of things, rain and snow."""

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
    "black": (0.07, 0.07, 0.08),
}
"""The colour words as RGB in daylight."""

_RISING: tuple[Kind, ...] = ("balloon", "lantern")
_WHERE: dict[Kind, tuple[Place, ...]] = {
    "balloon": get_args(Place),
    "bird": get_args(Place),
    "lantern": get_args(Place),
    "boat": ("sea",),
    "ball": ("hills", "field", "city", "snowy mountains", "mountains"),
    "car": ("city", "hills", "field", "mountains", "snowy mountains"),
}
_KEYS: dict[Shapes, int] = {name: number for number, name in enumerate(get_args(Shapes), 1)}


@dataclass(frozen=True, kw_only=True)
class Thing:
    """The moving objects of a scene."""

    kind: Kind
    colour: Colour
    motion: Motion
    count: int = 1
    """Number of objects, 1 to 3."""
    speed: float = 0.10
    """Speed in picture heights per second."""

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
    """Seed of the shapes: ridges, clouds, windows, positions of things."""
    sky_seed: int | None = None
    """Seed of the sky's shapes if not ``seed``: sun, stars, clouds, rain or snow."""
    thing_seed: int | None = None
    """Seed of the positions of things if not ``seed``."""

    def rng(self, shapes: Shapes, *more: int) -> np.random.Generator:
        """Return the random generator of one kind of shapes."""
        own = {"sun": self.sky_seed, "clouds": self.sky_seed, "drops": self.sky_seed, "things": self.thing_seed}
        seed = own.get(shapes)
        return np.random.default_rng((self.seed if seed is None else seed, _KEYS[shapes], *more))


def random_scene(seed: int) -> Scene:
    """Return a random scene; over all seeds, every word of the vocabulary occurs."""
    rng = Random(seed)
    place, thing = rng.choice(get_args(Place)), None
    if rng.random() < 0.92:
        kind = rng.choice(get_args(Kind))
        place = rng.choice(_WHERE[kind])
        motion: Motion = "up" if kind in _RISING and rng.random() < 0.45 else rng.choice(("left", "right"))
        thing = Thing(
            kind=kind,
            colour=rng.choice(get_args(Colour)),
            motion=motion,
            count=rng.choice((1, 1, 1, 2, 3)),
            speed=rng.uniform(0.09, 0.17) * (1.3 if kind in ("car", "bird") else 1.0),
        )
    weather = rng.choice(("clear", "clear", "clear", "clouds", "clouds", "rain", "snow"))
    return Scene(time=rng.choice(get_args(Time)), place=place, weather=weather, thing=thing, seed=seed)
