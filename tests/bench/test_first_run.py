"""The first run on a GPU, tested without one: order, limits, resuming, and every
section that a CPU can run."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import first_run, hopper, sections
from benchmarks.gpu.here import Here
from benchmarks.part import PARTS
from tests.kernels.gluon_emulator import emulated
from ultraflash_kernels import dispatch
from ultraflash_kernels.block_lists import BlockRule
from ultraflash_kernels.block_sparse_attention import hopper as choice


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stand-ins for the processes: `graphs` fails the first time, all others report
    their limit."""
    names: list[str] = []

    def section(name: str, limit_s: float, *, dry: bool) -> dict[str, Any]:
        names.append(name)
        if name == "graphs" and names.count("graphs") == 1:
            return {"seconds": 1.0, "failed": "an illegal memory access"}
        return {"seconds": 1.0, "result": {"limit": limit_s, "dry": dry}}

    monkeypatch.setattr(first_run, "run_section", section)
    return names


def test_what_failed_is_tried_again_and_what_has_its_result_is_not(
    ran: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "first.json"
    assert first_run.main(["--out", str(out), "--only", "graphs,facts"]) == 1
    assert ran == ["facts", "graphs"], "the most telling first, in whatever order they are asked for"
    assert "graphs: 1 s, failed: an illegal memory access" in capsys.readouterr().out
    assert first_run.main(["--out", str(out), "--only", "facts,graphs,race"]) == 0
    assert ran == ["facts", "graphs", "graphs", "race"]
    content = json.loads(out.read_text())
    assert content["kind"] == "gpu" and content["facts"]["result"] == {"limit": 40, "dry": False}
    with pytest.raises(SystemExit):
        first_run.main(["--out", str(out), "--dry-run"])  # results at tiny sizes would be mixed with real ones


def test_nothing_is_begun_without_time_and_nobody_waits_for_a_section(
    ran: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert first_run.main(["--out", str(tmp_path / "first.json"), "--within", "19"]) == 0
    assert not ran and "no time left; the same command goes on" in capsys.readouterr().out
    first_run.main(["--out", str(tmp_path / "first.json"), "--within", "30", "--only", "correct"])
    assert json.loads((tmp_path / "first.json").read_text())["correct"]["result"]["limit"] <= 30


def test_every_part_that_is_named_exists() -> None:
    timed = {name.removeprefix("fps_").removesuffix("_hopper") for name in first_run.SECTIONS if "fps_" in name}
    assert timed <= PARTS.keys()
    with pytest.raises(SystemExit):
        first_run.main(["--only", "speed"])


def test_a_section_runs_in_a_separate_process(tmp_path: Path) -> None:
    out = tmp_path / "first.json"
    assert first_run.main(["--dry-run", "--out", str(out), "--only", "attention"]) == 0
    assert json.loads(out.read_text())["attention"]["result"] == {"skipped": "cuts are for a GPU"}


@pytest.mark.parametrize(
    "name", [name for name in first_run.SECTIONS if name not in ("attention",) and not name.startswith("fps_")]
)
def test_a_dry_run_proves_every_section_on_a_cpu(name: str) -> None:
    found = sections.run(name, dry=True)
    assert found and not any("failed" in str(each) for each in found.values()), found


def test_the_kernel_for_hopper_is_compared_repeated_and_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    emulated(monkeypatch)
    monkeypatch.setattr(dispatch, "triton_refusal", lambda *_, **__: None)
    monkeypatch.setattr(choice, "device_refusal", lambda device: None)
    monkeypatch.setattr(choice, "fault", lambda *_: None)
    rule = BlockRule(rows=1, cols=2, temporal=1, remembered=1, window=9, budget=3)
    small: dict[str, Any] = {"HEADS": 2, "CHUNK": 150, "KEYS": (130,), "CAPACITY": 144, "REPEATS": 2}
    small["RULES"] = {"1K": rule}
    small["GRIDS"] = {"padding": {}, "no padding": {"size": (2, 7, 9), "block": (2, 8, 8)}}
    for name, value in small.items():
        monkeypatch.setattr(hopper, name, value)
    monkeypatch.setattr(hopper, "_replayed", lambda call: call)

    found = hopper.measured(Here(dry=True))
    for bits, most in (("", 0.01), ("fp8, ", 0.04)):
        names = [f"{bits}{name}, off" for name in ("block lists, padding, hopper", "block lists, no padding, hopper")]
        assert all(found[name] < most for name in (*names, f"{bits}130 keys, off"))
        assert found[f"{bits}differing of 2 calls"] == found[f"{bits}differing of 2 replays"] == 0
        assert found[f"{bits}130 keys, hopper, ms"] > 0
    assert found["130 keys, reference, ms"] > 0
