"""A canvas on which shapes with smooth edges are painted over one another."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ultraflash_cli.train.scenes import Rgb, Scene, Time

__all__ = ["HORIZON", "RIM", "Canvas", "Patch", "Plane", "small_box"]

Plane = npt.NDArray[np.floating[Any]]

_LIGHT: dict[Time, Rgb] = {
    "morning": (0.97, 0.95, 0.90),
    "day": (1.0, 1.0, 1.0),
    "sunset": (0.95, 0.70, 0.56),
    "dusk": (0.56, 0.52, 0.66),
    "night": (0.28, 0.31, 0.44),
}
"""Factors on daylight colours."""
HORIZON = 0.62
"""Height of the horizon; 0 is the top of the picture."""
RIM = 0.006
"""Width of the rim around things."""


@dataclass(frozen=True)
class Patch:
    """A shape: signed distances, negative inside, in the part of the picture around it."""

    rows: slice
    columns: slice
    distance: Plane


class Canvas:
    """A picture being painted; lengths are in picture heights, x from the left, y from the top."""

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
        """Return a daylight colour under the scene's light; glowing things keep their own."""
        own = np.array(colour, np.float32)
        return own * (self.light * (1 - glow) + glow)

    def paint(self, patch: Patch, colour: Plane, opacity: float = 1.0, *, grow: float = 0.0) -> None:
        """Paint a shape in a colour ``[planes]``, grown on all sides by ``grow``, with
        smooth edges."""
        area = self.rgb[:, patch.rows, patch.columns]
        area += (colour[:, None, None] - area) * (self.cover(patch.distance - grow) * opacity)

    def cover(self, distance: Plane) -> Plane:
        """Convert a signed distance, negative inside, to coverage with smooth edges."""
        return np.clip(0.5 - distance / (1.5 * self.pixel), 0, 1).astype(np.float32)

    def around(self, x: float, y: float, wide: float, high: float) -> tuple[slice, slice, Plane, Plane]:
        """Return the rows and columns that a shape can touch, and their offsets right
        and down from (x, y)."""
        height_px, width_px = self.size
        edge = RIM + 2 * self.pixel
        top, low = (int(np.clip(height_px * at, 0, height_px)) for at in (y - high - edge, y + high + edge))
        left, right = (int(np.clip(height_px * at, 0, width_px)) for at in (x - wide - edge, x + wide + edge))
        rows, columns = slice(top, low), slice(left, right)
        return rows, columns, self.x[:, columns] - np.float32(x), self.y[rows] - np.float32(y)

    def disc(self, x: float, y: float, radius: float) -> Patch:
        rows, columns, dx, dy = self.around(x, y, radius, radius)
        return Patch(rows, columns, np.hypot(dx, dy) - np.float32(radius))

    def ellipse(self, x: float, y: float, wide: float, high: float) -> Patch:
        rows, columns, dx, dy = self.around(x, y, wide, high)
        scaled = np.hypot(dx / np.float32(wide), dy / np.float32(high))
        return Patch(rows, columns, (scaled - 1) * np.float32(min(wide, high)))

    def box(self, x: float, y: float, wide: float, high: float, round_: float = 0.0) -> Patch:
        """Return a box around (x, y) with half sides ``wide`` and ``high``."""
        rows, columns, dx, dy = self.around(x, y, wide, high)
        dx, dy = np.abs(dx) - np.float32(wide - round_), np.abs(dy) - np.float32(high - round_)
        outside = np.hypot(np.maximum(dx, 0), np.maximum(dy, 0))
        return Patch(rows, columns, outside + np.minimum(np.maximum(dx, dy), 0) - np.float32(round_))

    def polygon(self, corners: list[tuple[float, float]]) -> Patch:
        """Return a convex polygon, its corners clockwise as seen."""
        (left, top), (right, low) = np.min(corners, axis=0), np.max(corners, axis=0)
        x, y = (left + right) / 2, (top + low) / 2
        rows, columns, dx, dy = self.around(x, y, (right - left) / 2, (low - top) / 2)
        distance = np.full((dy.shape[0], dx.shape[1]), -np.inf, np.float32)
        for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1], strict=True):
            length = max(float(np.hypot(x1 - x0, y1 - y0)), 1e-6)
            across, down = np.float32((y1 - y0) / length), np.float32((x1 - x0) / length)
            distance = np.maximum(distance, across * (dx + np.float32(x - x0)) - down * (dy + np.float32(y - y0)))
        return Patch(rows, columns, distance)


def small_box(size: tuple[int, int], x: float, y: float, wide: float, high: float) -> tuple[slice, slice]:
    """Return the rows and columns of a box with hard edges, for shapes that occur in
    large numbers."""
    height_px, width_px = size
    rows = slice(max(0, round((y - high) * height_px)), max(0, min(height_px, round((y + high) * height_px))))
    columns = slice(max(0, round((x - wide) * height_px)), max(0, min(width_px, round((x + wide) * height_px))))
    return rows, columns
