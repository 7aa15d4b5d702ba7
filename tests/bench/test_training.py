"""The training benchmark runs the commands of the page and reports the results."""

import json
from pathlib import Path

import pytest

from benchmarks import training
from ultraflash_cli.train.recipes import RECIPES

PAGE = """
    ultraflash train prepare --out left/out

```
ultraflash train prepare --out material --scenes 1
ultraflash train run decoder --toy --steps 40 --data material --out runs/decoder
ultraflash train run pixels --data material --out runs/pixels --steps 2000
ultraflash train prepare --out other \\
    --photos here
```
"""


def test_every_recipe_has_a_documented_command_at_toy_size(repository: Path) -> None:
    commands = training.commands_of((repository / "docs" / "training.md").read_text())
    assert commands[0].recipe == "prepare"
    recipes = [each.recipe for each in commands if each.words[0] == "run"]
    assert sorted(recipes) == sorted(RECIPES)
    made = {commands[0].value("--out")}
    for each in commands[1:]:
        starts = [each.words[at + 1] for at, word in enumerate(each.words) if word == "--start-from"]
        assert {str(Path(start).parent) for start in starts} <= made, "a run starts from one above it"
        made.add(each.value("--out"))


def test_commands_run_in_the_work_folder_with_a_share_of_their_steps(tmp_path: Path) -> None:
    _, command = training.commands_of(PAGE)
    within = command.within(tmp_path, 0.1)
    assert within.value("--steps") == "4"
    assert within.value("--data") == str(tmp_path / "material")
    assert within.value("--out") == str(tmp_path / "runs" / "decoder")
    assert command.within(tmp_path, 0.01).value("--steps") == "2"


def test_a_run_leaves_its_steps_and_losses(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    options = "--workers 0 --threads 1 --device cpu --batch 1"
    results = tmp_path / "results"
    training.main(
        ["--work", str(tmp_path), "--share", "0.05", "--options", options, "--page", str(page), "--out", str(results)]
    )
    (path,) = results.iterdir()
    assert path.name == "toy_decoder.json"
    found = json.loads(path.read_text())
    assert found["command"] == "ultraflash train run decoder --toy --steps 40 --data material --out runs/decoder"
    assert (found["steps"], found["documented_steps"]) == (2, 40)
    assert found["seconds"] > 0 and found["last"]["luma"] > 0
    assert [row["step"] for row in found["curve"]] == [1, 2]
    assert found["curve"][0] == {"step": 1, **found["first"]}


def test_a_long_curve_is_thinned() -> None:
    rows = [{"step": 10 * (i + 1), "luma": 1 / (i + 1), "norm": 1.0} for i in range(101)]
    found = training.summary(training.Command(("decoder",)), rows, seconds=1)
    assert len(found["curve"]) <= 22
    assert (found["first"], found["last"]) == ({"luma": 1.0}, {"luma": pytest.approx(1 / 101)})
    assert found["curve"][-1]["step"] == 1010
