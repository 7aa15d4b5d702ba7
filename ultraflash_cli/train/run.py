"""Run a recipe on its material: build or resume networks, train, write EMA weights and
a record."""

import hashlib
import inspect
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, cast

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ultraflash_cli.errors import UsageError, WeightsError
from ultraflash_cli.train import scenes
from ultraflash_cli.train.data import Material, data_hash, load_materials
from ultraflash_cli.train.encoded import holds_encoded, open_encoded
from ultraflash_cli.train.large import comes_encoded
from ultraflash_cli.train.latents import open_scene_latents
from ultraflash_cli.train.loop import Prefetcher, generator_of, moved, run_loop
from ultraflash_cli.train.pairs import pairs_hash
from ultraflash_cli.train.process_group import ProcessGroup, joined_group
from ultraflash_cli.train.recipe import RecipeModule, Weights, helpers_of, merged
from ultraflash_cli.train.recipes import RECIPES
from ultraflash_cli.train.record import RECORD, VALIDATION, RunRecord, read_record
from ultraflash_cli.train.report import write_report
from ultraflash_cli.train.run_log import NOT_LOSSES, RunLog, plot_losses
from ultraflash_cli.train.scene_pairs import holds_scene_pairs, open_scene_pairs
from ultraflash_cli.train.settings import changed, find_profile
from ultraflash_cli.train.validation import Scores, mean_scores, scores_of
from ultraflash_cli.video.partial import output_errors, partial_file
from ultraflash_cli.video.stills import write_png
from ultraflash_cli.weights.convert import plain_tensors
from ultraflash_cli.weights.load import read_tensors

__all__ = ["AVERAGE", "TrainJob", "run"]

AVERAGE = "average.safetensors"
"""The EMA weights of all roles but helpers, written at every checkpoint."""

SHOWN_BATCH = 1_000_000_007
"""Number of the batch in sample pictures, which no run reaches."""


@dataclass(frozen=True, kw_only=True)
class TrainJob:
    """Settings of a training run: the recipe, its data and options."""

    recipe: str
    """A name in ``RECIPES``."""
    data: Path | None = None
    """Folder of prepared material or of encoded scenes; None for a recipe that renders its own scenes."""
    out: Path
    """Folder of the run; an interrupted run is resumed."""
    steps: int
    """Total optimiser steps, over which the learning rate decays."""
    seed: int = 1
    """Seed of the initial weights and of all random choices."""
    threads: int = 1
    """CPU threads of the networks."""
    workers: int = 1
    """Data-loading processes; 0 loads in the main process."""
    start_from: tuple[Path, ...] = ()
    """Weights to start from: the EMA weights of other runs; if several contain the same
    tensor, the last file wins."""
    start_parts: tuple[tuple[str, Path], ...] = ()
    """Roles and published checkpoints to start them from; tensors of ``start_from``
    take precedence."""
    toy: bool = False
    """Whether to use small sizes, for a trial run of a few minutes."""
    profile: str | None = None
    """A name in ``TRAINED``, or a TOML file (``settings.find_profile``): the model to
    train, for recipes that support several; None is the recipe's default."""
    changes: tuple[tuple[str, Any], ...] = ()
    """Changed settings of the recipe, by dotted name."""
    device: Literal["auto", "cpu", "cuda"] = "cpu"
    """Device of the networks; auto is a GPU if there is one."""
    precision: Literal["fp32", "bf16"] | None = None
    """See ``LoopConfig.precision``; None is the recipe's default."""
    batch: int | None = None
    """Number of clips in a batch; None is the recipe's default."""
    accumulate: int = 1
    """Batches whose gradients are accumulated in one step."""
    save_every: int | None = None
    """Steps between checkpoints; None is the recipe's default."""
    log_every: int | None = None
    """Steps per line of the log; None is the recipe's default."""
    rewards: tuple[tuple[str, float], ...] = ()
    """Rewards by name and weight; empty keeps the recipe's defaults."""
    condition: str | None = None
    """Additional input of the decoder, see ``DecoderRecipeConfig.condition``; None is
    the recipe's default."""
    shard: bool = False
    """Whether learners are sharded over the torchrun processes instead of
    replicated."""
    shard_frozen: bool = False
    """Whether frozen transformers are sharded as well."""
    needs_data: bool = True
    """Whether the run needs data; a dry run does not."""
    tensorboard: bool = False
    """Whether to write TensorBoard event files as well."""
    validate_every: int | None = None
    """Steps between validations; None disables them."""
    validate_data: Path | None = None
    """Folder like ``data`` for validation; None uses batches of ``data`` that no run
    reaches."""
    validate_batches: int = 4
    """Number of validation batches."""

    def __post_init__(self) -> None:
        if self.recipe not in RECIPES:
            raise UsageError(f"unknown recipe {self.recipe!r}; choose from {', '.join(RECIPES)}")
        if min(self.steps, self.threads, self.accumulate) < 1 or self.workers < 0:
            raise UsageError("--steps, --threads and --accumulate must be at least 1, --workers at least 0")
        unpublished = RECIPES[self.recipe].unpublished
        if self.profile is not None and unpublished and comes_encoded(find_profile(self.profile)):
            raise UsageError(f"{self.recipe} does not train {self.profile}: {unpublished}")
        if self.profile is not None and not RECIPES[self.recipe].profiles:
            raise UsageError(f"{self.recipe} supports one model only; remove --profile")
        wanted = RECIPES[self.recipe].learns_from
        if self.needs_data and self.data is None and wanted != "scenes":
            named = {"material": "prepared material", "pairs": "pairs of `make-pairs`"}[wanted]
            raise UsageError(f"{self.recipe} learns from {named}; give --data DIR (docs/training.md)")

    def overrides(self) -> dict[str, Any]:
        """Return the fields of the loop config that were given."""
        given = {"precision": self.precision, "batch": self.batch}
        given |= {"save_every": self.save_every, "log_every": self.log_every}
        return {"accumulate": self.accumulate} | {name: value for name, value in given.items() if value is not None}

    def configure(self, recipe: RecipeModule) -> Any:
        """Return the recipe's settings with the requested changes. Raises UsageError
        for impossible changes."""
        whose = {} if self.profile is None else {"profile": find_profile(self.profile)}
        config: Any = recipe.configure(steps=self.steps, seed=self.seed, toy=self.toy, **whose)
        config = replace(config, loop=replace(config.loop, **self.overrides()))
        if self.rewards:
            if not hasattr(config, "rewards"):
                raise UsageError(f"{self.recipe} does not use rewards; remove --reward")
            config = replace(config, rewards=self.rewards)
        changes = dict(self.changes)
        if self.condition is not None:
            if not hasattr(config, "condition"):
                raise UsageError(f"{self.recipe} trains no decoder that reads frames; remove --condition")
            changes = {"condition": self.condition} | changes
        return changed(config, changes)


def run(
    job: TrainJob,
    *,
    on_save: Callable[[int], None] | None = None,
    on_scores: Callable[[int, Scores], None] | None = None,
    warn: Callable[[str], None] | None = None,
) -> RunRecord:
    """Train until ``job.steps``. ``on_save`` is called with the number of steps at
    every checkpoint, ``on_scores`` also with the scores of every validation, ``warn``
    with warnings. Processes started by ``torchrun`` train together, and the first one
    writes the files. Raises UsageError if the folder contains a different run,
    InputError for unusable material, WeightsError for weights that do not fit.
    """
    wanted = "cpu" if job.device == "auto" and not torch.cuda.is_available() else job.device
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: torch finds no usable GPU")
    device = torch.device("cuda" if wanted == "auto" else wanted)
    with joined_group(device, shards=job.shard, shards_frozen=job.shard_frozen) as (group, device):
        return _run(job, group, device, on_save, on_scores, warn)


def _run(
    job: TrainJob,
    group: ProcessGroup,
    device: torch.device,
    on_save: Callable[[int], None] | None,
    on_scores: Callable[[int, Scores], None] | None,
    warn: Callable[[str], None] | None,
) -> RunRecord:
    recipe = RECIPES[job.recipe].load()
    config = job.configure(recipe)
    compared = clips_of(recipe, job.recipe) if job.validate_every else None
    materials, known = _data(job)
    # The distribution of a step's batches over processes does not matter.
    told = repr(replace(config, loop=replace(config.loop, accumulate=1)))
    record = RunRecord(
        recipe=job.recipe,
        recipe_hash=_short_hash(job.recipe + told + inspect.getsource(cast("ModuleType", recipe))),
        config=told,
        data_hash=known,
        start_hash=_file_hash([*job.start_from, *(path for _, path in job.start_parts)]),
        seed=job.seed,
        steps=0,
        processes=group.size,
        batches=group.size * job.accumulate,
    )
    if (job.out / RECORD).exists() and not read_record(job.out).is_same_run(record):
        raise UsageError(
            f"{job.out}: contains a run with other settings, material or starting weights; choose another --out"
        )
    torch.set_num_threads(job.threads)
    log = RunLog(job.out, tensorboard=job.tensorboard)
    roles: nn.Module = recipe.start(config, materials, _read_weights(job, recipe))
    roles.to(device)
    make = recipe.make(config, job.data)
    batches = Prefetcher(make, workers=job.workers)

    validated = RunLog(job.out, name=VALIDATION)

    def validate(model: nn.Module, step: int) -> None:
        assert compared is not None, "asked for"
        found, held_out = list[Scores](), recipe.make(config, job.validate_data or job.data)
        for number in range(job.validate_batches):
            batch = moved(held_out(SHOWN_BATCH + number), device)
            made, truth = compared(config, model, batch, generator_of(config.loop.seed, "validation", number))
            found.append(scores_of(made, truth))
        scores = mean_scores(found)
        validated.open(step - 1)
        numbers = {name: round(x, 5) for name, x in asdict(scores).items() if x is not None}
        validated.write({**numbers, "step": step})
        log.note({f"validation/{name}": x for name, x in numbers.items()}, step)
        if on_scores is not None:
            on_scores(step, scores)

    def save(model: nn.Module, step: int) -> None:
        _save(job.out, model, replace(record, steps=step), log, helpers_of(recipe))
        picture = recipe.pictures(
            config, model, moved(make(SHOWN_BATCH), device), generator_of(config.loop.seed, "pictures")
        )
        write_png(job.out / "samples" / f"{step:06d}.png", picture)
        log.show("samples", picture, step)
        write_png(job.out / "losses.png", plot_losses(log.rows()))
        write_report(job.out)
        if on_save is not None:
            on_save(step)

    with output_errors(job.out):
        (job.out / "samples").mkdir(parents=True, exist_ok=True)
    try:
        roles = run_loop(
            roles,
            recipe.learners(config),
            batches,
            config.loop,
            job.out,
            on_save=save,
            on_validate=validate if job.validate_every else None,
            validate_every=job.validate_every or 1,
            warn=warn,
            group=group,
            log=log,
        )
    finally:
        batches.close()
    record = replace(record, steps=job.steps)
    if group.is_main:
        _save(job.out, roles, record, log, helpers_of(recipe))
        write_report(job.out)
    return record


def clips_of(recipe: RecipeModule, name: str) -> Callable[..., tuple[Tensor, Tensor]]:
    """Return the recipe's function that computes output and target frames of a batch.
    Raises UsageError if it has none."""
    clips = getattr(recipe, "clips", None)
    if clips is None:
        raise UsageError(f"{name} makes no clips to compare; remove --validate-every")
    return clips


def _data(job: TrainJob) -> tuple[list[Material], str]:
    """Return the material of a run, if it uses any, and the hash of its data."""
    if job.data is None:
        return [], _short_hash(inspect.getsource(scenes))
    match RECIPES[job.recipe].learns_from:
        case "material" if holds_encoded(job.data):
            return [], open_encoded(job.data.absolute()).hash()
        case "material" if holds_scene_pairs(job.data):
            return [], open_scene_pairs(job.data.absolute()).hash()
        case "material":
            materials = load_materials(job.data)
            return materials, data_hash(materials)
        case "pairs":
            return [], pairs_hash(job.data)
        case "scenes":
            return [], open_scene_latents(job.data.absolute()).hash()


def _save(folder: Path, model: nn.Module, record: RunRecord, log: RunLog, helpers: tuple[str, ...]) -> None:
    tensors = {
        name: value.detach().float().cpu().contiguous().clone()
        for name, value in model.state_dict().items()
        if name.split(".")[0] not in helpers
    }
    told = asdict(record)
    metadata = {name: str(told[name]) for name in ("recipe", "recipe_hash", "data_hash", "steps", "seed")}
    last = [row for row in log.rows() if row["step"] <= record.steps][-1:]
    metadata |= {name: str(value) for row in last for name, value in row.items() if name not in NOT_LOSSES}
    with partial_file(folder / AVERAGE) as part:
        save_file(tensors, part, metadata=metadata)
    with partial_file(folder / RECORD) as part:
        part.write_text(json.dumps(asdict(record), indent=1))


def _read_weights(job: TrainJob, recipe: RecipeModule) -> Weights | None:
    """Return the tensors of all files, merged as the recipe defines."""
    for path in [*job.start_from, *(path for _, path in job.start_parts)]:
        if not path.exists():
            raise WeightsError(f"{path}: no such weights")
    weights: Weights = {}
    for role, path in job.start_parts:
        tensors = plain_tensors(path)
        # A file with encoder and decoder provides two roles.
        halves = (f"{role}.", "condition.") if role == "decoder" else (f"{role}.",)
        own = {key: value for key, value in tensors.items() if key.startswith(halves)}
        weights |= {f"{role}.{key}": value for key, value in (own or tensors).items()}
    if job.start_from:
        weights |= merged(recipe, [read_tensors(path) for path in job.start_from])
    return weights or None


def _file_hash(paths: list[Path]) -> str:
    """Return a short hash of the files; empty if there are none."""
    digest = hashlib.sha256()
    for path in paths:
        if path.exists():
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16] if paths else ""


def _short_hash(content: str | bytes) -> str:
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()[:16]
