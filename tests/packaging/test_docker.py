"""The Dockerfiles: linted, and every RUN line of the CPU one executed in a scratch root.

pip finds torch and the other libraries of this environment as already installed, so
nothing is downloaded; everything else runs as written: the virtual environment, the
build of the package from the files that the build context holds, and the command that
the image runs. Stages share one root, so `COPY --from` has nothing to do. The CUDA
image differs by a compiler from Debian, which only a container can install, and by an
extra: its other lines are the same.
"""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.jobs.clips import decoded, make_clip
from tests.packaging.places import count_as_installed, open_folder, outer_packages, somebody_else

FILES = ("cpu.Dockerfile", "cuda.Dockerfile")
PLACES = ("/opt/ultraflash", "/src", "/weights", "/work")
"""Folders of the image that the Dockerfile names."""


def lines_of(repository: Path, name: str) -> list[dict[str, Any]]:
    parse = pytest.importorskip("dockerfile_parse", reason="dockerfile-parse is not installed")
    parser = parse.DockerfileParser(fileobj=(repository / "packaging" / name).open("rb"))
    return [line for line in parser.structure if line["instruction"] != "COMMENT"]


def inside(root: Path, text: str) -> str:
    """Return a line with the image's folders below `root`."""
    for place in PLACES:
        text = text.replace(place, f"{root}{place}")
    return text


def context(repository: Path, name: str) -> list[str]:
    """The build context: the files that the ignore file allows."""
    listed = (repository / "packaging" / f"{name}.dockerignore").read_text().splitlines()
    assert listed[0] == "*"
    return [line[1:] for line in listed if line.startswith("!")]


def copy(repository: Path, names: list[str], target: Path) -> None:
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        if (repository / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(repository / name, target / name, ignore=ignored, dirs_exist_ok=True)
        else:
            shutil.copy(repository / name, target / name)


@pytest.fixture(scope="module")
def image(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """The root made by the lines of the CPU image, and its environment."""
    root = tmp_path_factory.mktemp("root")
    (root / "bin").mkdir()
    (root / "bin" / "python").symlink_to(sys.executable)
    environment = {
        "PATH": f"{root}/bin:/usr/bin:/bin",
        "PIP_NO_INDEX": "1",
        "PIP_NO_BUILD_ISOLATION": "0",
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }
    folder = root
    for line in lines_of(repository, "cpu.Dockerfile"):
        value = inside(root, line["value"])
        match line["instruction"]:
            case "ARG":
                environment |= {name: given for name, _, given in (part.partition("=") for part in shlex.split(value))}
            case "ENV":
                for part in shlex.split(value):
                    name, _, given = part.partition("=")
                    environment[name] = given.replace("$PATH", environment["PATH"])
            case "WORKDIR":
                folder = Path(value)
                folder.mkdir(parents=True, exist_ok=True)
            case "COPY" if not value.startswith("--from"):
                (source, _) = value.split()
                names = context(repository, "cpu.Dockerfile") if source == "." else [source]
                copy(repository, names, folder)
            case "RUN":
                done = subprocess.run(
                    ["/bin/sh", "-c", value], cwd=folder, env=environment, capture_output=True, text=True, check=False
                )
                assert done.returncode == 0, f"{line['value']}\n{done.stdout[-1500:]}{done.stderr[-1500:]}"
                if "-m venv" in value:
                    count_as_installed(root / "opt" / "ultraflash")
            case _:
                pass
    return root, environment


@pytest.mark.parametrize("name", FILES)
def test_hadolint_has_nothing_to_say(repository: Path, name: str) -> None:
    folders = [f"{Path(packages).parents[2]}/bin" for packages in outer_packages()]
    hadolint = shutil.which("hadolint", path=os.pathsep.join([*folders, os.environ["PATH"]]))
    if hadolint is None:
        pytest.skip("hadolint is not installed")
    done = subprocess.run([hadolint, repository / "packaging" / name], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", FILES)
def test_the_build_context_holds_what_the_wheel_is_made_of(repository: Path, name: str) -> None:
    names = context(repository, name)
    assert all((repository / each).exists() for each in names)
    assert {"pyproject.toml", "weights.toml", "ultraflash_cli", "kernels", "README.md", "LICENSE"} <= set(names)
    assert "tests" not in names


def test_both_images_are_made_alike(repository: Path) -> None:
    cpu, cuda = (lines_of(repository, name) for name in FILES)

    def entry(lines: list[dict[str, Any]]) -> list[tuple[str, str]]:
        kinds = ("FROM", "USER", "WORKDIR", "VOLUME", "ENTRYPOINT", "CMD", "COPY")
        return [(line["instruction"], line["value"]) for line in lines if line["instruction"] in kinds]

    assert entry(cpu) == entry(cuda)
    assert ("USER", "1000:1000") in entry(cpu)


def test_every_run_line_of_the_cpu_image_works_and_its_command_runs_as_somebody_else(
    repository: Path, image: tuple[Path, dict[str, str]]
) -> None:
    root, environment = image
    (entry,) = (line["value"] for line in lines_of(repository, "cpu.Dockerfile") if line["instruction"] == "ENTRYPOINT")
    assert entry == '["ultraflash"]'
    installed = root / "opt" / "ultraflash"
    assert shutil.which("ultraflash", path=environment["PATH"]) == f"{installed}/bin/ultraflash"
    assert (installed / "share" / "man" / "man1" / "ultraflash-upscale.1").is_file()
    assert (root / "weights").stat().st_mode & 0o1777 == 0o1777
    where = "import ultraflash_cli; print(ultraflash_cli.__file__)"
    found = subprocess.run(
        [installed / "bin" / "python", "-P", "-c", where], env=environment, capture_output=True, text=True, check=True
    )
    assert found.stdout.startswith(str(installed)), "another copy of the package would be used"

    command = [str(installed / "bin" / "ultraflash"), "upscale", "in.mp4", "--res", "2x", "--threads", "1"]
    with open_folder() as work:
        make_clip(work / "in.mp4", frames=2, width=16, height=16)
        done = subprocess.run(
            [*somebody_else(), *command], cwd=work, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-1500:]
        assert len(decoded(work / "in_2x.mp4")) == 2
