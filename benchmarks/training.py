"""Run the training commands of docs/training.md at toy size, one after the other, and record what they did.

    python -m benchmarks.training --work FOLDER                       # all of them, as documented
    python -m benchmarks.training --work FOLDER --share 0.2           # with a fifth of the steps
    python -m benchmarks.training --work FOLDER --only causal_dmd     # when those before it have run there

Each recipe leaves benchmarks/training/toy_RECIPE.json: command, steps, seconds, first and last losses, the curve.
"""

import argparse
import json
import os
import platform
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ultraflash_cli.train.run_log import NOT_LOSSES

__all__ = ["Command", "commands_of", "main", "summary"]

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "training"
CURVE_POINTS = 20


@dataclass(frozen=True)
class Command:
    """One documented command."""

    words: tuple[str, ...]
    """Arguments after ``ultraflash train``."""

    @property
    def recipe(self) -> str:
        """Name of the recipe that it runs."""
        return self.words[self.words[0] == "run"]

    def within(self, work: Path, share: float) -> "Command":
        """Return the command with its folders inside ``work`` and a share of its steps,
        at least two."""
        words = list(self.words)
        for at, word in enumerate(words[:-1]):
            if word in ("--data", "--out", "--start-from"):
                words[at + 1] = str(work / words[at + 1])
            if word == "--steps":
                words[at + 1] = str(max(2, round(share * int(words[at + 1]))))
        return Command(tuple(words))

    def value(self, option: str) -> str:
        """Return the value of an option."""
        return self.words[self.words.index(option) + 1]


def commands_of(page: str) -> list[Command]:
    """Return the toy-size versions of a page's commands, in order, starting with the
    preparation of their scenes."""
    found = re.findall(r"^ultraflash train (.*)$", page, re.MULTILINE)
    commands = [Command(tuple(shlex.split(line))) for line in found if not line.endswith("\\")]

    def prepares(each: Command) -> bool:
        made_of_scenes = each.recipe == "prepare" and "--scenes" in each.words
        return made_of_scenes or (each.recipe == "make-pairs" and each.value("--out").startswith("toy"))

    return [each for each in commands if "--toy" in each.words or prepares(each)]


def summary(command: Command, rows: Sequence[dict[str, Any]], *, seconds: float) -> dict[str, Any]:
    """Return a summary of a run: about twenty rows of its log."""
    losses = [name for name in rows[-1] if name not in NOT_LOSSES]
    every = max(1, len(rows) // CURVE_POINTS)
    kept = [row for at, row in enumerate(rows) if at % every == 0 or at == len(rows) - 1]
    return {
        "recipe": command.recipe,
        "command": shlex.join(["ultraflash", "train", *command.words]),
        "steps": rows[-1]["step"],
        "seconds": round(seconds, 1),
        "first": {name: next(row[name] for row in rows if name in row) for name in losses},
        "last": {name: rows[-1][name] for name in losses},
        "curve": [{name: row[name] for name in ("step", *losses) if name in row} for row in kept],
    }


def log_often(command: Command) -> list[str]:
    """Return the option that sets how often a run logs."""
    return ["--log-every", str(max(1, int(command.value("--steps")) // CURVE_POINTS))]


def run(command: Command, *, shown: Command) -> dict[str, Any]:
    """Run a command; return its summary with the command line to repeat it."""
    out = Path(command.value("--out"))
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "ultraflash_cli", "train", *command.words], check=True, cwd=ROOT)
    seconds = time.perf_counter() - started
    log = out / "log.jsonl"
    if not log.exists():
        return {}
    return summary(shown, [json.loads(line) for line in log.read_text().splitlines()], seconds=seconds)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the commands and write a file per recipe; stop at the first failure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of material and runs")
    parser.add_argument("--share", type=float, default=1.0, help="of the documented steps (1)")
    parser.add_argument("--only", nargs="+", help="these recipes; those they start from have run in --work")
    parser.add_argument("--options", type=shlex.split, default=[], help="more options for the recipes, quoted")
    parser.add_argument("--note", help="what a reader of the numbers should know, such as what else was running")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "training.md")
    parser.add_argument("--out", type=Path, default=RESULTS)
    settings = parser.parse_args(arguments)
    settings.out.mkdir(parents=True, exist_ok=True)
    for shown in commands_of(settings.page.read_text(encoding="utf-8")):
        if settings.only and shown.recipe not in settings.only:
            continue
        command = shown.within(settings.work, settings.share)
        more = [] if command.words[0] != "run" else [*log_often(command), *settings.options]
        print(f"{command.recipe} ...", file=sys.stderr)
        found = run(Command((*command.words, *more)), shown=shown)
        if not found:
            continue
        found |= {
            "date": date.today().isoformat(),
            "device": {"machine": platform.machine(), "cores": len(os.sched_getaffinity(0)), "torch": version("torch")},
            "documented_steps": int(shown.value("--steps")),
            "options": more,
            "note": settings.note,
        }
        target = settings.out / f"toy_{command.recipe}.json"
        target.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print(f"{command.recipe}: {found['steps']} steps in {found['seconds']:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
