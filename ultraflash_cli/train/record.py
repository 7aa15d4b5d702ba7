"""Record of what produced the weights of a run, stored in its folder."""

import json
from dataclasses import dataclass
from pathlib import Path

from ultraflash_cli.errors import InputError

__all__ = ["RECORD", "VALIDATION", "RunRecord", "read_record"]

RECORD = "run.json"
"""What made them."""

VALIDATION = "validation.jsonl"
"""The scores of every validation."""


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """Record of what produced the weights of a run."""

    recipe: str
    """Name of the recipe."""
    recipe_hash: str
    """Hash over the recipe's settings and its source."""
    config: str
    """Every setting, seed and steps among them."""
    data_hash: str
    """Hash over the material."""
    start_hash: str
    """Hash of the weights it started from; empty for fresh ones."""
    seed: int
    """Seed of all random choices."""
    steps: int
    """Steps done."""
    processes: int = 1
    """Processes that trained together."""
    batches: int = 1
    """Batches of a step: processes times accumulation."""

    def is_same_run(self, other: "RunRecord") -> bool:
        """Return whether the other record belongs to a part of the same run, on as many
        batches a step, whatever the number of processes."""
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
