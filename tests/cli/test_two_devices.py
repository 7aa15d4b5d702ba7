"""`generate --device cuda:0,cuda:1`: what is planned, what is refused, and what several
clips do with two devices."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch

from ultraflash_cli.commands import generate as command
from ultraflash_cli.jobs.running import loader
from ultraflash_cli.main import main

GENERATE = ("generate", "a corgi", "--model", "tiny-random", "--threads", "1")


@pytest.fixture
def at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ULTRAFLASH_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def one_cpu_as_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ``cuda:0,cuda:1`` mean the CPU, twice, and do not time it."""
    monkeypatch.setattr("ultraflash_cli.jobs.running.forecast.Forecaster.forecast", lambda *_: None)
    cpu = torch.device("cpu")
    monkeypatch.setattr(loader, "choose_devices", lambda name: (cpu,) * len(name.split(",")))


@pytest.mark.usefixtures("one_cpu_as_two")
def test_a_dry_run_shows_the_memory_of_both_devices(
    at_home: Path, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = (*GENERATE, "--device", "cuda:0,cuda:1", "--dry-run")
    assert main([*asked, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    jsonschema.validate(plan, json.loads((repository / "docs" / "schemas" / "generate.json").read_text()))
    memory = plan["memory"]
    assert {part["name"] for part in memory["parts"]}.isdisjoint({"decoder weights", "SR transformer weights"})
    assert {part["name"] for part in memory["second"]["parts"]} >= {"decoder weights", "SR transformer weights"}
    assert main([*asked]) == 0
    assert capsys.readouterr().err.count("memory of cpu: ") == 2


@pytest.mark.usefixtures("one_cpu_as_two", "at_home")
def test_one_clip_is_made_by_one_process_on_both_and_several_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    crews: list[Any] = []
    monkeypatch.setattr(command, "run_by_crew", lambda _console, crew, *_, **__: crews.append(crew.devices))
    asked = (*GENERATE, "--res", "480p", "--seconds", "1", "--device", "cuda:0,cuda:1")
    assert main([*asked, "-o", "one.mp4", "--json"]) == 0
    assert not crews and Path("one.mp4").exists()
    assert main([*asked, "--count", "2", "-o", "."]) == 0
    assert crews == [("cuda:0", "cuda:1")]
    assert main([*asked, "--count", "2", "--workers", "1", "-o", "."]) == 0
    assert len(crews) == 1 and len(list(Path().glob("a-corgi_*.mp4"))) == 2, "one worker uses both for each clip"


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        pytest.param(("--device", "cpu,cpu"), 2, "this is one device, named twice", id="one device twice"),
        pytest.param(("--device", "cuda,cuda:0"), 2, "this is one device, named twice", id="two names of a device"),
        pytest.param(("--device", "cpu,cuda:0"), 2, "name only one kind", id="two kinds"),
        pytest.param(("--device", "cuda:0,tpu"), 2, "--device must be", id="unknown"),
        pytest.param(("--device", "cuda:0,cuda:64"), 4, "usable CUDA devices", id="not there"),
        pytest.param(("--device", "cuda:0", "--max-memory", "6G,6G"), 2, "--max-memory takes one size", id="limits"),
    ],
)
def test_pairs_that_cannot_be_are_refused_in_one_line(
    at_home: Path, options: tuple[str, ...], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*GENERATE, *options]) == code
    *_, line = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line
    assert not list(at_home.glob("*.mp4"))


@pytest.mark.parametrize("what", ["upscale", "kernels"])
def test_only_generating_is_measured_on_two_devices(
    what: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _device: None)
    assert main(["bench", what, "--device", "cuda:0,cuda:1"]) == 2
    assert "only `bench generate` uses two devices" in capsys.readouterr().err
