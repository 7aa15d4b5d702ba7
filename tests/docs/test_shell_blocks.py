"""Every shell block in the documentation: bash can parse it, its commands and options
exist, and those of the guides run."""

import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer

from tests.jobs.clips import make_clip
from ultraflash_cli.console import Console
from ultraflash_cli.main import app, main
from ultraflash_cli.settings import Settings

ROOT = Path(__file__).parents[2]
PAGES = ("*.md", "docs/**/*.md", "demo/*.md", "kernels/**/*.md")
NOT_SHELL = {"docs/cli.md"}
"""Pages whose blocks are plain text, such as the help."""
PROGRAMS = {
    "ultraflash", "make", "pip", "pipx", "uv", "python", "python3", "ffmpeg", "docker", "mpv", "vspipe", "nice", "man",
    "apt-get", "for", "benchmarks/run_gpu.sh", "torchrun",
}  # fmt: skip
"""Allowed first words of a line in a shell block."""
RUN = {"upscale", "explain", "clean"}
"""Commands of the guides that are run; others measure the machine first, or take a minute even to plan."""
RUN_PAGES = ("docs/guides/archive.md", "docs/guides/first-clip.md")
QUICK = ["-q", "--model", "tiny-lite", "--device", "cpu", "--threads", "1"]


@dataclass(frozen=True)
class Block:
    page: str
    number: int
    text: str
    """As typed: without the marks of a prompt."""

    def lines(self) -> list[str]:
        """Return the commands, joining those that span several lines."""
        return [line for line in self.text.replace("\\\n", " ").splitlines() if line.strip()]


def shell_blocks() -> list[Block]:
    return [block for pattern in PAGES for path in sorted(ROOT.glob(pattern)) for block in blocks_of(path)]


def blocks_of(path: Path) -> Iterator[Block]:
    page = path.relative_to(ROOT).as_posix()
    found = re.finditer(r"^( *)```(\w*)\n(.*?)^\1```", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    for number, (indent, language, content) in enumerate((match.groups() for match in found), 1):
        lines = [line.removeprefix(indent) for line in content.splitlines()]
        if page in NOT_SHELL or language not in ("", "bash", "sh", "console"):
            continue
        if any(line.startswith("$ ") for line in lines):
            lines = [line[2:] for line in lines if line.startswith("$ ")]
        if any((line.split() or [""])[0] in PROGRAMS for line in lines):
            yield Block(page, number, "\n".join(lines) + "\n")


BLOCKS = shell_blocks()


def commands_of(line: str) -> Iterator[list[str]]:
    """Yield the words of each command of a line, without redirections and
    assignments."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>()")
    lexer.whitespace_split = True
    words: list[str] = []
    skip = False
    for word in lexer:
        if set(word) <= set("|&;()"):
            if words:
                yield words
            words = []
        elif set(word) <= set("<>"):
            skip = True
            if words and words[-1].isdigit():
                words.pop()
        elif skip:
            skip = False
        else:
            words.append(word)
    if words:
        yield words


def ultraflash_commands(block: Block) -> Iterator[list[str]]:
    for line in block.lines():
        for words in commands_of(line):
            if "ultraflash" in words[:6] and words[0] in ("ultraflash", "nice"):
                yield words[words.index("ultraflash") + 1 :]


@cache
def program() -> Any:
    return typer.main.get_command(app)


def parse(arguments: list[str]) -> None:
    """Parse a command with the program's own parser; raise its error."""
    command = program()
    context = command.context_class(command, info_name="ultraflash", obj=Console(Settings()))
    words = list(arguments)
    while hasattr(command, "commands"):
        if not words or words[0].startswith("-"):
            assert not words or words[0] in ("--help", "--version", "--install-completion", "--show-completion"), words
            return
        name = words.pop(0)
        if name == "help":
            return
        assert name in command.commands, f"there is no command {name}"
        command = command.commands[name]
        context = command.context_class(command, info_name=name, parent=context)
    command.make_context(command.name, words, parent=context.parent, obj=Console(Settings()))


def test_there_are_blocks_of_shell() -> None:
    assert len(BLOCKS) > 60
    assert {"README.md", "docs/guides/pipes.md", "docs/training.md", "CONTRIBUTING.md"} <= {
        each.page for each in BLOCKS
    }


def test_every_line_of_a_block_begins_with_a_program() -> None:
    """A comment that was wrapped like prose would run as a command, and swallow the
    next one."""
    known = PROGRAMS | {".", "do", "done", "sbatch", "parallel"}
    wrong: list[str] = []
    for block in BLOCKS:
        for line in block.lines():
            for words in commands_of(line) if not line.startswith(" ") else ():
                named = [word for word in words if not re.match(r"\w+=", word)]
                if named and named[0] not in known and "/bin/" not in named[0]:
                    wrong.append(f"{block.page}, block {block.number}: {line}")
    assert not wrong, "\n".join(wrong)


def test_bash_reads_every_block() -> None:
    if not shutil.which("bash"):
        pytest.skip("there is no bash on this machine")
    wrong: list[str] = []
    for block in BLOCKS:
        done = subprocess.run(["bash", "-n"], input=block.text, capture_output=True, text=True, check=False)
        if done.returncode:
            wrong.append(f"{block.page}, block {block.number}: {done.stderr}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("page", sorted({block.page for block in BLOCKS}))
def test_commands_and_options_of_a_page_exist(page: str) -> None:
    wrong: list[str] = []
    for block in (block for block in BLOCKS if block.page == page):
        for words in ultraflash_commands(block):
            if any(word.startswith("$") for word in words):
                continue  # a variable of the shell, whose words are elsewhere
            try:
                parse(words)
            except (AssertionError, typer.TyperException) as error:
                wrong.append(f"block {block.number}: ultraflash {shlex.join(words)}: {error}")
    assert not wrong, "\n".join(wrong)


def test_modules_files_and_targets_of_blocks_exist() -> None:
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for block in BLOCKS:
        where = f"{block.page}, block {block.number}"
        assert set(re.findall(r"^make ([a-z-]+)", block.text, re.MULTILINE)) <= targets, where
        for module in re.findall(r"-m ((?:benchmarks|tests|ultraflash_cli|ultraflash_kernels)[\w.]*)", block.text):
            name = module.replace(".", "/")
            places = [ROOT / f"{name}.py", ROOT / name / "__main__.py", ROOT / "kernels" / f"{name}.py", ROOT / name]
            assert any(place.exists() for place in places), f"{where}: {module}"
        for name in re.findall(r"(?:packaging|benchmarks)/[\w./-]+\.(?:Dockerfile|sh|py|json)", block.text):
            assert (ROOT / name).exists() or "results" in name, f"{where}: {name}"


def test_extras_of_blocks_exist() -> None:
    extras = re.findall(r"^([a-z]+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    for block in BLOCKS:
        for named in re.findall(r"'\.\[([a-z,]+)\]'", block.text):
            assert set(named.split(",")) <= set(extras), f"{block.page}: {named}"


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with all inputs that the guides name."""
    for name in ("holiday.mp4", "films/tape.mp4", "films/old/b.mkv"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        make_clip(tmp_path / name, frames=4, width=32, height=24)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", RUN_PAGES)
def test_the_commands_of_a_guide_run(page: str, desk: Path) -> None:
    for block in (block for block in BLOCKS if block.page == page):
        for line in block.lines():
            commands = list(commands_of(line))
            if len(commands) != 1 or "-" in commands[0] or "ultraflash" not in commands[0][:4]:
                continue
            words = commands[0][commands[0].index("ultraflash") + 1 :]
            if words[0] not in RUN or {"--html", "--dry-run"} & set(words):
                continue
            if words[0] == "upscale":
                words += [] if "--res" in words else ["--res", "2x"]
                words += [*QUICK, *([] if {"-n", "--skip-existing"} & set(words) else ["-y"])]
            # Generated names contain the size, which is smaller here.
            code = main([word.replace("_1k.", "_2x.") for word in words])
            assert code == 0, f"{line} ended with {code}"
