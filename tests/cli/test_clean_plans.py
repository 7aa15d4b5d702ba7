"""`clean` lists and removes the folders of plans, but never while a worker is using
them."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.jobs.clips import make_clip
from tests.jobs.doubler import builder
from ultraflash_cli.jobs.cluster.lease import claim, this_process
from ultraflash_cli.jobs.cluster.presence import present_in
from ultraflash_cli.jobs.cluster.units import read_plan
from ultraflash_cli.jobs.running.loader import Models
from ultraflash_cli.main import main

Clean = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a plan of two units, one of them computed."""
    monkeypatch.setattr(Models, "upscaler", staticmethod(builder()))
    source, folder = make_clip(tmp_path / "in.mkv", frames=40, cut_at=22), tmp_path / "work"
    plan = ["plan", str(source), "-o", str(tmp_path / "out.mkv"), "--work-dir", str(folder), "--unit-frames", "15"]
    assert main([*plan, "--res", "2x", "--threads", "1"]) == 0
    assert main(["worker", str(folder), "--index", "0"]) == 0
    return folder


@pytest.fixture
def clean(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Clean:
    """Runs `clean` over the folder of the test, and returns what it prints as JSON."""
    capsys.readouterr()

    def run(*options: str) -> list[dict[str, Any]]:
        assert main(["clean", str(tmp_path), "--json", *options]) == 0
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    return run


def lease_of(work: Path, **changes: Any) -> Path:
    """Lease the remaining unit to a worker."""
    path = next(unit for unit in read_plan(work).units if not unit.is_done).folder / "lease"
    assert claim(path, replace(this_process(), **changes)) is not None
    return path


def test_the_folder_of_a_plan_is_listed_and_removed(work: Path, clean: Clean, tmp_path: Path) -> None:
    (found,) = clean()
    assert found["folder"] == str(work) and found["frames"] == 22 and found["size_bytes"] > 1000
    assert not found["in_use"] and not found["removed"] and work.exists()
    (found,) = clean("-y")
    assert found["removed"] and not work.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.mkv"]


def test_a_folder_with_a_made_name_and_one_inside_other_folders_are_found(
    work: Path, clean: Clean, tmp_path: Path
) -> None:
    work.rename(tmp_path / ".out.mkv.units")
    begun = tmp_path / "deep" / "er" / ".b.mkv.units"
    begun.mkdir(parents=True)
    (begun / "lock").touch()
    assert [Path(found["folder"]).name for found in clean()] == [".out.mkv.units"]
    assert {Path(found["folder"]).name for found in clean("-y", "--recursive")} == {".out.mkv.units", ".b.mkv.units"}
    assert not begun.exists() and begun.parent.exists()


@pytest.mark.parametrize(
    ("holder", "age_s", "removed"),
    [
        pytest.param({}, 0, False, id="of a worker here"),
        pytest.param({}, 3600, False, id="of a suspended worker here"),
        pytest.param({"started": "long ago"}, 0, True, id="of a dead worker here"),
        pytest.param({"machine": "another", "host": "other"}, 0, False, id="of a worker elsewhere"),
        pytest.param({"machine": "another", "host": "other"}, 3600, True, id="of a silent worker elsewhere"),
    ],
)
def test_a_plan_with_a_living_lease_stays(
    work: Path, clean: Clean, holder: dict[str, str], age_s: int, removed: bool
) -> None:
    lease = lease_of(work, **holder)
    then = lease.stat().st_mtime - age_s
    os.utime(lease, (then, then))
    (found,) = clean("-y")
    assert (found["removed"], found["in_use"], work.exists()) == (removed, not removed, not removed)


def test_a_plan_that_a_worker_without_a_unit_waits_in_stays(work: Path, clean: Clean) -> None:
    with present_in(work), present_in(work):
        (found,) = clean("-y")
        assert found["in_use"] and not found["removed"]
    (found,) = clean("-y")
    assert found["removed"]


def test_what_the_program_has_not_made_stays_and_links_are_not_followed(
    work: Path, clean: Clean, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    for name in ("lock", "plan.jsonl"):
        (kept / name).write_text("mine", encoding="utf-8")
    (tmp_path / ".x.units").symlink_to(kept)
    unit = next(work.glob("files/*/units/*/done"))
    (unit / "linked").symlink_to(kept)
    (work / "notes.txt").write_text("mine", encoding="utf-8")
    (found,) = clean("-y")
    assert not found["removed"] and not found["in_use"]
    left = sorted(path.relative_to(work).as_posix() for path in work.rglob("*") if path.is_symlink() or path.is_file())
    assert left == [(unit / "linked").relative_to(work).as_posix(), "notes.txt"]
    assert (kept / "lock").read_text() == "mine" and (kept / "plan.jsonl").exists()


def test_commands_are_present_while_they_work(work: Path, clean: Clean, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []

    def build(prepared: Any) -> Any:
        seen.extend(each["in_use"] for each in clean())
        return builder()(prepared)

    monkeypatch.setattr(Models, "upscaler", staticmethod(build))
    assert main(["worker", str(work)]) == 0
    assert seen == [True]
    assert main(["join", str(work)]) == 0
    (found,) = clean("-y")
    assert found["removed"], "a plan that is joined is left over, too"
