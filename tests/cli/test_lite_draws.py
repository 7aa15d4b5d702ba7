"""Clips from words by the built-in model itself, through the command."""

from pathlib import Path

import numpy as np
import pytest

from tests.jobs.clips import decoded
from ultraflash_cli.main import main


def draw(prompt: str, seed: int, output: Path) -> np.ndarray:
    made = ["generate", prompt, "--model", "lite", "--res", "480p", "--seconds", "0.5", "--seed", str(seed)]
    assert main([*made, "--device", "cpu", "--threads", "1", "--crf", "1", "-o", str(output)]) == 0
    return np.stack(decoded(output))


def test_the_built_in_model_draws_the_time_of_day_the_seed_another_picture_and_unknown_words_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    day, again, other = (
        draw("a red car past hills by day", seed, tmp_path / f"{i}.mkv").astype(float)
        for i, seed in enumerate((0, 0, 4))
    )
    assert day.shape[1:] == (480, 832, 3) and np.array_equal(day, again)
    assert np.abs(day - other).mean() > 2
    assert "does not know" not in capsys.readouterr().err
    night = draw("a red zeppelin car past hills at night, xyzzy", 0, tmp_path / "night.mkv").astype(float)
    assert night.mean() < 0.5 * day.mean()
    assert "lite does not know: zeppelin, xyzzy" in capsys.readouterr().err
