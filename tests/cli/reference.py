"""docs/cli.md, made from the command's own help: `python -m tests.cli.reference` writes it."""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from ultraflash_cli.console import Console
from ultraflash_cli.main import HELP_WIDTH, app
from ultraflash_cli.settings import Settings

__all__ = ["PAGE", "reference"]

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"

_INTRODUCTION = """\
# The command line

This page is generated from `--help` (`python -m tests.cli.reference`); a test compares the two.

stdout carries data only, everything for people goes to stderr. No question is asked, but for one on a terminal before a
transfer of weights (`-y` answers it). An output appears whole or not at all; an existing one is replaced with `-y`
only. A run that was interrupted goes on when the same command is given again: finished segments lie in a hidden folder
beside the output (`.NAME.ultraflash`), or in `--temp-dir`, until it is complete. SIGINT, SIGTERM or SIGHUP finishes the
group in hand and keeps it; a second SIGINT or SIGTERM leaves at once.

With `-o -` stdout takes a stream, and JSON goes to stderr. The stream is Matroska without an index, or plain frames
with `--codec y4m`; it is written while the clip is made, some 24 frames at a time, so that a player can follow. A pipe
as the input (`-`) is upscaled as it comes, too. Each part is checked before it is written; nothing can be taken back.
When the reader closes the stream, the run ends after the group in hand with exit code 7. What is finished is kept: the
same command writes it again from the start, and goes on. A run that reads from a pipe cannot be resumed, and its
segments are deleted once they are written.

What happens to files:

* **Work folders.** `.NAME.ultraflash` is made for you alone (mode 0700) and never followed through a link: a link, a
  file or another user's folder in its place is refused with exit code 7. Only files that the program itself makes are
  deleted in it, by `clean` as well. Work that only another version of the program or of a library can resume is
  renamed to `.NAME.kept1.ultraflash`; `clean` lists and removes it. A run that has no place of its own, such as one
  with `-o -`, works in `ultraflash-UID` in the system's temporary folder.
* **Inputs.** A run resumes while size and content of its input are the same, whatever its timestamp. Of a file over
  4 MiB, 64 evenly spaced blocks of 64 KiB are compared, of each input picture 8 blocks.
* **Numbered pictures** keep the numbers of the input pictures; `--renumber`, and any other input, starts at 1. Without
  `-y` a run is refused if any picture fits the pattern of its output. With `-y` the pictures it makes are replaced;
  others that fit the pattern are never deleted, a warning names them. Input pictures are never replaced.
* **Links.** With `-o LINK` the file that the link points to is written, beside which the unfinished work lies, and the
  link stays. It needs the same extension as the link, and may be missing. A link under a name that was not given with
  `-o` is refused; links among numbered pictures are replaced.
* **Pipes and devices.** `-o FIFO`, `-o /dev/stdout` and `-o >(program)` take the same stream as `-o -`, and `/dev/null`
  discards it. Other devices and sockets are refused.
* **Logs.** `--log-file` appends to text files only, and to no file that the command reads or writes.

| exit code | meaning |
|---|---|
| 0 | done |
| 1 | unexpected error: please report it with what `-v` shows |
| 2 | usage: wrong flag, a target that makes no sense, an output that exists |
| 3 | input missing, unreadable or unsupported |
| 4 | no usable device |
| 5 | out of memory |
| 6 | the output failed its own check |
| 7 | disk full, output unwritable or in use by another run; the reader of a stream has closed it |
| 8 | weights missing, changed, unusable, or out of reach |
| 9 | some or all files of a batch failed (a lone file keeps its own code) |
| 129, 130, 143 | interrupted; the same command goes on |

`--progress json` writes one JSON object a line on stderr, with `schema` (1) and `event`: `plan`, `start`, `chunk`,
`transfer`, `serve`, `retry`, `warn`, `done`, `error`. `--json` ends with one object a file on stdout.
"""


def reference() -> str:
    """Give the page as Markdown."""
    pages = [f"## `{' '.join(name)}`\n\n```\n{_help(name[1:])}\n```\n" for name in _names(("ultraflash",), _root())]
    return "\n".join([_INTRODUCTION, *pages])


def _root() -> Any:
    return typer.main.get_command(app)


def _names(name: tuple[str, ...], command: Any) -> Iterator[tuple[str, ...]]:
    yield name
    for child, inner in getattr(command, "commands", {}).items():
        yield from _names((*name, child), inner)


def _help(arguments: tuple[str, ...]) -> str:
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        app(
            [*arguments, "--help"],
            prog_name="ultraflash",
            standalone_mode=False,
            terminal_width=HELP_WIDTH,
            obj=Console(Settings()),
        )
    return "\n".join(line.rstrip() for line in shown.getvalue().strip().splitlines())


if __name__ == "__main__":
    PAGE.write_text(reference(), encoding="utf-8")
