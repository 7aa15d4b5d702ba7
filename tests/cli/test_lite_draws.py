"""Clips generated from prompts by the actual built-in model, through the command."""

from pathlib import Path

import numpy as np
import pytest

from tests.jobs.clips import decoded
from ultraflash_cli.main import main


def draw(prompt: str, seed: int, output: Path, *, seconds: str = "0.5") -> np.ndarray:
    made = ["generate", prompt, "--model", "lite", "--res", "480p", "--seconds", seconds, "--seed", str(seed)]
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
    assert "words unknown to lite, ignored: zeppelin, xyzzy" in capsys.readouterr().err


def test_a_dry_run_names_the_unknown_words_of_each_prompt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scenes = tmp_path / "scenes.txt"
    scenes.write_text("a zeppelin over the sea\na boat on the sea\n")
    small = ["--model", "lite", "--res", "480p", "--seconds", "0.5", "--device", "cpu", "--threads", "1"]
    assert main(["generate", "--prompts", str(scenes), *small, "-o", str(tmp_path), "--dry-run"]) == 0
    warned = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    assert warned == ["warning: a-zeppelin-over-the-sea_480p_seed0.mp4: words unknown to lite, ignored: zeppelin"]


@pytest.mark.parametrize(("way", "sign"), [("left", -1), ("right", 1)])
def test_a_car_of_the_built_in_model_drives_where_the_prompt_says(tmp_path: Path, way: str, sign: int) -> None:
    clip = draw(f"the red car is driving to the {way} by day near a field", 0, tmp_path / "car.mkv", seconds="5")
    ground = clip[:, 240:].astype(float)
    red = (ground[..., 0] - ground[..., 1:].max(axis=-1)).clip(min=40) - 40
    where = (red.sum(axis=1) * np.arange(red.shape[2])).sum(axis=1) / red.sum(axis=(1, 2))
    moved = np.diff(where[[12, 36, 60, -1]]) * sign
    assert (moved > 64).all(), "0.13 picture heights a second: 94 pixels in 24 frames, 78 in the last 20"
