"""Pulls in this process, and their helpers."""

import json
import sys
from dataclasses import replace
from typing import Any

import pytest

from ultraflash_cli.main import main
from ultraflash_cli.weights.manifest import WeightEntry
from ultraflash_cli.weights.store import WeightStore

__all__ = ["COMMAND", "NAME", "PIECE", "TOKENIZER", "ULTRAFLASH", "WAN", "left", "pull", "refused", "unlocked"]

NAME = "wan/tokenizer/spiece.model"
COMMAND = (sys.executable, "-m", "ultraflash_cli")

ULTRAFLASH, WAN = "xin1u/UltraFlash", "Wan-AI/Wan2.1-T2V-1.3B"

TOKENIZER = {
    "google/umt5-xxl/spiece.model": b"\n\x0e\n\x05<pad>" + bytes(range(256)) * 400,
    "google/umt5-xxl/tokenizer.json": b'{"version": "1.0"}',
    "google/umt5-xxl/tokenizer_config.json": b'{"tokenizer_class": "T5Tokenizer"}',
    "google/umt5-xxl/special_tokens_map.json": b'{"eos_token": "</s>"}',
}

PIECE = 10 * 2**20
"""Number of bytes that the hub library writes at once."""


def unlocked(entry: WeightEntry) -> WeightEntry:
    """Return the entry as it would be listed if only names were known."""
    if entry.packaged:
        return entry
    places = tuple(replace(each, revision=None, sha256=None, bytes=None) for each in entry.alternatives)
    return replace(entry, revision=None, sha256=None, bytes=None, alternatives=places)


def pull(capsys: pytest.CaptureFixture[str], *arguments: object) -> list[dict[str, Any]]:
    """Pull in this process and return the reported events."""
    assert main(["weights", "pull", *map(str, arguments), "--json"]) == 0, capsys.readouterr().err
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def refused(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 8) -> str:
    """Run a command that must fail with a one-line message, and return the line."""
    got = main([*map(str, arguments), "-q"])
    shown = capsys.readouterr()
    assert (got, shown.out) == (code, ""), shown.err
    (line,) = shown.err.splitlines()
    assert line.startswith("error: ")
    return line


def left(store: WeightStore) -> list[str]:
    """Return the downloads that are kept for later."""
    return sorted(path.name for path in store.downloads.glob("*") if path.name != "lock")
