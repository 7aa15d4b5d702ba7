"""The wheel contains the whole product, which works outside the repository."""

import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.house.source_tree import product_modules
from tests.jobs.clips import decoded, make_clip
from tests.packaging.places import make_venv, open_folder, somebody_else

WHEEL_BUDGET_BYTES = 20 * 10**6
LITE_BUDGET_BYTES = 16 * 10**6


@pytest.fixture(scope="module")
def wheel(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the working tree, built without network or isolation."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(command, cwd=repository, check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel's content, as pip would lay it out."""
    folder = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def run_installed(installed: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python outside the repository, with the wheel's content first on the path."""
    program = f"import sys; sys.path.insert(0, {str(installed)!r}); "
    first, *rest = arguments
    command = [sys.executable, "-c", program + first, *rest]
    return subprocess.run(command, cwd=installed.parent, capture_output=True, text=True, check=False)


def test_the_wheel_holds_every_module_and_no_test(wheel: Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())
    wanted = {m.name.replace(".", "/") for m in product_modules() if not m.is_test}
    missing = [name for name in wanted if not {f"{name}.py", f"{name}/__init__.py"} & held]
    assert not missing, f"not in the wheel: {missing}"
    assert not [name for name in held if name.rsplit("/", 1)[-1].startswith("test_") or "/tests/" in f"/{name}"]


def test_the_wheel_stays_small(wheel: Path) -> None:
    assert wheel.stat().st_size < WHEEL_BUDGET_BYTES


def test_the_wheel_brings_man_pages_and_completion(wheel: Path) -> None:
    shared = {name.partition(".data/data/")[2] for name in zipfile.ZipFile(wheel).namelist() if ".data/data/" in name}
    assert {"share/man/man1/ultraflash.1", "share/man/man1/ultraflash-upscale.1"} <= shared
    assert "share/bash-completion/completions/ultraflash" in shared
    assert {"share/zsh/site-functions/_ultraflash", "share/fish/vendor_completions.d/ultraflash.fish"} <= shared


def test_the_wheel_holds_the_list_of_weights_and_the_built_in_model_within_its_budget(
    wheel: Path, repository: Path
) -> None:
    entries = {entry.filename: entry.file_size for entry in zipfile.ZipFile(wheel).infolist()}
    assert "ultraflash_cli/weights.toml" in entries
    assert "ultraflash_cli/py.typed" in entries
    lite = {name: size for name, size in entries.items() if name.startswith("ultraflash_cli/weights/lite/")}
    in_tree = sorted((repository / "ultraflash_cli" / "weights" / "lite").glob("*.safetensors"))
    assert in_tree, "the built-in model has no weights"
    assert {f"ultraflash_cli/weights/lite/{path.name}" for path in in_tree} <= lite.keys()
    assert sum(size for name, size in lite.items() if name.endswith(".safetensors")) <= LITE_BUDGET_BYTES


def test_the_wheel_installs_the_command_and_the_licence(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (scripts,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
    assert "ultraflash = ultraflash_cli.main:main" in archive.read(scripts).decode()
    (licence,) = (name for name in archive.namelist() if name.endswith("licenses/LICENSE"))
    assert "Apache License" in archive.read(licence).decode()


def test_the_installed_package_runs_away_from_the_repository(installed: Path) -> None:
    program = "import ultraflash_cli.main as m; print(m.__file__); sys.argv[0] = 'ultraflash'; m.main()"
    done = run_installed(installed, program, "weights", "list")
    assert done.returncode == 0, done.stderr[-800:]
    assert str(installed) in done.stdout, "another copy of the package was used"


def test_upscaling_needs_nothing_that_only_gpus_and_measurements_use(installed: Path, tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "in.mkv", frames=2, width=16, height=16, audio=False)
    program = (
        "sys.modules.update(triton=None, imageio_ffmpeg=None); import ultraflash_cli.main as m; sys.exit(m.main())"
    )
    done = run_installed(installed, program, "upscale", str(clip), "--res", "2x", "--threads", "1")
    assert done.returncode == 0, done.stderr[-800:]
    assert clip.with_name("in_2x.mkv").is_file()


# Through the installed command: a folder with blanks, nothing writable, no HOME, a
# different user


@pytest.fixture(scope="module")
def command(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`ultraflash`, installed by pip below a folder with blanks and letters beyond ASCII."""
    return make_venv(tmp_path_factory.mktemp("place") / "my tools é" / "venv", wheel)


@pytest.fixture
def clip() -> Iterator[Path]:
    with open_folder() as folder:
        yield make_clip(folder / "a clip's é.mkv", frames=2, width=16, height=16, audio=False)


def run(command: Sequence[object], **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, **options)


def written_below(folder: Path) -> dict[Path, float]:
    """Return every file and its modification time."""
    return {path: path.lstat().st_mtime for path in folder.rglob("*")}


def test_a_folder_with_blanks_and_no_environment_at_all(command: Path, clip: Path) -> None:
    done = run([command, "upscale", clip, "--res", "2x", "--threads", "1"], env={}, cwd=clip.parent)
    assert done.returncode == 0, done.stderr[-800:]
    assert len(decoded(clip.with_name("a clip's é_2x.mkv"))) == 2


def test_somebody_else_runs_what_he_cannot_write(command: Path, clip: Path) -> None:
    installed = command.parents[1]
    before = written_below(installed)
    nowhere = {"PATH": os.environ["PATH"], "HOME": "/nonexistent"}
    line = [*somebody_else(), command, "upscale", clip, "--res", "2x", "--threads", "1"]
    done = run(line, env=nowhere, cwd=clip.parent)
    assert done.returncode == 0, done.stderr[-800:]
    assert "Traceback" not in done.stderr and "Permission" not in done.stderr
    assert len(decoded(clip.with_name("a clip's é_2x.mkv"))) == 2
    assert written_below(installed) == before


def test_a_folder_that_somebody_cannot_write_is_named(command: Path, clip: Path) -> None:
    clip.parent.chmod(0o755)
    line = [*somebody_else(), command, "upscale", clip, "--res", "2x", "--threads", "1"]
    done = run(line, env={}, cwd="/")
    assert done.returncode == 7, done.stderr[-800:]
    assert done.stderr.count("error:") == 1 and "Traceback" not in done.stderr
