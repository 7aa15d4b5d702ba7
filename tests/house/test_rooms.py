"""The packages of `jobs` and `models`: imports point down, planning needs no torch, and
the running code is loaded in one place."""

import ast
import subprocess
import sys

import pytest

from tests.house.source_tree import ROOT, Module, product_modules

JOBS = "ultraflash_cli.jobs."
LEVELS = (
    {"events"},
    {"plan_lines", "resume"},
    {"serving", "weights"},
    {"planning"},
    {"provenance"},
    {"running"},
    {"pages"},
    {"batch", "compare", "doctor", "export"},
    {"cluster"},
)
LEVEL_OF = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
MODULES = {module.name for module in product_modules()}
LAZY = {
    "ultraflash_cli.models.frames",  # safetensors, which random weights do not need
    "ultraflash_cli.models.prompts",
    "ultraflash_cli.models.shelf",
    "ultraflash_cli.jobs.running.forecast",  # loads torch only to measure; `batch` makes its forecasts without it
    "ultraflash_cli.jobs.running.prepare",  # loads torch only for properties of models that planning needs
}
"""Modules of `models` and `running` that import inside functions."""


def job_modules() -> list[Module]:
    return [module for module in product_modules() if module.name.startswith(JOBS)]


def room_of_job(name: str) -> str:
    return name.removeprefix(JOBS).split(".")[0]


def arrows(module: Module) -> list[tuple[int, str]]:
    """Return the line and package of every import of another package of the jobs."""
    found: list[tuple[int, str]] = []
    for line, target in module.imports():
        name = target if target in MODULES else target.rpartition(".")[0]
        if name.startswith(JOBS) and room_of_job(name) != room_of_job(module.name):
            found.append((line, room_of_job(name)))
    return found


def test_imports_between_the_rooms_of_jobs_point_down() -> None:
    found = [
        f"{module.where(line)}: {room_of_job(module.name)} must not import {room}"
        for module in job_modules()
        for line, room in arrows(module)
        if LEVEL_OF[room] >= LEVEL_OF[room_of_job(module.name)]
    ]
    assert not found, "\n".join(found)


def test_there_are_few_arrows_between_the_rooms_of_jobs() -> None:
    pairs = {(room_of_job(module.name), room) for module in job_modules() for _, room in arrows(module)}
    assert len(pairs) <= 24, sorted(pairs)


def test_planning_and_what_outlives_a_kill_load_no_torch() -> None:
    light = ("batch", "planning", "resume", "provenance")
    names = [module.name for module in job_modules() if room_of_job(module.name) in light]
    program = f"import sys, {', '.join(names)}; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr or "torch is loaded"


def imported_when_run(module: Module) -> set[str]:
    """Return our modules that a module imports, also inside functions, except for type
    checking."""
    typing_only = {
        id(inner)
        for node in ast.walk(module.tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    nodes = [n for n in ast.walk(module.tree) if isinstance(n, ast.ImportFrom) and id(n) not in typing_only]
    names = {f"{node.module}.{each.name}" for node in nodes for each in node.names}
    return (names | {node.module or "" for node in nodes}) & MODULES


def test_planning_imports_nothing_that_loads_torch_not_even_inside_functions() -> None:
    planning = [module for module in job_modules() if room_of_job(module.name) == "planning"]
    used = {name for module in planning for name in imported_when_run(module)}
    program = f"import sys, {', '.join(sorted(used))}; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr or "torch is loaded"


@pytest.mark.parametrize("room", ["ultraflash_cli.jobs.running.", "ultraflash_cli.models."])
def test_what_runs_a_model_imports_at_the_top(room: str) -> None:
    found = [
        module.where(node.lineno)
        for module in product_modules()
        if module.name.startswith(room) and module.name not in LAZY
        for function in ast.walk(module.tree)
        if isinstance(function, ast.FunctionDef)
        for node in function.body
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    assert not found, f"imports inside functions: {found}"
