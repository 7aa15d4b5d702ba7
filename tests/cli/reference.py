"""docs/cli.md, generated from the program's help: `python -m tests.cli.reference` writes it.

The man pages and the files of shell completion in packaging/ are written with it.
"""

import contextlib
import io
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import typer

from tests.cli import json_reference, shell_files
from ultraflash_cli.console import Console
from ultraflash_cli.errors import Interrupted, UltraflashError
from ultraflash_cli.main import HELP_WIDTH, app
from ultraflash_cli.settings import Settings

__all__ = ["PAGE", "exit_codes", "reference"]

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"

_INTRODUCTION = """\
# The command line

This page is generated from `--help` (`python -m tests.cli.reference`); a test compares
the two.

stdout carries data only; all messages go to stderr. The program never prompts, except
before downloading weights on a terminal (`-y` skips it). An output appears whole or not
at all; an existing one is only replaced with `-y`. To resume an interrupted run, run
the same command again: finished segments are kept in a hidden folder next to the output
(`.NAME.ultraflash`), or in `--temp-dir`, until the output is complete. SIGINT, SIGTERM
and SIGHUP finish the current group of frames and keep it; a second SIGINT or SIGTERM
exits immediately.

With `-o -` the video goes to stdout and JSON to stderr. The stream is Matroska without
an index, or raw frames with `--codec y4m`. It is written during the run, about
24 frames at a time, so a player can follow. Input from a pipe (`-`) is upscaled as it
arrives. Each part is checked before it is written. When the reader closes the stream,
the run finishes the current group and exits with code 7. Finished work is kept: the
same command writes it again from the start, then continues. A run that reads from a
pipe cannot be resumed, and its segments are deleted once written.

Files:

* **Work folders.** `.NAME.ultraflash` is private (mode 0700) and never followed
  through a symlink: a symlink, a file or another user's folder in its place is refused
  (exit code 7).
  Only files created by the program are deleted in it, also by `clean`. Work that only
  another version of the program or of a library can resume is renamed to
  `.NAME.kept1.ultraflash`; `clean` lists and removes it. A run without a place of its
  own, such as `-o -`, uses `ultraflash-UID` in the system's temporary folder.
* **Inputs.** A run resumes as long as the size and content of its input are the same;
  its modification time does not matter. For files over 4 MiB, 64 evenly spaced blocks
  of 64 KiB are compared, for each input image 8 blocks.
* **Numbered images** keep the numbers of the input images; with `--renumber`, and for
  any other input, numbering starts at 1. Without `-y` a run is refused if any existing
  image matches the output pattern. With `-y` the images it makes are replaced; others
  that match the pattern are never deleted, and a warning names them. Input images are
  never replaced.
* **Symlinks.** `-o LINK` writes the file that the symlink points to, with unfinished
  work next to that file, and keeps the symlink. The target needs the same extension as
  the symlink, and may be missing. A symlink at a default output name is refused;
  symlinks among numbered images are replaced.
* **Pipes and devices.** `-o FIFO`, `-o /dev/stdout` and `-o >(program)` take the same
  stream as `-o -`; `/dev/null` discards it. Other devices and sockets are refused.
* **Logs.** `--log-file` only appends to text files, and to no file that the command
  reads or writes.

| exit code | meaning |
|---|---|
EXIT_CODES

`--progress json` prints one JSON object per line on stderr, with `schema` (1) and
`event`: `plan`, `start`, `chunk`, `transfer`, `serve`, `retry`, `warn`, `done`, `error`.
`--json` ends with one object per file on stdout. `docs/schemas` has a JSON schema
for the results of `upscale`, `generate`, `compare`, `explain`, `probe`, `doctor`,
`bench` and `clean`, and for the events; [JSON for scripts](reference/json.md) lists
their fields.
"""


def reference() -> str:
    """Return the page as Markdown."""
    pages = [f"## `{' '.join(name)}`\n\n```\n{_help(name[1:])}\n```\n" for name in _names(("ultraflash",), _root())]
    introduction = _INTRODUCTION.replace(
        "EXIT_CODES", "\n".join(f"| {code} | {meaning} |" for code, meaning in exit_codes())
    )
    return "\n".join([introduction, *pages])


def exit_codes() -> list[tuple[str, str]]:
    """Return the table of exit codes, made from the error classes."""
    rows = [(0, "0", "Done."), (1, "1", "Unexpected error; please report it with the output of `-v`.")]
    for error in UltraflashError.__subclasses__():
        code = Interrupted("").exit_code if error is Interrupted else error.exit_code
        shown = "129, 130, 143" if error is Interrupted else str(code)
        rows.append((code, shown, (error.__doc__ or "").partition("\n")[0]))
    return [(shown, meaning) for _, shown, meaning in sorted(rows)]


@cache
def _root() -> Any:
    return typer.main.get_command(app)


def _names(name: tuple[str, ...], command: Any) -> Iterator[tuple[str, ...]]:
    yield name
    for child, inner in getattr(command, "commands", {}).items():
        if not inner.hidden:
            yield from _names((*name, child), inner)


def _help(arguments: tuple[str, ...]) -> str:
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        _root()(
            [*arguments, "--help"],
            prog_name="ultraflash",
            standalone_mode=False,
            terminal_width=HELP_WIDTH,
            obj=Console(Settings()),
        )
    return "\n".join(line.rstrip() for line in shown.getvalue().strip().splitlines())


if __name__ == "__main__":
    PAGE.write_text(reference(), encoding="utf-8")
    shell_files.write()
    json_reference.PAGE.write_text(json_reference.page(), encoding="utf-8")
