"""Training on a GPU that is at hand for a few minutes, tested on a CPU."""

import json
import time
from pathlib import Path

import pytest

from benchmarks.gpu import train
from ultraflash_cli.weights.load import read_tensors


def test_a_call_that_runs_out_of_time_is_continued_by_the_next(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work, out = tmp_path / "work", tmp_path / "out"
    sizes = ("--scenes", "10", "--latents", "1", "--steps", "2", "--batch", "1", "--save-every", "1")
    command = ["--work", str(work), "--out", str(out), "--within", "0", "--device", "cpu", *sizes]
    assert train.main(command) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith("10 scenes after") and told[-1] == "no time left; the same command goes on"
    assert json.loads((out / "run.json").read_text())["steps"] == 1

    scenes = work / "scenes" / "scenes_000000.safetensors"
    made = scenes.stat().st_mtime_ns
    assert train.main(command) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "done" and scenes.stat().st_mtime_ns == made
    assert json.loads((out / "run.json").read_text())["steps"] == 2
    assert sorted(path.name for path in out.iterdir()) == sorted(train.RESULTS)
    shipped, trained = (read_tensors(path) for path in (train.START[1], out / "average.safetensors"))
    assert shipped.keys() <= trained.keys()
    assert any((shipped[name].float() - trained[name].float()).abs().max() > 0 for name in shipped)


def test_no_more_scenes_are_encoded_when_the_time_is_over(tmp_path: Path) -> None:
    count = train.encoded(tmp_path, scenes=30, latents=1, processes=1, ends_s=time.monotonic())
    assert count == train.SHARD
