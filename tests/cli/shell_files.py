"""Files in packaging/ that are generated from the program: man pages and shell
completion.

`python -m tests.cli.reference` writes them together with docs/cli.md.
"""

import os
import re
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from ultraflash_cli.console import Console
from ultraflash_cli.main import app
from ultraflash_cli.settings import Settings

__all__ = ["PACKAGING", "completions", "man_pages", "write"]

PACKAGING = Path(__file__).parents[2] / "packaging"

_EXIT_STATUS = "The same for every command; see \\fBultraflash\\fR(1)."
_ENVIRONMENT = (
    ("ULTRAFLASH_HOME", "Where downloaded weights are kept, by default ~/.cache/huggingface/ultraflash."),
    ("HF_HOME, HF_HUB_CACHE", "Folder of the Hugging Face hub, and its cache."),
    ("HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE", "Another hub, a login, no network access."),
    ("NO_COLOR", "Print without colour."),
    ("OMP_WAIT_POLICY", "How waiting CPU threads wait, by default PASSIVE: they sleep."),
)
_FILES = ((".NAME.ultraflash", "Finished segments of an unfinished output, next to it; ultraflash clean lists them."),)


class _Roff:
    """Collects the output of a help page as troff with the macros of man(7)."""

    width = 80

    def __init__(self) -> None:
        self.lines: list[str] = []

    def write_usage(self, prog: str, args: str = "", prefix: str | None = None) -> None:
        self.lines += [".SH SYNOPSIS", f".B {_roff(prog)}", _roff(args)]

    def write_heading(self, heading: str) -> None:
        self.lines.append(f".SH {heading.upper()}")

    def write_paragraph(self) -> None:
        self.lines.append(".PP")

    def write_text(self, text: str) -> None:
        paragraphs = re.split(r"\n\s*\n", text.strip())
        for number, paragraph in enumerate(paragraphs):
            self.lines += [".PP"] * bool(number) + [_roff(" ".join(paragraph.split()))]

    def write_dl(self, rows: Any, **_: Any) -> None:
        for term, text in rows:
            self.lines += [".TP", f".B {_roff(term)}", _roff(" ".join(text.split()))]

    def write(self, text: str) -> None:
        """Take examples: a line to type, and below it what it makes."""
        for line in text.splitlines():
            if line.startswith("      "):
                self.lines.append(_roff(line.strip()))
            else:
                self.lines += [".TP", f".B {_roff(line.strip())}"]

    @contextmanager
    def section(self, name: str) -> Generator[None]:
        self.write_heading(name)
        yield

    @contextmanager
    def indentation(self) -> Generator[None]:
        """Open the description, the only text that a page indents itself."""
        self.write_heading("Description")
        yield


def man_pages() -> dict[str, str]:
    """Return the name and the content of each man page: one of the program, one per command."""
    root: Any = typer.main.get_command(app)
    context = root.context_class(root, info_name="ultraflash", obj=Console(Settings()))
    commands = {name: each for name, each in root.commands.items() if not each.hidden}
    pages = {"ultraflash.1": _page("ultraflash", root, context, [f"ultraflash-{name}" for name in commands])}
    for name, command in commands.items():
        inner = command.context_class(command, info_name=name, parent=context)
        pages[f"ultraflash-{name}.1"] = _page(f"ultraflash-{name}", command, inner, ["ultraflash"])
    return pages


def completions() -> dict[str, str]:
    """Return the name and the content of each file of shell completion."""
    bash, zsh, fish = map(_completion, ("bash", "zsh", "fish"))
    # When loaded by name, the file is the function: its first call must complete as
    # well.
    called = 'if [ "$funcstack[1]" = "_ultraflash" ]; then\n  _ultraflash_completion "$@"\nfi\n'
    return {"ultraflash": bash, "_ultraflash": zsh + "\n" + called, "ultraflash.fish": fish}


def write() -> None:
    """Write all files; those of removed commands are deleted."""
    for folder, files in (("man", man_pages()), ("completions", completions())):
        (PACKAGING / folder).mkdir(exist_ok=True)
        for path in (PACKAGING / folder).iterdir():
            if path.name not in files:
                path.unlink()
        for name, content in files.items():
            (PACKAGING / folder / name).write_text(content, encoding="utf-8")


def _page(name: str, command: Any, context: Any, also: list[str]) -> str:
    roff = _Roff()
    summary = command.get_short_help_str(1000).rstrip(".")
    roff.lines += [f'.TH {name.upper()} 1 "" "ultraflash" "User Commands"']
    roff.lines += [".SH NAME", rf"{_roff(name)} \- {_roff(summary[0].lower() + summary[1:])}"]
    command.format_help(context, roff)
    for child, inner in getattr(command, "commands", {}).items():
        if context.parent is not None and not inner.hidden:
            _add_inner(roff, child, inner, context)
    if context.parent is None:
        roff.lines += [".SH ENVIRONMENT"]
        roff.write_dl(_ENVIRONMENT)
        roff.lines += [".SH FILES"]
        roff.write_dl(_FILES)
    else:
        roff.lines += [".SH EXIT STATUS", _EXIT_STATUS]
    roff.lines += [".SH SEE ALSO", ",\n".join(rf".BR {_roff(other)} (1)" for other in also)]
    text = "\n".join(line for line in roff.lines if line)
    return re.sub(r"\(1\),$", "(1),", text, flags=re.MULTILINE) + "\n"


def _add_inner(roff: _Roff, name: str, command: Any, parent: Any) -> None:
    """Append the help of one command of a group, its headings one level lower."""
    inner = _Roff()
    command.format_help(command.context_class(command, info_name=name, parent=parent), inner)
    roff.lines.append(f'.SH "{_roff(f"{parent.command_path} {name}".upper())}"')
    for line in inner.lines:
        if line == ".SH DESCRIPTION":
            line = ".PP"
        elif line == ".SH SYNOPSIS":
            continue
        roff.lines.append(line.replace(".SH", ".SS") if line.startswith(".SH") else line)


def _completion(shell: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "ultraflash_cli"],
        env={**os.environ, "_ULTRAFLASH_COMPLETE": f"source_{shell}"},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip() + "\n"


def _roff(text: str) -> str:
    escaped = text.replace("\\", r"\e").replace("-", r"\-").replace("'", r"\(aq").replace("`", r"\(ga")
    return rf"\&{escaped}" if escaped.startswith((".", "'")) else escaped
