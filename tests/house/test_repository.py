"""The repository is consistent: README, Makefile, licence and tracked files."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

MAX_FILE_BYTES = 12 * 2**20


@pytest.fixture(scope="module")
def project_files(repository: Path) -> list[Path]:
    """Return every file that a clone would contain: tracked, or new and not ignored."""
    if not shutil.which("git") or not (repository / ".git").exists():
        pytest.skip("not a git checkout")
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=repository,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return [repository / name for name in listing.split("\0") if name and (repository / name).is_file()]


def make_targets(repository: Path) -> set[str]:
    """Return the targets of the Makefile."""
    return set(re.findall(r"^([a-z][a-z-]*):", (repository / "Makefile").read_text(), re.MULTILINE))


def test_every_make_command_of_the_readme_is_a_target(repository: Path) -> None:
    commands = set(re.findall(r"(?:^|`)make ([a-z][a-z-]*)", (repository / "README.md").read_text(), re.MULTILINE))
    assert {"demo", "test"} <= commands
    assert commands <= make_targets(repository)


def test_every_ultraflash_command_of_the_readme_is_in_the_reference(repository: Path) -> None:
    named = set(re.findall(r"(?:^|`)ultraflash ([a-z]+)", (repository / "README.md").read_text(), re.MULTILINE))
    assert {"upscale", "bench", "doctor"} <= named
    reference = (repository / "docs" / "cli.md").read_text()
    assert not [name for name in named if f"ultraflash {name}" not in reference]


def test_ci_runs_the_test_command_of_the_readme(repository: Path) -> None:
    script = repository / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    assert "make test" in script.read_text().splitlines()


def test_every_file_that_the_documents_link_to_is_here(repository: Path) -> None:
    missing: list[str] = []
    for page in [*repository.glob("*.md"), *repository.glob("docs/**/*.md"), *repository.glob("demo/*.md")]:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
            if "://" not in target and not (page.parent / target).exists():
                missing.append(f"{page.relative_to(repository)} -> {target}")
    assert not missing, "\n".join(missing)


def test_no_file_names_a_folder_of_the_machine_it_was_written_on(repository: Path, project_files: list[Path]) -> None:
    homes = [re.escape(str(repository)), r"/(?:home|Users)/[A-Za-z0-9._-]+/", r"(?<![\w.])/root/"]
    if repository.parent != Path(repository.anchor):
        homes.append(re.escape(f"{repository.parent}/"))
    machine = re.compile("|".join(homes).encode())
    found = [str(path.relative_to(repository)) for path in project_files if machine.search(path.read_bytes())]
    found = [name for name in found if name != str(Path(__file__).relative_to(repository))]
    assert not found, f"machine paths in {found}"


def test_no_file_is_too_big_for_a_clone(repository: Path, project_files: list[Path]) -> None:
    big = {str(p.relative_to(repository)): p.stat().st_size for p in project_files if p.stat().st_size > MAX_FILE_BYTES}
    assert not big, f"files over {MAX_FILE_BYTES} bytes: {big}"


def test_constraints_pin_every_requirement(repository: Path) -> None:
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    asked = [*project["dependencies"], *extras["dev"], *extras["docs"], *extras["generate"], *extras["train"]]
    names = {re.split(r"[\s\[<>=;!~]", requirement)[0].lower() for requirement in asked} - {project["name"]}
    pinned = {line.split("==")[0] for line in (repository / "constraints.txt").read_text().splitlines() if "==" in line}
    assert names <= pinned, f"not pinned: {sorted(names - pinned)}"


def test_the_kernels_project_folder_is_not_a_package(repository: Path) -> None:
    assert not (repository / "kernels" / "__init__.py").exists()
