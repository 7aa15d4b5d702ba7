"""The record of how the weights of a run were produced, stored in its folder."""

import json
from dataclasses import dataclass
from pathlib import Path

from ultraflash_cli.errors import InputError

__all__ = ["RECORD", "VALIDATION", "RunRecord", "read_record"]

RECORD = "run.json"
"""File name of the record."""

VALIDATION = "validation.jsonl"
"""File name of the validation scores."""


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """Record of how the weights of a run were produced."""

    recipe: str
    """Name of the recipe."""
    recipe_hash: str
    """Hash of the recipe's settings and source code."""
    config: str
    """Every setting, including seed and steps."""
    data_hash: str
    """Hash of the material."""
    start_hash: str
    """Hash of the initial weights; empty if they were random."""
    seed: int
    """Seed of all random choices."""
    steps: int
    """Steps done."""
    processes: int = 1
    """Number of processes that trained together."""
    batches: int = 1
    """Batches per step: processes times accumulation."""

    def is_same_run(self, other: "RunRecord") -> bool:
        """Return whether the other record belongs to the same run, with equally many
        batches per step on any number of processes."""
        mine, theirs = (
            (record.recipe, record.config, record.data_hash, record.start_hash, record.batches)
            for record in (self, other)
        )
        return mine == theirs


def read_record(folder: Path) -> RunRecord:
    """Return the record of a run. Raises InputError if there is none."""
    try:
        return RunRecord(**json.loads((folder / RECORD).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{folder}: contains no finished part of a training run ({error})") from error
