"""A real Ray cluster on this machine: workers and drivers that are killed, units that
fail, and the frames of a local run."""

import json
import signal
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from tests.jobs.clips import make_clip
from tests.jobs.cluster.hunting import killing_a_worker
from ultraflash_cli.errors import DeviceError
from ultraflash_cli.jobs.cluster.join import join_units
from ultraflash_cli.jobs.cluster.on_ray import compute_on_ray, stage_weights
from ultraflash_cli.jobs.cluster.overview import Overview
from ultraflash_cli.jobs.cluster.planner import plan_units
from ultraflash_cli.jobs.cluster.units import Plan, read_plan
from ultraflash_cli.jobs.events import Event, Started
from ultraflash_cli.jobs.planning.upscale import UpscaleJob
from ultraflash_cli.jobs.running.stop import Stop
from ultraflash_cli.jobs.running.upscale import run
from ultraflash_cli.main import main
from ultraflash_cli.settings import quieten_libraries

OPTIONS: dict[str, Any] = {"res": "2x", "model": "tiny-lite", "threads": 1, "device": "cpu"}


@pytest.fixture(scope="module")
def address() -> Generator[str]:
    """A Ray cluster with room for two workers."""
    ray = pytest.importorskip("ray", reason="Ray is an extra")
    quieten_libraries()
    for last in (False, False, True):
        try:
            ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
            break
        except Exception:  # on a busy machine it gives up after 30 seconds
            ray.shutdown()
            if last:
                raise
    try:
        yield ray.get_runtime_context().gcs_address
    finally:
        ray.shutdown()


def ignore(event: Event) -> None:
    return None


def planned(folder: Path, *jobs: UpscaleJob) -> Plan:
    assert not [each.failure for each in plan_units(jobs, folder, ignore, stop=Stop(), least_frames=12) if each.failure]
    return read_plan(folder)


def computed(plan: Plan, events: list[Event] | None = None) -> Overview:
    listen = ignore if events is None else events.append
    overview = Overview(plan, plan.files.values(), listen, name="all")
    workers = compute_on_ray(
        overview, address=None, workers=2, device="cpu", store=plan.folder / "weights", stop=Stop()
    )
    assert workers == 2
    return overview


def local(source: Path, output: Path) -> bytes:
    run(UpscaleJob(source=source, output=output, **OPTIONS), ignore)
    return output.read_bytes()


def test_a_killed_worker_and_a_unit_that_always_fails_leave_the_others_as_on_one_machine(
    tmp_path: Path, address: str
) -> None:
    good = make_clip(tmp_path / "good.mkv", frames=50, cut_at=26)
    bad = make_clip(tmp_path / "bad.mkv", frames=8, audio=False)
    jobs = [UpscaleJob(source=each, output=tmp_path / f"{each.stem}_2x.mkv", **OPTIONS) for each in (good, bad)]
    plan = planned(tmp_path / "work", *jobs)
    assert [file.units for file in plan.files.values()] == [2, 1]
    make_clip(bad, frames=9, audio=False)
    with killing_a_worker(plan.folder) as killed:
        overview = computed(plan)
    assert killed
    report: Any = overview.as_json(executor="ray", workers=2)
    nodes = report["nodes"]
    assert sum(node["units"] for node in nodes) == 2 and sum(node["frames"] for node in nodes) == report["frames"] > 0
    fine, failed = join_units(plan, ignore, stop=Stop())
    assert fine.report is not None, fine.failure
    assert (tmp_path / "good_2x.mkv").read_bytes() == local(good, tmp_path / "local.mkv")
    assert failed.failure is not None and failed.failure.exit_code == 3
    assert "failed twice" in str(failed.failure) and "has changed since the plan" in str(failed.failure)


def test_a_driver_that_was_killed_is_resumed_by_the_same_command(tmp_path: Path, address: str) -> None:
    source, folder = make_clip(tmp_path / "in.mkv", frames=60, cut_at=30), tmp_path / "work"
    command = [sys.executable, "-m", "ultraflash_cli", "upscale", str(source), "-o", str(tmp_path / "out.mkv")]
    command += [word for name, value in OPTIONS.items() for word in (f"--{name}", str(value))]
    command += ["--executor", "ray", "--address", address, "--workers", "1", "--work-dir", str(folder)]
    driver = subprocess.Popen(
        [*command, "--unit-frames", "12", "--progress", "json"], stderr=subprocess.PIPE, text=True
    )
    assert driver.stderr is not None
    heard: list[str] = []
    for line in driver.stderr:
        heard.append(line)
        if json.loads(line)["event"] == "chunk":
            break
    driver.send_signal(signal.SIGKILL)
    driver.communicate()
    assert driver.returncode == -signal.SIGKILL, heard
    assert not (tmp_path / "out.mkv").exists()

    events: list[Event] = []
    plan = read_plan(folder)
    computed(plan, events)
    (started,) = [event for event in events if isinstance(event, Started)]
    assert started.frames_total == 60
    (outcome,) = join_units(plan, ignore, stop=Stop())
    assert outcome.report is not None, outcome.failure
    assert (tmp_path / "out.mkv").read_bytes() == local(source, tmp_path / "local.mkv")


def test_prompts_are_generated_on_ray_as_on_one_machine(
    tmp_path: Path, address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red ball\n", encoding="utf-8")
    wish = ["generate", "--prompts", str(prompts), "--count", "2", "--res", "480p", "--seconds", "0.2", "--json"]
    wish += [word for name, value in OPTIONS.items() if name != "res" for word in (f"--{name}", str(value))]
    cluster = ["--executor", "ray", "--address", address, "--workers", "1", "--work-dir", str(tmp_path / "work")]
    assert main([*wish, "-o", str(tmp_path / "there"), *cluster]) == 0
    *there, machines = map(json.loads, capsys.readouterr().out.splitlines())
    assert (machines["executor"], machines["workers"], machines["units"]) == ("ray", 1, 2)
    assert main([*wish, "-o", str(tmp_path / "here")]) == 0
    here = list(map(json.loads, capsys.readouterr().out.splitlines()))
    assert len(here) == 2
    for a, b in zip(there, here, strict=True):
        assert a["seed"] == b["seed"] and Path(a["output"]).name == Path(b["output"]).name
        assert Path(a["output"]).read_bytes() == Path(b["output"]).read_bytes()


def test_a_cluster_that_is_not_there_is_a_device_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ray = pytest.importorskip("ray", reason="Ray is an extra")

    def refuse(**options: object) -> None:
        raise ConnectionError("nobody answers")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    overview = Overview(Plan(tmp_path, {}), [], ignore, name="all")
    with pytest.raises(DeviceError, match=r"10\.0\.0\.1:6379 cannot be reached \(nobody answers\)"):
        compute_on_ray(overview, address="10.0.0.1:6379", workers=1, device="cpu", store=tmp_path, stop=Stop())


def test_weights_are_copied_to_a_machine_once_and_whole(tmp_path: Path) -> None:
    shared, home = tmp_path / "shared", tmp_path / "home"
    (shared / "weights" / "wan").mkdir(parents=True)
    (shared / "weights" / "wan" / "a.safetensors").write_bytes(b"a" * 100)
    (shared / "weights" / "wan" / "a.json").write_bytes(b"{}")
    assert stage_weights(shared, home) == 2
    assert stage_weights(shared, home) == 0
    assert (home / "weights" / "wan" / "a.safetensors").read_bytes() == b"a" * 100
    (home / "weights" / "wan" / "a.safetensors").write_bytes(b"a" * 50)
    assert stage_weights(shared, home) == 1, "half a copy is replaced"
    assert stage_weights(tmp_path / "not seen from here", home) == 0
    assert not list(home.rglob("*.part"))
