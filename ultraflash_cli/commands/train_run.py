"""`ultraflash train run RECIPE`: one command for each recipe."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ultraflash_cli.console import Console
from ultraflash_cli.errors import UsageError
from ultraflash_cli.options import JsonOption, ThreadsOption, with_console
from ultraflash_cli.train.recipes import Recipe

if TYPE_CHECKING:
    from ultraflash_cli.train.cost import Cost

__all__ = ["pairs_of", "recipe_command"]

_DATA = {
    "material": "Prepared material.",
    "pairs": "Pairs of make-pairs.",
    "scenes": "Encoded scenes; without them, new ones are rendered.",
}
"""Help of `--data`, by the kind of data."""


def recipe_command(recipe: Recipe, *, old: bool = False) -> Callable[..., int | None]:
    """Return the command of a recipe; `old` warns that `run` is missing before the
    recipe's name."""

    @with_console(hidden=True)
    def train(
        console: Console,
        steps: Annotated[int, typer.Option("--steps", metavar="N", help="Total number of optimiser steps.")],
        out: Annotated[
            Path | None, typer.Option("--out", metavar="DIR", help="Folder of the run; an interrupted run resumes.")
        ] = None,
        data: Annotated[
            Path | None,
            typer.Option(
                "--data",
                metavar="DIR",
                help=_DATA[recipe.learns_from],
            ),
        ] = None,
        threads: ThreadsOption = None,
        workers: Annotated[
            int, typer.Option("--workers", metavar="N", help="Data-loading processes; 0 loads in the main process.")
        ] = 1,
        seed: Annotated[int, typer.Option("--seed", metavar="N", help="Seed of weights and batches.")] = 1,
        start_from: Annotated[
            list[str] | None,
            typer.Option(
                "--start-from",
                metavar="[ROLE=]FILE",
                help="EMA weights of a run, or weights of one role; repeatable.",
            ),
        ] = None,
        toy: Annotated[bool, typer.Option("--toy", help="Small networks and clips, for a quick try.")] = False,
        model: Annotated[
            str | None,
            typer.Option(
                "--profile",
                metavar="NAME|FILE",
                help="Model to train: lite, ultraflash, or a TOML file.",
            ),
        ] = None,
        settings: Annotated[
            list[str] | None,
            typer.Option("--set", metavar="KEY=VALUE", help="Setting, such as loop.rate=1e-5; repeatable."),
        ] = None,
        device: Annotated[
            Literal["auto", "cpu", "cuda"], typer.Option("--device", help="Where the networks run.")
        ] = "auto",
        precision: Annotated[
            Literal["fp32", "bf16"] | None, typer.Option("--precision", help="Precision; weights stay float32.")
        ] = None,
        batch: Annotated[int | None, typer.Option("--batch", metavar="N", help="Clips per batch.")] = None,
        accumulate: Annotated[int, typer.Option("--accumulate", metavar="N", help="Batches per optimiser step.")] = 1,
        save_every: Annotated[
            int | None,
            typer.Option("--save-every", metavar="N", help="Steps between checkpoints, plots and samples."),
        ] = None,
        validate_every: Annotated[
            int | None,
            typer.Option(
                "--validate-every", metavar="N", min=1, help="Steps between validations (PSNR, LPIPS, edges)."
            ),
        ] = None,
        validate_data: Annotated[
            Path | None,
            typer.Option("--validate-data", metavar="DIR", help="Held-out data to validate on, prepared like --data."),
        ] = None,
        log_every: Annotated[
            int | None, typer.Option("--log-every", metavar="N", help="Steps per line of the log.")
        ] = None,
        reward: Annotated[
            list[str] | None,
            typer.Option(
                "--reward",
                metavar="NAME=WEIGHT",
                help="Reward instead of the recipe's own: texture, temporal, lpips, MODULE:FUNCTION.",
                hidden=recipe.name != "causal_dmd",
            ),
        ] = None,
        condition: Annotated[
            Literal["none", "lr"] | None,
            typer.Option(
                "--condition",
                help="lr: the decoder also reads the low-resolution frames.",
                hidden=recipe.name != "decoder",
            ),
        ] = None,
        shard: Annotated[
            bool, typer.Option("--shard", help="Shard trained networks over the processes of torchrun (FSDP2).")
        ] = False,
        shard_frozen: Annotated[bool, typer.Option("--shard-frozen", help="Also shard frozen transformers.")] = False,
        dry_run: Annotated[
            bool, typer.Option("--dry-run", help="Print memory, FLOPs and hours; train nothing.")
        ] = False,
        gpus: Annotated[int, typer.Option("--gpus", metavar="N", help="With --dry-run: number of GPUs.")] = 8,
        gpu_memory: Annotated[
            str,
            typer.Option("--gpu-memory", metavar="SIZE", help="With --dry-run: memory of a GPU."),
        ] = "80GB",
        rate: Annotated[
            float,
            typer.Option("--rate", metavar="TFLOPS", help="With --dry-run: speed of a GPU."),
        ] = 400.0,
        json: JsonOption = False,
        tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Also write TensorBoard event files.")] = False,
    ) -> None:
        from ultraflash_cli.host import keep_freed_memory, parse_memory, usable_cores
        from ultraflash_cli.train.cost import Fleet, cost_of_job
        from ultraflash_cli.train.run import TrainJob, run
        from ultraflash_cli.train.settings import parse_settings

        if old:
            console.warning(f"'train {recipe.name}' is an old spelling; use train run {recipe.name}")
        if out is None and not dry_run:
            raise UsageError("--out DIR is missing; the folder of the run")
        whole, parts = _starts(start_from)
        job = TrainJob(
            recipe=recipe.name,
            data=data,
            out=out or Path(),
            needs_data=not dry_run,
            steps=steps,
            seed=seed,
            threads=threads or usable_cores(),
            workers=workers,
            start_from=whole,
            start_parts=parts,
            changes=tuple(parse_settings(pairs_of("--set", settings)).items()),
            toy=toy,
            profile=model,
            device=device,
            precision=precision,
            batch=batch,
            accumulate=accumulate,
            save_every=save_every,
            log_every=log_every,
            validate_every=validate_every,
            validate_data=validate_data,
            rewards=_numbers("--reward", reward),
            condition=condition,
            shard=shard or shard_frozen,
            shard_frozen=shard_frozen,
            tensorboard=tensorboard,
        )
        if dry_run:
            if gpus < 1 or rate <= 0:
                raise UsageError("--gpus must be at least 1 and --rate positive")
            fleet = Fleet(
                gpus=gpus,
                gpu_bytes=parse_memory(gpu_memory, option="--gpu-memory"),
                tflops=rate,
                shard_frozen=shard_frozen,
            )
            show_cost(console, cost_of_job(job, fleet), json=json)
            return
        keep_freed_memory()
        run(
            job,
            on_save=lambda done: console.info(f"{done} of {steps} steps"),
            on_scores=lambda done, scores: console.info(f"{done} of {steps} steps: {scores}"),
            warn=console.warning,
        )
        console.info(f"EMA weights, record, log and pictures in {out}")

    return train


def show_cost(console: Console, cost: "Cost", *, json: bool) -> None:
    """Print the cost of a run."""
    fleet = cost.fleet
    if json:
        console.data(
            {
                "memory_bytes": cost.memory,
                "total_bytes": cost.total_bytes,
                "spare_bytes": cost.spare_bytes,
                "host_bytes": cost.host_bytes,
                "flops_per_step": cost.flops_per_step,
                "flops_of_turns": cost.turns,
                "clips_per_step": cost.clips_per_step,
                "seconds_per_step": cost.seconds_per_step,
                "hours": cost.hours,
            }
        )
        return

    for name, size in cost.memory.items():
        console.text(f"{name:32}{size / 1e9:8.2f} GB")

    everywhere = f"on each of {fleet.gpus} GPUs" if fleet.gpus > 1 else "on the GPU"
    verdict = "to spare" if cost.spare_bytes >= 0 else "too much"
    console.text(
        f"{everywhere:32}{cost.total_bytes / 1e9:8.2f} GB, "
        f"{abs(cost.spare_bytes) / 1e9:.2f} GB {verdict} of {fleet.gpu_bytes / 1e9:g}"
    )
    console.text(f"{'host memory of a process':32}{cost.host_bytes / 1e9:8.2f} GB while it starts")
    for name, flops in cost.turns.items():
        console.text(f"{'one turn of ' + name:32}{flops / 1e15:8.3f} PFLOP")

    console.text(
        f"{'a step, on each GPU':32}{cost.flops_per_step / 1e15:8.3f} PFLOP, "
        f"{cost.clips_per_step} clips, {cost.seconds_per_step:.3g} s at {fleet.tflops:g} TFLOP/s"
    )
    console.text(f"{f'{cost.steps} steps':32}{cost.hours:8.{1 if cost.hours >= 1 else 2}f} h")


def _starts(values: list[str] | None) -> tuple[tuple[Path, ...], tuple[tuple[str, Path], ...]]:
    """Return the weight files of runs, and those of single roles (ROLE=FILE)."""
    whole, parts = list[Path](), list[tuple[str, Path]]()
    for value in values or []:
        role, separator, path = value.partition("=")
        if separator and re.fullmatch(r"[a-z_]+(\.\d+)?", role):
            parts.append((role, Path(path)))
        else:
            whole.append(Path(value))
    return tuple(whole), tuple(parts)


def pairs_of(option: str, values: list[str] | None) -> list[tuple[str, str]]:
    for value in values or []:
        if not value.partition("=")[0] or not value.partition("=")[2]:
            raise UsageError(f"{option} must be NAME=VALUE, got {value!r}")
    return [(value.partition("=")[0], value.partition("=")[2]) for value in values or []]


def _numbers(option: str, values: list[str] | None) -> tuple[tuple[str, float], ...]:
    try:
        return tuple((name, float(weight)) for name, weight in pairs_of(option, values))
    except ValueError as error:
        raise UsageError(f"{option} must be NAME=NUMBER: {error}") from error
