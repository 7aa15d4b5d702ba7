"""Moving things in a scene: balloons, birds, boats, balls, cars and lanterns."""

import numpy as np

from ultraflash_cli.train.canvas import RIM, Canvas, Patch, Plane
from ultraflash_cli.train.scenes import COLOURS, Kind

__all__ = ["HOP", "HOP_RATE", "WING_RATE", "Things"]

_OWN_LIGHT = 0.7
"""Share of a thing's own colour that does not depend on the light."""
_GAPS: dict[Kind, float] = {"balloon": 0.34, "bird": 0.32, "boat": 0.38, "ball": 0.26, "car": 0.40, "lantern": 0.28}
"""Distance between the centres of neighbouring things in a group."""
HOP, HOP_RATE = 0.22, 2.6
"""Height of a ball's hops in picture heights, and their angular frequency in radians per second."""
WING_RATE = 7.0
"""Angular frequency of wing beats in radians per second."""
_MIDDLE_S = 2.5
"""Time in seconds at which things are in the middle of their path, so that five seconds
show them."""


class Things(Canvas):
    """Painter of a scene's things, each with a rim that separates it from the
    background."""

    def move(self, second: float) -> None:
        """Paint the things at a time, with their shadows and lights."""
        thing = self.scene.thing
        if thing is None:
            return

        rng = self.scene.rng("things")
        colour = np.array(COLOURS[thing.colour], np.float32)
        way = {"left": -1.0, "right": 1.0, "up": 0.0}[thing.motion]
        gap = min(_GAPS[thing.kind], self.width / (thing.count + 0.5))
        slack = max(0.0, self.width - 0.40 - gap * (thing.count - 1) - abs(way) * thing.speed * 2 * _MIDDLE_S)
        middle = self.width / 2 + (rng.random() - 0.5) * slack
        travelled = second * thing.speed - _MIDDLE_S * thing.speed
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
        """Return the colour of a thing under the scene's light, which changes it only
        slightly."""
        return colour * (self.light * (1 - _OWN_LIGHT) + _OWN_LIGHT)

    def _body(self, *parts: tuple[Patch, Plane]) -> None:
        """Paint parts in order, with a common rim around all of them: a pale one if the
        first part is dark, otherwise a dark one."""
        colour = parts[0][1]
        rim = colour * 0.5 + 0.38 if colour.mean() < 0.2 else colour * 0.5
        for patch, _ in parts:
            self.paint(patch, rim, grow=RIM)
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
        lift = 0.074 * np.sin(WING_RATE * second)
        y += 0.012 * np.sin(1.1 * second)
        own = self._own(colour)
        wings: list[tuple[Patch, Plane]] = []
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
        hop = abs(np.sin(HOP_RATE * second))
        radius, floor = 0.075, 0.92
        shadow = self.ellipse(x, floor + 0.008, 0.070 * (1.1 - 0.4 * hop), 0.013)
        self.paint(shadow, np.zeros(3, np.float32), 0.4)
        centre = floor - radius - HOP * hop
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
