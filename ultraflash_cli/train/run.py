"""A recipe run on prepared material: networks built or resumed, the loop, averaged weights and a record."""

import hashlib
import inspect
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ultraflash_cli.errors import InputError, UsageError, WeightsError
from ultraflash_cli.train.data import PairConfig, PairDataset, data_hash, load_materials
from ultraflash_cli.train.loop import Batch, Prefetcher, run_loop
from ultraflash_cli.train.recipes import RECIPES
from ultraflash_cli.video.partial import output_errors, partial_file
from ultraflash_cli.weights.load import read_tensors

__all__ = ["AVERAGE", "RECORD", "RunRecord", "TrainJob", "read_record", "run"]

AVERAGE = "average.safetensors"
"""The averaged weights of all roles, written at every checkpoint."""

RECORD = "run.json"
"""What made them."""


@dataclass(frozen=True, kw_only=True)
class TrainJob:
    """A recipe and what it runs on."""

    recipe: str
    """A name in ``RECIPES``."""
    data: Path
    """Folder of prepared material."""
    out: Path
    """Folder of the run; one that holds the state of the same run goes on."""
    steps: int
    """Optimiser steps in all; the learning rate falls to its end over them."""
    seed: int = 1
    """Seed of initial weights and of every draw."""
    threads: int = 1
    """CPU threads of the networks."""
    workers: int = 1
    """Processes that make batches; 0 makes them in between."""
    start_from: Path | None = None
    """Weights to start from: the average of another run."""

    def __post_init__(self) -> None:
        if self.recipe not in RECIPES:
            raise UsageError(f"no recipe is called {self.recipe!r}; there are {', '.join(RECIPES)}")
        if self.steps < 1 or self.threads < 1 or self.workers < 0:
            raise UsageError("steps and threads are 1 or more, workers 0 or more.")


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """What made the weights of a run."""

    recipe: str
    """Its name."""
    recipe_hash: str
    """Hash over the recipe's settings and its source."""
    config: str
    """Every setting, seed and steps among them."""
    data_hash: str
    """Hash over the material."""
    start_hash: str
    """Hash of the weights it started from; empty for fresh ones."""
    seed: int
    """Seed of every draw."""
    steps: int
    """Steps done."""

    def is_same_run(self, other: "RunRecord") -> bool:
        """Tell whether the other record belongs to a part of the same run."""
        mine, theirs = ((record.recipe, record.config, record.data_hash, record.start_hash) for record in (self, other))
        return mine == theirs


def run(job: TrainJob, *, on_save: Callable[[int], None] | None = None) -> RunRecord:
    """Train until ``job.steps``; ``on_save`` hears the steps done at every checkpoint.

    Raises UsageError where the folder holds another run, InputError for material, WeightsError for weights that
    do not fit.
    """
    recipe = RECIPES[job.recipe].load()
    config: Any = recipe.configure(steps=job.steps, seed=job.seed)
    materials = load_materials(job.data)
    record = RunRecord(
        recipe=job.recipe,
        recipe_hash=_short_hash(job.recipe + repr(config) + inspect.getsource(recipe)),
        config=repr(config),
        data_hash=data_hash(materials),
        start_hash=_short_hash(job.start_from.read_bytes()) if job.start_from and job.start_from.exists() else "",
        seed=job.seed,
        steps=0,
    )
    if (job.out / RECORD).exists() and not read_record(job.out).is_same_run(record):
        raise UsageError(f"{job.out}: holds a run with other settings, material or start. Give another --out.")
    torch.set_num_threads(job.threads)
    roles: nn.Module = recipe.start(config, materials, _read_weights(job.start_from))
    make = partial(_make, job.data.absolute(), config.pairs, config.loop.seed, config.scale_odds, config.loop.batch)
    batches = Prefetcher(make, workers=job.workers)

    def save(model: nn.Module, step: int) -> None:
        _save(job.out, model, replace(record, steps=step))
        if on_save is not None:
            on_save(step)

    with output_errors(job.out):
        job.out.mkdir(parents=True, exist_ok=True)
    try:
        roles = run_loop(
            roles, partial(recipe.loss, config), batches, config.loop, job.out, is_kernel=recipe.is_kernel, on_save=save
        )
    finally:
        batches.close()
    _save(job.out, roles, replace(record, steps=job.steps))
    return read_record(job.out)


def read_record(folder: Path) -> RunRecord:
    """Return the record of a run. Raises InputError where there is none."""
    try:
        return RunRecord(**json.loads((folder / RECORD).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{folder}: holds no finished part of a training run ({error}).") from error


def _save(folder: Path, model: nn.Module, record: RunRecord) -> None:
    tensors = {name: value.detach().float().contiguous().clone() for name, value in model.state_dict().items()}
    with partial_file(folder / AVERAGE) as part:
        save_file(tensors, part)
    with partial_file(folder / RECORD) as part:
        part.write_text(json.dumps(asdict(record), indent=1))


def _read_weights(path: Path | None) -> dict[str, Tensor] | None:
    if path is None:
        return None
    if not path.exists():
        raise WeightsError(f"{path}: no such weights to start from.")
    return read_tensors(path)


def _make(
    data: Path, pairs: PairConfig, seed: int, scale_odds: tuple[tuple[int, float], ...], size: int, number: int
) -> Batch:
    """Return batch ``number``; the same in any process."""
    return _dataset(data, pairs, seed, scale_odds).batch(number, size)


@lru_cache(maxsize=1)
def _dataset(data: Path, pairs: PairConfig, seed: int, scale_odds: tuple[tuple[int, float], ...]) -> PairDataset:
    return PairDataset(load_materials(data), pairs, seed=seed, scale_of=dict(scale_odds))


def _short_hash(content: str | bytes) -> str:
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()[:16]
