"""The scripts of docs/cluster.md, run with stand-ins for their schedulers: the commands
produce the outputs."""

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.jobs.clips import make_clip
from tests.jobs.doubler import builder
from ultraflash_cli.jobs.running.loader import Models
from ultraflash_cli.main import main

STAND_INS = {
    # Records the commands instead of running them.
    "ultraflash": """printf '%q ' "$@" >> "$NOTES"; echo >> "$NOTES" """,
    # Runs all tasks of an array at once, with the environment variables that Slurm
    # sets.
    "sbatch": r"""
        while [ $# -gt 0 ]; do
            case "$1" in
                --parsable) echo 7 ;;
                --dependency=*) [ "$1" = --dependency=afterany:7 ] || exit 1 ;;
                --wrap) bash -ec "$2"; exit ;;
                *) script=$1 ;;
            esac
            shift
        done
        last=$(sed -n 's/^#SBATCH --array=0-\([0-9]*\)$/\1/p' "$script")
        for index in $(seq 0 "$last"); do
            SLURM_ARRAY_TASK_ID=$index SLURM_ARRAY_TASK_COUNT=$((last + 1)) bash -e "$script"
        done""",
    "parallel": """
        [ "$1 $2" = "--jobs 4" ] || exit 1
        shift 2
        words=()
        while [ "$1" != ::: ]; do words+=("$1"); shift; done
        shift
        for each in "$@"; do "${words[@]/#\\{\\}/$each}"; done""",
}


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two films, a model without a network, and stand-ins for the
    programs."""
    monkeypatch.setattr(Models, "upscaler", staticmethod(builder()))
    for name in ("films/a.mkv", "films/b.mkv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        make_clip(tmp_path / name, frames=5, audio=False)
    (tmp_path / "bin").mkdir()
    for name, text in STAND_INS.items():
        if name != "parallel" or not shutil.which(name):
            (tmp_path / "bin" / name).write_text(f"#!/bin/bash\nset -e\n{text}\n")
            (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("NOTES", str(tmp_path / "notes"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def blocks(repository: Path, heading: str) -> list[str]:
    """Return the code blocks under a heading."""
    page = (repository / "docs" / "cluster.md").read_text(encoding="utf-8")
    section = page.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    return re.findall(r"```\w+\n(.*?)```", section, re.DOTALL)


def run_here(commands: list[list[str]], desk: Path) -> None:
    """Run commands in this process, with a folder of this machine."""
    for words in commands:
        given = [word.replace("/shared", str(desk)) for word in words]
        extra = ["--res", "2x", "-q"] if words[0] == "plan" else ["-q"]
        assert main([*given, *extra]) == 0, words
    assert sorted(path.name for path in (desk / "large").iterdir()) == ["a_2x.mkv", "b_2x.mkv"]


def noted(desk: Path) -> list[list[str]]:
    return [shlex.split(line) for line in (desk / "notes").read_text().splitlines()]


def shell(text: str) -> None:
    done = subprocess.run(["bash", "-e"], input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_slurm_array_makes_the_outputs(repository: Path, desk: Path) -> None:
    script, submission = blocks(repository, "Slurm")
    (desk / "worker.sbatch").write_text(script)
    shell(submission)
    commands = noted(desk)
    assert [words[0] for words in commands] == ["plan", *["worker"] * 16, "join"]
    assert commands[3] == ["worker", "/shared/job", "--index", "2", "--of", "16"]
    run_here(commands, desk)


def test_gnu_parallel_makes_the_outputs(repository: Path, desk: Path) -> None:
    (script,) = blocks(repository, "GNU parallel")
    shell(script)
    commands = noted(desk)
    assert sorted(words[3] for words in commands if words[0] == "worker") == ["0", "1", "2", "3"]
    run_here(commands, desk)


def test_a_kubernetes_job_makes_the_outputs(repository: Path, desk: Path) -> None:
    yaml: Any = pytest.importorskip("yaml")
    (text,) = blocks(repository, "Kubernetes")
    job = yaml.safe_load(text)
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    spec = job["spec"]
    assert spec["completionMode"] == "Indexed", "only such a Job sets JOB_COMPLETION_INDEX"
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    command = [str(word) for word in container["command"]]
    assert command[0] == "ultraflash" and command[-1] == str(spec["completions"])
    assert {mount["name"] for mount in container["volumeMounts"]} <= {volume["name"] for volume in pod["volumes"]}
    assert all(isinstance(word, str) for word in container["command"]), "Kubernetes refuses numbers there"
    workers = [
        [word.replace("$(JOB_COMPLETION_INDEX)", str(index)) for word in command[1:]]
        for index in range(spec["completions"])
    ]
    plan = ["plan", "films/", "-o", "large/", "--work-dir", "/shared/job"]
    run_here([plan, *workers, ["join", "/shared/job"]], desk)
