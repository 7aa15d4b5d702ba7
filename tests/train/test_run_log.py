"""The log of a run: rows, the plot, TensorBoard."""

import builtins
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from ultraflash_cli.errors import UsageError
from ultraflash_cli.train.run_log import INKS, RunLog, plot_losses


def test_rows_of_steps_that_come_again_are_dropped(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    log.open(0)
    for step in (2, 4, 6):
        log.write({"loss": 1 / step, "step": step})
    log.open(4)
    assert [row["step"] for row in log.rows()] == [2, 4]


def test_a_process_that_does_not_lead_writes_nothing(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    log.open(0, writes=False)
    log.write({"loss": 1.0, "step": 1})
    assert list(tmp_path.iterdir()) == []


def test_the_plot_shows_every_loss_from_its_largest_to_its_least_value() -> None:
    rows = [
        {"a": 10.0 - step, "b": float("nan") if step == 5 else step, "norm": 1.0, "step": step} for step in range(1, 10)
    ]
    picture = plot_losses(rows, height_px=100, width_px=200)
    assert picture.shape == (100, 200, 3) and picture.dtype == np.uint8
    places = [np.argwhere((picture[24:] == ink).all(axis=-1)) for ink in INKS]
    falling, rising, *nothing = places
    assert falling[falling[:, 1].argmin()][0] < falling[falling[:, 1].argmax()][0]
    assert rising[rising[:, 1].argmin()][0] > rising[rising[:, 1].argmax()][0]
    assert not any(len(place) for place in nothing)


def test_an_empty_log_gives_an_empty_plot() -> None:
    assert plot_losses([]).shape == (360, 640, 3)


def test_tensorboard_gets_every_number_or_its_absence_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Any] = []

    class Writer:
        def __init__(self, folder: str, purge_step: int) -> None:
            told.append((Path(folder).name, purge_step))

        def add_scalar(self, name: str, value: float, step: int) -> None:
            told.append((name, value, step))

        def add_image(self, name: str, picture: Any, step: int, dataformats: str) -> None:
            told.append((name, picture.shape, step, dataformats))

        def close(self) -> None:
            told.append("closed")

    fake = ModuleType("torch.utils.tensorboard")
    fake.SummaryWriter = Writer  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", fake)
    log = RunLog(tmp_path, tensorboard=True)
    log.open(5)
    log.write({"loss": 0.5, "step": 6})
    log.note({"validation/psnr": 30.0}, 6)
    log.show("samples", np.zeros((4, 8, 3), np.uint8), 6)
    log.close()
    shown = [("validation/psnr", 30.0, 6), ("samples", (4, 8, 3), 6, "HWC")]
    assert told == [("tensorboard", 6), ("loss", 0.5, 6), *shown, "closed"]

    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard")
    whole = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith("tensorboard"):
            raise ImportError("No module named 'tensorboard'")
        return whole(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UsageError, match=r"\.\[train\]"):
        RunLog(tmp_path, tensorboard=True)
