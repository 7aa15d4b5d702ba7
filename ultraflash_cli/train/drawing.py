"""Rendered scenes: simple moving illustrations, at any size."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ultraflash_cli.train.canvas import Canvas, Plane, small_box
from ultraflash_cli.train.landscape import Land, Sky
from ultraflash_cli.train.scenes import Scene
from ultraflash_cli.train.things import Things

__all__ = ["Renderer", "contact_sheet"]


def contact_sheet(
    scenes: Sequence[Scene], *, columns: int = 3, height_px: int = 160, width_px: int = 276
) -> npt.NDArray[np.uint8]:
    """Return a picture that shows many scenes, row by row, each at its start and two
    seconds later."""
    rows: list[npt.NDArray[np.uint8]] = []
    for at in range(0, len(scenes), columns):
        renderers = [Renderer(scene, height_px=height_px, width_px=width_px) for scene in scenes[at : at + columns]]
        shown = [renderer.frame(second) for renderer in renderers for second in (0.5, 2.5)]
        shown += [np.zeros_like(shown[0])] * (2 * columns - len(shown))
        rows.append(np.concatenate(shown, axis=1))
    return np.concatenate(rows)


class Renderer:
    """Renders the frames of one scene: static parts once, moving parts in every
    frame."""

    def __init__(self, scene: Scene, *, height_px: int = 480, width_px: int = 832) -> None:
        size = height_px, width_px
        self._sky, self._land = Sky(scene, size), Land(scene, size)
        self._things, self._falling = Things(scene, size), _Falling(scene, size)
        self._still = self._land.before(self._sky.rgb)

    def frame(self, second: float) -> npt.NDArray[np.uint8]:
        """Render the scene ``second`` seconds after its start: RGB ``[height_px,
        width_px, 3]``."""
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


class _Falling:
    """Rain or snow in the foreground."""

    def __init__(self, scene: Scene, size: tuple[int, int]) -> None:
        self._weather, self._size = scene.weather, size
        canvas = Canvas(scene, (1, 1))
        rain = scene.weather == "rain"
        colour = canvas.lit((0.80, 0.86, 0.95), 0.35) if rain else canvas.lit((1.0, 1.0, 1.0), 0.45)
        self._colour = np.round(255 * colour).astype(np.uint8)
        count = {"rain": 170, "snow": 130}.get(scene.weather, 0)
        self._drops = scene.rng("drops").random((count, 4))

    def move(self, frame: npt.NDArray[np.uint8], second: float) -> None:
        """Paint the rain or snow over a finished picture ``[H, W, 3]``."""
        x, y, size, phase = self._drops.T
        if self._weather == "rain":
            self._streaks(frame, x, (y * 1.2 + second * (1.3 + 0.5 * size)) % 1.2 - 0.1, 0.030 + 0.025 * size)
            return
        height_px, width_px = self._size
        y = (y * 1.1 + second * (0.10 + 0.10 * size)) % 1.1 - 0.05
        x = x * width_px / height_px + 0.03 * np.sin(1.2 * second + 6.28 * phase)
        for at_x, at_y, radius in zip(x.tolist(), y.tolist(), (0.0035 + 0.005 * size).tolist(), strict=True):
            frame[small_box(self._size, at_x, at_y, radius, radius)] = self._colour

    def _streaks(self, frame: npt.NDArray[np.uint8], x: Plane, y: Plane, length: Plane) -> None:
        """Paint slanted, half-transparent strokes one pixel wide downwards from their
        upper ends ``[N]``."""
        height_px, width_px = self._size
        x = x * width_px / height_px - 0.05 * y
        steps = max(2, round(float(length.max()) * height_px))
        along = np.linspace(0, 1, steps)[:, None] * length
        rows = np.round((y + along) * height_px).astype(int).ravel()
        columns = np.round((x - 0.25 * along) * height_px).astype(int).ravel()
        seen = (rows >= 0) & (rows < height_px) & (columns >= 0) & (columns < width_px)
        rows, columns = rows[seen], columns[seen]
        frame[rows, columns] = (frame[rows, columns] >> 1) + (self._colour >> 1)
