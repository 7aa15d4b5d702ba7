"""Several workers on one machine under one command, and the modules that this must not
load."""

import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

from tests.jobs.clips import make_clip
from tests.jobs.cluster.hunting import killing_a_worker
from ultraflash_cli.main import main

OPTIONS = ("--res", "2x", "--model", "tiny-lite", "--threads", "1")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_clip(tmp_path / "in.mkv", frames=50, cut_at=26)


def test_two_devices_share_the_scenes_of_a_clip_and_a_killed_one_is_replaced(
    tmp_path: Path, source: Path, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work = tmp_path / ".out.mkv.units"
    arguments = ["upscale", str(source), "-o", str(tmp_path / "out.mkv"), *OPTIONS, "--unit-frames", "12", "--json"]
    with killing_a_worker(work) as killed:
        code = main([*arguments, "--device", "cpu,cpu"])
    shown = capsys.readouterr()
    assert code == 0, shown.err
    assert killed
    report, machines = map(json.loads, shown.out.splitlines())
    jsonschema.validate(machines, json.loads((repository / "docs" / "schemas" / "cluster.json").read_text()))
    assert report["frames_out"] == 50
    assert (machines["executor"], machines["workers"], machines["units"]) == ("local", 2, 2)
    assert sum(node["frames"] for node in machines["nodes"]) == machines["frames"]
    assert not work.exists(), "a folder that nobody has named goes"
    assert main(["upscale", str(source), "-o", str(tmp_path / "alone.mkv"), *OPTIONS, "--device", "cpu"]) == 0
    assert (tmp_path / "out.mkv").read_bytes() == (tmp_path / "alone.mkv").read_bytes()


def test_ray_is_imported_for_the_executor_ray_only(tmp_path: Path, source: Path) -> None:
    program = (
        "import sys; from ultraflash_cli.main import main\n"
        f"codes = [main(['plan', {str(source)!r}, '-o', 'out.mkv', '--work-dir', 'w', *{OPTIONS!r}]),\n"
        "         main(['worker', 'w']), main(['join', 'w'])]\n"
        "sys.exit(f'{codes}, {\"ray\" in sys.modules}' if any(codes) or 'ray' in sys.modules else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param(("--workers", "0"), "at least 1", id="nobody"),
        pytest.param(("--device", "cpu,cuda:0"), "one kind", id="two kinds of device"),
        pytest.param(("--executor", "ray"), "--work-dir", id="Ray without a shared folder"),
        pytest.param(("--executor", "ray", "--work-dir", "w", "--device", "cpu,cpu"), "itself", id="devices of Ray"),
        pytest.param(("--address", "auto"), "--executor ray", id="an address without Ray"),
        pytest.param(
            ("--executor", "workers", "--work-dir", "w", "--workers", "2"),
            "does not start workers",
            id="others start them",
        ),
        pytest.param(("--workers", "2", "--html"), "--html", id="a page"),
    ],
)
def test_crews_that_cannot_be_are_refused(
    source: Path, options: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["upscale", str(source), *options]) == 2
    *_, line = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line


def test_without_ray_the_executor_says_how_to_get_it(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    work = ("--executor", "ray", "--work-dir", str(tmp_path / "work"))
    assert main(["upscale", str(source), "-o", str(tmp_path / "out.mkv"), *OPTIONS, *work]) == 2
    assert "pip install '.[cluster]'" in capsys.readouterr().err
