"""Clips doubled by the command, compared using another FFmpeg."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.cli.independent import Seen
from tests.jobs.doubler import Doubler, Trail, builder
from ultraflash_cli.jobs.running.loader import Models
from ultraflash_cli.main import main

__all__ = ["EXACT", "Repeater", "cases", "doubled", "same_pictures"]

EXACT = ("--res", "2x", "--codec", "ffv1", "--threads", "1", "-y", "-q", "--json")


class Repeater(Doubler):
    """Enlarges frames by repeating pixels."""

    def step(self, state: Trail, frames: list[np.ndarray]) -> tuple[Trail, list[np.ndarray]]:
        return Trail(state.seen + len(frames), state.seed), [
            frame.repeat(2, axis=0).repeat(2, axis=1) for frame in frames
        ]


@pytest.fixture
def cases(repository: Path) -> Path:
    """The folder of files that caused problems in other tools; tests that use it are
    skipped if it is absent."""
    folder = repository.parent / "shared" / "cases"
    if not folder.is_dir():
        pytest.skip("the shared cases are not on this machine")
    return folder


@pytest.fixture
def doubled(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., list[str]]:
    """Run ``upscale`` with every pixel doubled and a lossless codec; return its
    warnings."""
    monkeypatch.setattr(Models, "upscaler", staticmethod(builder(Repeater)))

    def run(source: Path, output: Path, *options: object) -> list[str]:
        assert main(["upscale", str(source), "-o", str(output), *EXACT, *map(str, options)]) == 0
        warnings = json.loads(capsys.readouterr().out.splitlines()[-1])["warnings"]
        return [warning for warning in warnings if "rounds timestamps" not in warning]

    return run


def same_pictures(before: Seen, after: Seen, levels: float = 4.0) -> None:
    assert before.pictures.shape == after.pictures.shape
    errors = np.abs(before.pictures - after.pictures).mean(axis=(1, 2, 3))
    assert errors.max() < levels, errors
