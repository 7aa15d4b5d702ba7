"""Imports point down, packages on one level do not import each other, and heavy
libraries are only used where allowed."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from tests.house.source_tree import ROOT, Module, product_modules, room_of

LEVELS = (
    {"ultraflash_kernels", "errors"},
    {"host", "buffers", "files", "flags", "frame_forms"},
    {"engine", "video", "weights", "metrics"},
    {"settings"},
    {"models"},
    {"jobs", "train", "bench"},
    {"streams", "seeking"},
    {"bar", "help_page", "spellings"},
    {"console", "options"},
    {"commands", "api"},
    {"main", "vapoursynth"},
    {"__main__"},
)
LEVEL_OF = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
MAY_LOOK_AT_ANY_LIBRARY = {"ultraflash_cli.jobs.doctor"}  # doctor checks whether it can be imported
OURS = ("ultraflash_cli", "ultraflash_kernels")


def forbidden_imports(module: Module) -> list[str]:
    """One sentence for each import of ``module`` that points up or sideways."""
    found: list[str] = []
    for line, target in module.imports():
        if target.split(".")[0] not in OURS:
            continue
        room = room_of(target)
        if room in ("", module.room) or module.room == "":
            continue
        if room not in LEVEL_OF:
            found.append(f"{module.where(line)}: {target} is in no room of DESIGN.md")
        elif LEVEL_OF[room] >= LEVEL_OF.get(module.room, -1) and not sees_beside(module.room, room):
            found.append(f"{module.where(line)}: {module.room} must not import {target}")
        elif module.room == "ultraflash_kernels" and room == "errors":
            found.append(f"{module.where(line)}: kernels know torch and triton only, not {target}")
    return found


def sees_beside(room: str, other: str) -> bool:
    """Return whether two packages of one level may import each other: options and the
    console belong together."""
    return {room, other} == {"console", "options"}


def test_every_room_is_named_in_the_design() -> None:
    rooms = {module.room for module in product_modules()} - {""}
    assert rooms <= LEVEL_OF.keys(), f"unknown rooms: {sorted(rooms - LEVEL_OF.keys())}"


def test_imports_point_down_and_rooms_on_one_level_do_not_meet() -> None:
    found = [line for module in product_modules() if not module.is_test for line in forbidden_imports(module)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("name", "source"),
    [
        pytest.param("ultraflash_cli.engine.plan", "from ultraflash_cli.video import probe", id="sideways"),
        pytest.param("ultraflash_cli.engine.plan", "def f():\n    from ultraflash_cli.jobs import batch", id="up"),
        pytest.param("ultraflash_cli.video.decode", "from ..metrics import psnr", id="relative"),
        pytest.param("ultraflash_cli.weights.load", "import ultraflash_cli.settings", id="the environment's reader"),
        pytest.param("ultraflash_kernels.norm.op", "from ultraflash_cli.errors import InputError", id="out of kernels"),
    ],
)
def test_a_forbidden_import_would_be_found(name: str, source: str) -> None:
    module = Module(ROOT / "planted.py", name, ast.parse(source))
    assert forbidden_imports(module)


@pytest.mark.parametrize(
    ("library", "rooms"),
    [
        pytest.param("av", {"video"}, id="PyAV in the video room"),
        pytest.param("imageio_ffmpeg", {"metrics", "commands", "jobs"}, id="ffmpeg's binary in the metrics"),
        pytest.param("typer", {"main", "commands", "options", "console", "help_page"}, id="typer at the counter"),
        pytest.param("rich", {"main", "commands", "options", "console", "bar"}, id="rich at the counter"),
    ],
)
def test_a_library_is_imported_only_in_its_rooms(library: str, rooms: set[str]) -> None:
    found = [
        module.where(line)
        for module in product_modules()
        for line, target in module.imports()
        if target.split(".")[0] == library and module.room not in rooms and not module.is_test
        if module.name not in MAY_LOOK_AT_ANY_LIBRARY
    ]
    assert not found, f"{library} outside {sorted(rooms)}: {found}"


def test_only_settings_reads_the_environment() -> None:
    found = [
        module.where(line)
        for module in product_modules()
        if module.room != "settings" and not module.is_test
        for line, text in [*module.attributes(), *module.imports()]
        if text in ("os.environ", "os.getenv", "os.environb", "os.putenv")
    ]
    assert not found, f"the environment is read or written outside settings.py: {found}"


def test_help_answers_without_importing_torch() -> None:
    program = (
        "import sys; from ultraflash_cli.main import main; sys.argv = ['ultraflash', *sys.argv[1:]]\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = sorted({'torch', 'av', 'triton', 'transformers', 'numpy'} & sys.modules.keys())\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    for arguments in (["--help"], ["upscale", "--help"], ["bench", "--help"], ["--version"]):
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments], capture_output=True, text=True, cwd=ROOT, check=False
        )
        assert done.returncode == 0, f"{arguments}: {done.stderr[-600:]}"


@pytest.mark.parametrize(
    "module", [pytest.param(m, id=m.name) for m in product_modules() if not m.is_test and m.room != "__main__"]
)
def test_public_names_exist_and_modules_open_with_a_line(module: Module) -> None:
    docstring = ast.get_docstring(module.tree)
    assert docstring, f"{module.where(1)} has no opening line"
    if is_triton_source(module.path):
        pytest.importorskip("triton")
    loaded = importlib.import_module(module.name)
    if module.path.name != "__init__.py":
        assert hasattr(loaded, "__all__"), f"{module.where(1)} does not list its public names"
    missing = [name for name in getattr(loaded, "__all__", ()) if not hasattr(loaded, name)]
    assert not missing, f"{module.where(1)} lists {missing}"


def is_triton_source(path: Path) -> bool:
    """Return whether importing a module requires Triton."""
    return path.name == "kernel.py"
