"""Logs of a run: JSON lines, a plot of the losses and, on request, TensorBoard event
files."""

import importlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ultraflash_cli.errors import UsageError

__all__ = ["NOT_LOSSES", "RunLog", "plot_losses"]

Picture = npt.NDArray[np.uint8]

NOT_LOSSES = ("step", "share", "norm", "s_per_step", "skipped")
"""Fields of a row that the plot leaves out."""

INKS = ((31, 119, 180), (214, 90, 20), (44, 140, 44), (190, 40, 60), (130, 90, 180), (110, 80, 60), (20, 150, 160))
"""Colours of the curves, in the order of the log's fields."""


class RunLog:
    """``log.jsonl`` in a run's folder, or another file of that format, and TensorBoard
    event files next to it. Raises UsageError if TensorBoard is requested but not
    installed.
    """

    def __init__(self, folder: Path, *, tensorboard: bool = False, name: str = "log.jsonl") -> None:
        self.path = folder / name
        self.writes = True
        self.events: Any = None
        self.factory: Any = _tensorboard() if tensorboard else None

    def open(self, first: int, *, writes: bool = True) -> None:
        """Resume after step ``first`` and drop later rows left by an interrupted run."""
        self.writes = writes
        if not writes:
            return
        kept = [row for row in self.rows() if row["step"] <= first]
        self.path.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
        if self.factory is not None:
            self.events = self.factory(str(self.path.parent / "tensorboard"), purge_step=first + 1)

    def rows(self) -> list[dict[str, Any]]:
        """Return all rows so far."""
        if not self.path.exists():
            return []
        return [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines()]

    def write(self, row: Mapping[str, float]) -> None:
        """Add a row, which must contain ``step``."""
        if not self.writes:
            return
        with self.path.open("a", encoding="utf-8") as log:
            log.write(json.dumps(row) + "\n")
        self.note({name: value for name, value in row.items() if name != "step"}, int(row["step"]))

    def note(self, numbers: Mapping[str, float], step: int) -> None:
        """Send numbers to TensorBoard only."""
        if self.events is not None:
            for name, value in numbers.items():
                self.events.add_scalar(name, value, step)

    def show(self, name: str, picture: Picture, step: int) -> None:
        """Send a picture [H, W, 3] to TensorBoard."""
        if self.events is not None:
            self.events.add_image(name, picture, step, dataformats="HWC")

    def close(self) -> None:
        """Finish the event files."""
        if self.events is not None:
            self.events.close()


def _tensorboard() -> Any:
    try:
        return importlib.import_module("torch.utils.tensorboard").SummaryWriter
    except ImportError as error:
        raise UsageError(
            f"TensorBoard is missing ({error}); run pip install '.[train]' in the source folder"
        ) from error


def plot_losses(rows: Sequence[Mapping[str, float]], *, height_px: int = 360, width_px: int = 640) -> Picture:
    """Plot every loss of a log over its steps, each scaled from its minimum (bottom) to
    its maximum (top). There is no numeric axis: the curves show shapes, the log has the
    values. Small squares in the curves' colours mark their ends, in the order of the
    log's fields from the top left.
    """
    picture = np.full((height_px, width_px, 3), 255, np.uint8)
    left, top, right, bottom = 12, 24, width_px - 12, height_px - 12
    picture[top : bottom + 1, left] = picture[bottom, left : right + 1] = 160
    for quarter in (1, 2, 3):
        picture[top + (bottom - top) * quarter // 4, left + 1 : right] = 232
    names = list(dict.fromkeys(name for row in rows for name in row if name not in NOT_LOSSES))
    last = max((row["step"] for row in rows), default=1)
    for number, name in enumerate(names):
        ink = INKS[number % len(INKS)]
        picture[6:16, left + 16 * number : left + 16 * number + 10] = ink
        points = [(row["step"], row[name]) for row in rows if np.isfinite(row.get(name, np.nan))]
        if not points:
            continue

        steps, values = np.array(points, dtype=np.float64).T
        spread = max(np.ptp(values), 1e-12)
        columns = np.arange(left + 1, right)
        heights = np.interp((columns - left) / (right - left) * last, steps, (values - values.min()) / spread)
        lines = np.round(bottom - 1 - heights * (bottom - top - 2)).astype(int)
        before = np.concatenate([lines[:1], lines[:-1]])
        for column, a, b in zip(columns, lines, before, strict=True):
            picture[min(a, b) : max(a, b) + 2, column] = ink
    return picture
