"""Conventions of the project: lengths, lazy imports, promised options, exit codes."""

import ast
import re
from pathlib import Path
from typing import Any

import pytest
import typer

from tests.cli.reference import exit_codes, reference
from ultraflash_cli.main import app

LONGEST_COMMAND = 430
"""Maximum lines of a module in commands/; most are far shorter."""
LONGEST_FILE = 450

LAZY_ROOMS = {"bench", "commands", "jobs", "models"}
"""Packages that import heavy libraries, or packages that do so, only inside
functions."""
LAZY_FILES = {
    "api.py": "`import ultraflash_cli` imports no torch",
    "frame_forms.py": "`import ultraflash_cli` imports no torch",
    "__init__.py": "`import ultraflash_cli` imports no torch",
    "bar.py": "rich takes longer than all else of `--help`",
    "errors.py": "Windows has no resource module",
    "help_page.py": "the jobs' lists of suffixes are needed after a slip only",
    "host.py": "Windows has no resource module, ctypes is needed once",
    "streams.py": "the jobs' list of suffixes is needed with a log only",
    "vapoursynth.py": "VapourSynth is an extra, and `import ultraflash_cli` imports no numpy",
    "metrics/": "ffmpeg, stlpips and cvvdp are extras",
    "train/pages.py": "Pillow is an extra",
    "train/prepare.py": "Pillow is an extra",
    "weights/fetch.py": "huggingface_hub takes half a second",
    "weights/search.py": "huggingface_hub takes half a second",
}

PROMISED = {
    "upscale": "-o --res --downscale -y -n --skip-existing --dry-run --json --temp-dir --no-resume --strength --detail "
    "--match-colors --no-match-colors --no-cuts --deinterlace --side-by-side --start --end --preview --recursive "
    "--images --strict --keep-going --codec --crf --pix-fmt --enc-opt --fps --no-audio --no-subs --model --prompt "
    "--encoder --decoder --seed --device --precision --max-memory --threads --no-cuda-graphs",
    "generate": "-o --prompts --init-clip --res --seconds --fps --seed --count --save-lr --cache-management --codec "
    "--crf --pix-fmt --enc-opt --model --decoder --device --precision --max-memory --threads --no-cuda-graphs "
    "--no-resume -y -n --keep-going --temp-dir --dry-run --json",
    "plan": "-o --work-dir --unit-frames --json --res --model --device --threads",
    "worker": "--index --of --any --device --json",
    "join": "--json",
    "compare": "--html --json",
    "probe": "--json --res --measure",
    "doctor": "--json",
    "clean": "-y --json",
    "bench": "--json",
    "explain": "--json",
    "weights list": "--json",
    "weights pull": "--offline --from -y",
    "weights verify": "--json",
    "weights path": "--json",
    "weights rm": "--json",
    "weights lock": "--out",
    "train list": "--json",
    "train run pixels": "--data --out --steps --start-from",
}
"""Options that scripts may rely on."""
GLOBAL = "-q -v --log-file --progress --no-color"


def product(repository: Path) -> list[Path]:
    return sorted((repository / "ultraflash_cli").rglob("*.py"))


def help_of(command: str) -> str:
    """Return the section of the reference about a command."""
    return reference().split(f"## `ultraflash {command}`\n", 1)[1].split("\n## ", 1)[0]


def test_commands_are_short(repository: Path) -> None:
    long = {
        path.name: lines
        for path in (repository / "ultraflash_cli" / "commands").glob("*.py")
        if (lines := len(path.read_text().splitlines())) > LONGEST_COMMAND
    }
    assert not long


def test_no_other_file_of_the_product_is_long(repository: Path) -> None:
    root = repository / "ultraflash_cli"
    long = {str(path.relative_to(root)) for path in product(repository) if path.read_text().count("\n") > LONGEST_FILE}
    assert not long, f"over {LONGEST_FILE} lines: {sorted(long)}"


def test_imports_inside_functions_stand_where_they_are_listed(repository: Path) -> None:
    root = repository / "ultraflash_cli"
    found: list[str] = []
    for path in product(repository):
        name = str(path.relative_to(root))
        if name.split("/")[0] in LAZY_ROOMS or any(name.startswith(listed) for listed in LAZY_FILES):
            continue
        functions = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.FunctionDef)]
        lazy = {n.lineno for f in functions for n in ast.walk(f) if isinstance(n, ast.Import | ast.ImportFrom)}
        found += [f"{name}:{line}" for line in sorted(lazy)]
    assert not found


@pytest.mark.parametrize("command", PROMISED)
def test_promised_options_are_in_the_help(command: str) -> None:
    page = help_of(command)
    missing = [flag for flag in PROMISED[command].split() if not re.search(rf"(?<![\w-]){flag}(?![\w-])", page)]
    assert not missing


def test_promised_global_options_are_in_the_help() -> None:
    page = reference().split("## `ultraflash`\n", 1)[1].split("\n## ", 1)[0]
    assert not [flag for flag in GLOBAL.split() if not re.search(rf"(?<![\w-]){flag}(?![\w-])", page)]


def test_every_exit_code_of_the_errors_is_in_the_reference_and_in_help() -> None:
    codes = [code for shown, _ in exit_codes() for code in shown.split(", ")]
    assert codes == ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "129", "130", "143"]
    page = " ".join(reference().split("Exit codes:", 1)[1].split("```", 1)[0].split())
    assert not [code for code in codes if not re.search(rf"\b{code}\b", page)]


def test_summaries_of_commands_fit_80_columns() -> None:
    root: Any = typer.main.get_command(app)
    groups = [root, *(each for each in root.commands.values() if hasattr(each, "commands"))]
    for group in groups:
        shown = {name: each for name, each in group.commands.items() if not each.hidden}
        indent = max(map(len, shown)) + 4
        long = [name for name, each in shown.items() if indent + len(each.get_short_help_str(1000)) > 80]
        assert not long


def test_no_test_module_imports_another(repository: Path) -> None:
    found = [
        f"{path.relative_to(repository)}:{node.lineno}"
        for path in sorted((repository / "tests").rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[-1].startswith("test_")
    ]
    assert not found
