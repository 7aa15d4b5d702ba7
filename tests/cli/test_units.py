"""`plan`, `worker` and `join` as commands: their output and exit codes; three commands
produce the same result as one."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.jobs import generating
from tests.jobs.clips import make_clip
from tests.jobs.doubler import Doubler, builder
from ultraflash_cli.jobs.running.loader import Models
from ultraflash_cli.main import main

OPTIONS = ("--res", "2x", "--crf", "1", "--threads", "1")


@pytest.fixture(autouse=True)
def tiny_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Models, "upscaler", staticmethod(builder()))
    monkeypatch.setattr(Models, "generator", staticmethod(generating.builder()))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_clip(tmp_path / "in.mkv", frames=40, cut_at=22)


SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "schemas" / "cluster.json").read_text())


def said(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> list[dict[str, Any]]:
    """Run a command that must exit with this code, and return its JSON output."""
    ended = main([str(each) for each in arguments])
    shown = capsys.readouterr()
    assert ended == code, shown.err
    found = [json.loads(line) for line in shown.out.splitlines()]
    if arguments[0] in ("plan", "worker"):
        for each in found:
            jsonschema.validate(each, SCHEMA)
    return found


def test_three_commands_make_the_file_that_one_makes(
    tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work, output = tmp_path / "work", tmp_path / "out.mkv"
    file, total = said(
        capsys, "plan", source, "-o", output, "--work-dir", work, "--unit-frames", 15, *OPTIONS, "--json"
    )
    assert (file["units"], file["cuts"], file["frames"], file["model"]) == (2, 1, 40, "lite")
    assert total == {"work_dir": str(work), "files": 1, "units": 2}
    first = said(capsys, "worker", work, "--index", 0, "--of", 2, "--json")
    assert [(unit["unit"], unit["state"], unit["frames"]) for unit in first] == [(0, "done", 22)]
    rest = said(capsys, "worker", work, "--any", "--json")
    assert [(unit["unit"], unit["state"], unit["frames"]) for unit in rest] == [(1, "done", 18)]
    (report,) = said(capsys, "join", work, "--json")
    assert (report["frames_in"], report["frames_out"], report["output"]) == (40, 40, str(output))
    said(capsys, "upscale", source, "-o", tmp_path / "local.mkv", *OPTIONS)
    assert output.read_bytes() == (tmp_path / "local.mkv").read_bytes()


def test_generated_clips_are_units_likewise(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wish = ("generate", "a cat", "--count", 2, "--model", "tiny-random", "--res", "480p", "--threads", 1)
    planned = said(
        capsys, *wish, "-o", tmp_path / "there", "--executor", "workers", "--work-dir", tmp_path / "work", "--json"
    )
    assert planned[-1]["units"] == 2 and "generated" in planned[0]["note"]
    assert [unit["state"] for unit in said(capsys, "worker", tmp_path / "work", "--json")] == ["done", "done"]
    there = said(capsys, "join", tmp_path / "work", "--json")
    here = said(capsys, *wish, "-o", tmp_path / "here", "--json")
    for a, b in zip(there, here, strict=True):
        assert Path(a["output"]).name == Path(b["output"]).name and a["seed"] == b["seed"]
        assert Path(a["output"]).read_bytes() == Path(b["output"]).read_bytes()
        assert a["counters"] == b["counters"]


class Failing(Doubler):
    """A model that always fails."""

    def init_state(self, *, seed: int, first_frame: int) -> Any:
        raise ValueError("it cannot be")


def test_the_commands_end_with_the_code_of_a_lone_file_and_with_9_for_several(
    tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "work"
    said(capsys, "plan", source, "-o", tmp_path / "out.mkv", "--work-dir", work, *OPTIONS)
    said(capsys, "join", work, code=2)
    monkeypatch.setattr(Models, "upscaler", staticmethod(builder(Failing)))
    units = said(capsys, "worker", work, "--json", code=1)
    assert [unit["state"] for unit in units] == ["retried", "failed"]
    (failed,) = said(capsys, "join", work, "--json", code=1)
    assert failed["exit_code"] == 1 and "failed twice" in failed["error"]

    other = make_clip(tmp_path / "other.mkv", frames=5)
    said(capsys, "plan", other, tmp_path / "none.mkv", "-o", tmp_path / "many", "--work-dir", work, code=3)
    said(capsys, "plan", source, "-o", source, "--work-dir", work, "--json", code=2)
    said(capsys, "plan", other, "-o", source, "--work-dir", work, "-n", "--json")
    said(capsys, "plan", other, source, "-o", tmp_path / "many", "--work-dir", work, *OPTIONS)
    said(capsys, "worker", work, code=9)
    said(capsys, "join", work, code=9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(("plan", "{in}"), "name it with --work-dir", id="a plan without a folder"),
        pytest.param(("plan", "-", "-o", "x.mkv", "--work-dir", "w"), "stream", id="a plan of a pipe"),
        pytest.param(("worker", "{in}.w"), "no plan found", id="a worker without a plan"),
        pytest.param(("join", "{in}.w"), "no plan found", id="a join without a plan"),
        pytest.param(("worker", "{in}.w", "--of", "2", "--device", "gpu"), "cuda:N", id="an odd device"),
        pytest.param(("worker", "w", "--any", "--index", "1"), "exclude each other", id="one and any"),
    ],
)
def test_wrong_usage_is_refused_in_one_line(
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([each.replace("{in}", str(source)) for each in arguments]) == 2
    *_, line = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line
