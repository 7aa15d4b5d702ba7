"""Files that people and services expect in a project: citation, contributing, security,
a workflow."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest


def read_yaml(path: Path) -> Any:
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def test_the_citation_names_this_version_and_the_paper(repository: Path) -> None:
    citation = read_yaml(repository / "CITATION.cff")
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert citation["cff-version"] == "1.2.0" and citation["type"] == "software"
    assert (citation["title"], citation["version"]) == (project["name"], project["version"])
    assert citation["license"] == project["license"]
    (paper,) = citation["references"]
    assert paper["identifiers"] == [{"type": "other", "value": "arXiv:2606.09150"}]
    assert len(paper["authors"]) == 28


def test_the_workflow_runs_the_test_command(repository: Path) -> None:
    workflow = read_yaml(repository / ".github" / "workflows" / "test.yml")
    # YAML 1.1 reads the key `on` as true.
    assert workflow[True]["push"] == {"branches": ["main"]} and "pull_request" in workflow[True]
    assert workflow["permissions"] == {"contents": "read"}
    steps = workflow["jobs"]["test"]["steps"]
    assert [step["run"] for step in steps if "run" in step] == ["make vapoursynth", "make test"]
    assert all(re.fullmatch(r"actions/[a-z-]+@v\d+", step["uses"]) for step in steps if "uses" in step)
    (versions,) = (step["with"]["python-version"] for step in steps if "python" in step.get("uses", ""))
    assert versions.split()[-1] == "3.11", "the last one is the default"


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "SECURITY.md"])
def test_commands_of_the_page_exist(repository: Path, name: str) -> None:
    page = (repository / name).read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z][a-z-]*):", (repository / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"^make ([a-z-]+)", page, re.MULTILINE)) <= targets
    reference = (repository / "docs" / "cli.md").read_text(encoding="utf-8")
    for command in re.findall(r"`ultraflash ([a-z]+)", page):
        assert f"ultraflash {command}" in reference
    for module in re.findall(r"-m (tests[a-z_.]+)", page):
        assert (repository / f"{module.replace('.', '/')}.py").is_file()
