"""Man pages and shell completion: up to date with the program, and working in the
shells."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.shell_files import PACKAGING, completions, man_pages

ASKED = ("ultraflash up", "ultraflash upscale --codec v", "ultraflash weights pul")
ANSWERS = (["upscale"], ["vp9"], ["pull"])


@pytest.mark.parametrize("folder", ["man", "completions"])
def test_the_files_are_those_of_the_program(folder: str) -> None:
    made = man_pages() if folder == "man" else completions()
    there = {path.name: path.read_text(encoding="utf-8") for path in (PACKAGING / folder).iterdir()}
    assert there == made, "run `python -m tests.cli.reference`"


def test_every_command_and_every_option_has_its_place_in_the_man_pages() -> None:
    pages = man_pages()
    assert "ultraflash\\-upscale (1)" in pages["ultraflash.1"]
    assert ".SH EXIT STATUS" in pages["ultraflash-upscale.1"]
    assert "130" in pages["ultraflash.1"] and "ULTRAFLASH_HOME" in pages["ultraflash.1"]
    assert "\\-\\-chroma\\-shift" in pages["ultraflash-upscale.1"]
    assert "ULTRAFLASH WEIGHTS PULL" in pages["ultraflash-weights.1"]


@pytest.mark.parametrize("path", sorted((PACKAGING / "man").iterdir()), ids=lambda path: path.name)
def test_man_pages_are_formatted_without_a_warning(path: Path) -> None:
    if not shutil.which("groff"):
        pytest.skip("groff is not installed")
    done = subprocess.run(["groff", "-man", "-Tutf8", "-ww", path], capture_output=True, text=True, check=True)
    assert not done.stderr
    assert "OPTIONS" in done.stdout.upper() and "\n.TP" not in done.stdout


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Environment variables in which `ultraflash` is this environment's."""
    command = tmp_path / "bin" / "ultraflash"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m ultraflash_cli "$@"\n')
    command.chmod(0o755)
    return {**os.environ, "PATH": f"{command.parent}:{os.environ['PATH']}", "HOME": str(tmp_path), "TERM": "xterm"}


def in_shell(shell: str, program: str, environment: dict[str, str]) -> str:
    if not shutil.which(shell):
        pytest.skip(f"{shell} is not installed")
    bare = {"bash": ["--noprofile", "--norc"], "zsh": ["-f"], "fish": ["--no-config"]}[shell]
    done = subprocess.run(
        [shell, *bare, "-c", program], env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_bash_completes(environment: dict[str, str]) -> None:
    program = f'source "{PACKAGING}/completions/ultraflash"\n'
    for asked in ASKED:
        words = asked.split()
        program += f"COMP_WORDS=({asked}) COMP_CWORD={len(words) - 1}\n"
        program += '_ultraflash_completion ultraflash; echo "${COMPREPLY[*]}"\n'
    assert [line.split() for line in in_shell("bash", program, environment).splitlines()] == list(ANSWERS)


def test_fish_completes(environment: dict[str, str]) -> None:
    program = f'source "{PACKAGING}/completions/ultraflash.fish"\n'
    program += "".join(f'complete -C "{asked}"; echo =====\n' for asked in ASKED)
    answers = in_shell("fish", program, environment).split("=====\n")
    words = [[line.split("\t")[0] for line in answer.splitlines()] for answer in answers]
    # The rest of a help sentence may follow on separate lines.
    assert [found[:1] for found in words[:3]] == list(ANSWERS)


def test_zsh_completes(environment: dict[str, str]) -> None:
    # Outside of an interactive shell there is nothing to complete, so the suggestions
    # are printed.
    program = f'fpath=("{PACKAGING}/completions" $fpath); autoload -Uz _ultraflash compdef\n'
    program += 'function compdef() {}\nfunction _arguments() { print -r -- "$@" }\n'
    for asked in ASKED:
        program += f"words=({asked}); CURRENT={len(asked.split())}; _ultraflash\n"
    out = in_shell("zsh", program, environment)
    offered = [line.split('"')[1] for line in out.splitlines() if line.startswith("*")]
    assert offered == [answer for (answer,) in ANSWERS]
