"""JSON printed by the commands conforms to the schemas published in docs/schemas."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.cli.schemas import FOLDER, schemas, written
from tests.jobs.clips import make_clip
from ultraflash_cli.jobs.resume.journal import Journal
from ultraflash_cli.jobs.resume.work_folder import OutputLock, work_folder
from ultraflash_cli.jobs.running import loader
from ultraflash_cli.main import main

TINY = ("--model", "tiny-random", "--res", "2x", "--threads", "1")


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return make_clip(tmp_path / "in.mp4", frames=5)


def kept(name: str, text: str) -> list[Any]:
    """Parse each line of `text` and check it against a schema."""
    found = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    validator = jsonschema.Draft202012Validator(json.loads((FOLDER / name).read_text()))
    for each in found:
        validator.validate(each)
    assert found, "nothing was printed"
    return found


def test_the_published_schemas_are_those_of_what_is_printed() -> None:
    for name, schema in schemas().items():
        jsonschema.Draft202012Validator.check_schema(schema)
        assert (FOLDER / name).read_text() == written(schema), f"{name}: run python -m tests.cli.schemas"


def test_reports_plans_failures_and_events_of_upscale(clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["upscale", str(clip), *TINY, "--guard", "8", "--json", "--progress", "json"]) == 0
    shown = capsys.readouterr()
    (report,) = kept("upscale.json", shown.out)
    assert report["guarded_share"] > 0
    happened = [event["event"] for event in kept("events.json", shown.err)]
    assert happened[:2] == ["plan", "start"] and happened[-1] == "done" and "chunk" in happened
    assert main(["upscale", str(clip), *TINY, "--dry-run", "-y", "--json"]) == 0
    (plan,) = kept("upscale.json", capsys.readouterr().out)
    assert plan["memory"] and plan["forecast"]["output_bytes"]
    missing = str(clip.with_name("missing.mp4"))
    assert main(["upscale", missing, "--json", "--progress", "json"]) == 3
    shown = capsys.readouterr()
    assert kept("upscale.json", shown.out)[0]["exit_code"] == 3
    assert [event["event"] for event in kept("events.json", shown.err)] == ["error"]


def test_plans_of_generate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = str(tmp_path / "out.mp4")
    assert (
        main(["generate", "a boat", "--model", "tiny-lite", "--threads", "1", "-o", where, "--dry-run", "--json"]) == 0
    )
    (plan,) = kept("generate.json", capsys.readouterr().out)
    assert plan["seconds"] > 0 and plan["forecast"]["seconds"] > 0


def test_descriptions_of_probe_and_lists_of_clean(
    clip: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "foretold_frame_seconds", lambda upscaler: 0.01)
    for arguments, code in (((clip,), 0), ((clip, "--measure"), 0), ((clip.with_name("no.mp4"),), 3)):
        assert main(["probe", *map(str, arguments), "--res", "2x", "--json"]) == code
        kept("probe.json", capsys.readouterr().out)
    folder = work_folder(clip.with_name("out.mp4"))
    OutputLock(folder).close()
    Journal(folder, {})
    assert main(["clean", str(clip.parent), "--json"]) == 0
    kept("clean.json", capsys.readouterr().out)


def test_findings_of_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    main(["doctor", "--json"])
    kept("doctor.json", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        pytest.param(["upscale", "--json"], 2, "Missing argument", id="no input"),
        pytest.param(["upscale", "a.mp4", "--jason", "--json"], 2, "No such option", id="an unknown option"),
        pytest.param(["upscale", "a.mp4", "--res", "9", "--json"], 2, "--res must be", id="a bad value"),
        pytest.param(["generate", "", "--json"], 2, "the prompt is empty", id="an empty prompt"),
        pytest.param(["--json", "upscal"], 2, "No such", id="an unknown command"),
        pytest.param(["compare", "a.mp4", "b.mp4", "--json"], 3, "no such file", id="compare"),
        pytest.param(["explain", "a.mp4", "--json"], 3, "no such file", id="explain"),
        pytest.param(["bench", "--device", "abacus", "--json"], 2, "--device must be", id="bench"),
        pytest.param(["clean", "nowhere", "--json"], 3, "no such folder", id="clean"),
        pytest.param(["join", "nowhere", "--json"], 2, "no plan found", id="join"),
    ],
)
def test_every_command_that_fails_prints_one_failure(
    arguments: list[str],
    code: int,
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == code
    shown = capsys.readouterr()
    (failure,) = kept("error.json", shown.out)
    assert failure["exit_code"] == code and says in failure["error"] and f"error: {failure['error']}\n" in shown.err


def test_failures_of_files_are_printed_once_and_streams_stay_clean(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = [tmp_path / name for name in ("a.mp4", "b.mp4")]
    for path in broken:
        path.write_text("no film")
    assert main(["upscale", *map(str, broken), "--keep-going", "--json"]) == 9
    assert [each["input"] for each in kept("upscale.json", capsys.readouterr().out)] == list(map(str, broken))
    assert main(["probe", str(broken[0]), "--json"]) == 3
    assert len(kept("probe.json", capsys.readouterr().out)) == 1
    for option in (["-o", "-"], ["-o-"], ["--output=-"]):
        assert main(["upscale", str(broken[0]), *option, "--jason", "--json"]) == 2
        shown = capsys.readouterr()
        assert shown.out == "" and kept("error.json", shown.err)
