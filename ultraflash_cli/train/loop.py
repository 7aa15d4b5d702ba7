"""One loop for every recipe: learners in turn, batches by number, EMA weights, checkpoints, a log."""

import math
import os
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ultraflash_cli.engine.seeds import generator_of
from ultraflash_cli.errors import ConfigError
from ultraflash_cli.train.crew import ALONE, Crew
from ultraflash_cli.train.muon import KernelOptimiser
from ultraflash_cli.train.run_log import RunLog
from ultraflash_cli.train.shards import Shards, part_like, whole

__all__ = ["Batch", "Learner", "LoopConfig", "Loss", "Prefetcher", "generator_of", "moved", "run_loop"]

Batch = Any
"""What a recipe's own batch function returns: tensors, numbers, words, and tuples of them."""

Loss = Callable[[Any, Batch, torch.Generator], dict[str, Tensor]]
"""Roles (a module of the recipe's own class), a batch and the generator (on the CPU) of every draw to named terms,
weighted already; their sum is minimised. A pure function."""


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """What is the same for every recipe."""

    steps: int
    """Optimiser steps in all."""
    rate: float = 6e-4
    """Highest learning rate."""
    last_rate: float = 1e-5
    """Learning rate of the last step; a cosine leads there."""
    kernel_rate: float = 0.007
    """Highest learning rate of convolution kernels, whose steps are orthogonalised (Muon)."""
    warmup: int = 100
    """Steps over which the rate rises from 0."""
    clip: float = 0.5
    """Largest gradient norm of a learner."""
    average: float = 0.999
    """Decay of the EMA weights."""
    batch: int = 4
    """Clips in a batch."""
    accumulate: int = 1
    """Batches whose gradients make one step."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """``bf16``: products and convolutions in bfloat16 (autocast), the optimisers' products, too; weights, momenta and
    averages stay float32."""
    seed: int = 1
    """Seed of every draw."""
    save_every: int = 200
    """Steps between checkpoints, each with the loss plot and sample pictures."""
    log_every: int = 50
    """Steps whose mean losses are a line of the log."""

    def __post_init__(self) -> None:
        for name in ("rate", "batch", "accumulate", "save_every", "log_every"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"training: {name} must be positive, got {getattr(self, name)}")
        if self.precision not in ("fp32", "bf16"):
            raise ConfigError(f"training: precision must be fp32 or bf16, got {self.precision!r}")

    def share_at(self, step: int) -> float:
        """Return the share of the highest learning rate that holds at a step, counted from 0."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        last = self.last_rate / self.rate
        return last + (1 - last) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def _no_kernels(_name: str) -> bool:
    return False


@dataclass(frozen=True, kw_only=True)
class Learner:
    """Some of the roles, the loss they lower, and how often they do; each has optimisers of its own."""

    loss: Loss
    """What it lowers."""
    name: str = "model"
    """For the log and the draws."""
    roles: tuple[str, ...] = ()
    """Children of the roles' module that it trains; empty is all. Nobody else's weights move in its turn."""
    every: int = 1
    """It learns in one of this many steps, the last of them."""
    rate: float = 1.0
    """Factor on the learning rates."""
    is_kernel: Callable[[str], bool] = _no_kernels
    """Which matrices, by name, take orthogonalised steps; everything else takes AdamW's."""

    def parameters(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """Return what it trains: the parameters of its roles that require gradients."""
        named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        return {name: p for name, p in named.items() if not self.roles or name.split(".")[0] in self.roles}


class Prefetcher:
    """Batches by number, made ahead in worker processes; ``make`` must be a picklable function of the number."""

    def __init__(
        self, make: Callable[[int], Batch], *, workers: int, ahead: int = 6, cores: set[int] | None = None
    ) -> None:
        self.make = make
        self.ahead = ahead
        self.pool = ProcessPoolExecutor(workers, initializer=_start_worker, initargs=(cores,)) if workers else None

    def batches(self, first: int, stop: int, step: int = 1) -> Iterator[Batch]:
        """Yield batches ``first`` to ``stop`` - 1 in order, every ``step``-th of them."""
        numbers = range(first, stop, step)
        if self.pool is None:
            yield from (self.make(number) for number in numbers)
            return
        waiting = [self.pool.submit(self.make, number) for number in numbers[: self.ahead]]
        following = iter(numbers[self.ahead :])
        while waiting:
            batch = waiting.pop(0).result()
            for number in following:
                waiting.append(self.pool.submit(self.make, number))
                break
            yield batch

    def close(self) -> None:
        """End the worker processes; what they have not begun is dropped."""
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)


def _start_worker(cores: set[int] | None) -> None:
    torch.set_num_threads(1)
    if cores:
        os.sched_setaffinity(0, cores)


class _Pupil:
    """A learner with its parameters and optimisers."""

    def __init__(self, learner: Learner, model: nn.Module, config: LoopConfig) -> None:
        self.learner = learner
        named = learner.parameters(model)
        self.names = list(named)
        self.parameters = list(named.values())
        assert self.parameters, f"{learner.name} has nothing to learn"
        kernels = [p for name, p in named.items() if p.ndim >= 2 and learner.is_kernel(name)]
        others = [p for name, p in named.items() if p.ndim < 2 or not learner.is_kernel(name)]
        self.optimisers: list[torch.optim.Optimizer] = []
        if others:
            rate = config.rate * learner.rate
            self.optimisers.append(torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.99), weight_decay=0.0))
        if kernels:
            self.optimisers.append(KernelOptimiser(kernels, config.kernel_rate * learner.rate))
        self.highest = [optimiser.param_groups[0]["lr"] for optimiser in self.optimisers]
        self.average = [p.detach().clone() for p in self.parameters]

    def learns_in(self, step: int) -> bool:
        return (step + 1) % self.learner.every == 0

    def set_rate(self, share: float) -> None:
        for optimiser, rate in zip(self.optimisers, self.highest, strict=True):
            optimiser.param_groups[0]["lr"] = rate * share

    def follow(self, decay: float) -> None:
        """Move the averages a little towards the parameters."""
        for p, mean in zip(self.parameters, self.average, strict=True):
            mean.lerp_(p.detach(), 1 - decay)

    def averages(self) -> dict[str, Tensor]:
        return dict(zip(self.names, self.average, strict=True))

    def state(self) -> dict[str, Any]:
        """Return everything that goes on, undivided; if it is divided, every process calls it."""
        return whole(
            {
                "parameters": [p.detach() for p in self.parameters],
                "average": self.average,
                "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            }
        )

    def load(self, state: dict[str, Any]) -> None:
        for p, a, value, mean in zip(self.parameters, self.average, state["parameters"], state["average"], strict=True):
            p.data.copy_(part_like(value, p))
            a.copy_(part_like(mean, a))
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            likes = [p for group in optimiser.param_groups for p in group["params"]]
            moments = {
                number: {name: part_like(value, likes[number]) for name, value in values.items()}
                for number, values in saved["state"].items()
            }
            optimiser.load_state_dict(saved | {"state": moments})


def run_loop(
    model: nn.Module,
    learners: tuple[Learner, ...],
    batches: Prefetcher,
    config: LoopConfig,
    folder: Path,
    *,
    on_save: Callable[[nn.Module, int], None] | None = None,
    crew: Crew = ALONE,
    log: RunLog | None = None,
) -> nn.Module:
    """Train ``model``, whose children are the roles, and return it with its weights averaged.

    In every step the learners take turns in their order, on the same batches; only the one in turn requires
    gradients. The folder gets ``state.pt`` (resumed from when it is there) and, through ``log``, ``log.jsonl``. Batches
    and draws are functions of their number: a resumed run loses exactly what came after its checkpoint, and several
    processes do what one does with as many times the accumulation. ``on_save`` sees the averaged model at every
    checkpoint of the leading process.
    """
    folder.mkdir(parents=True, exist_ok=True)
    device = next(model.parameters()).device
    shards = None
    if crew.divides:
        crew.share_weights(model)
        shards = Shards(model, {p for learner in learners for p in learner.parameters(model).values()})
    pupils = [_Pupil(learner, model, config) for learner in learners]
    learning = {p for pupil in pupils for p in pupil.parameters}
    checkpoint = folder / "state.pt"
    first, sums = 0, dict[str, list[float]]()
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True, map_location=device)
        for pupil, state in zip(pupils, saved["pupils"], strict=True):
            pupil.load(state)
        first, sums = int(saved["step"]), saved["sums"]
    if shards is None:
        crew.share_weights(model)
    log = log or RunLog(folder)
    log.open(first, writes=crew.leads)
    mine = batches.batches(
        first * config.accumulate * crew.size + crew.rank, config.steps * config.accumulate * crew.size, crew.size
    )
    began, timed, norm = time.monotonic(), 0, 0.0
    for step in range(first, config.steps):
        share = config.share_at(step)
        turn = [moved(next(mine), device) for _ in range(config.accumulate)]
        numbers = [(step * config.accumulate + i) * crew.size + crew.rank for i in range(config.accumulate)]
        for pupil in pupils:
            if not pupil.learns_in(step):
                continue
            pupil.set_rate(share)
            for p in learning:
                p.requires_grad_(False)
            for p in pupil.parameters:
                p.requires_grad_(True).grad = None
            for number, batch in zip(numbers, turn, strict=True):
                terms = _terms(pupil.learner, model, batch, number, config, shards)
                (torch.stack(list(terms.values())).sum() / config.accumulate).backward()
                for name, value in terms.items():
                    key = name if len(pupils) == 1 else f"{pupil.learner.name}.{name}"
                    total = sums.setdefault(key, [0.0, 0.0])
                    total[0] += value.item()
                    total[1] += 1
            crew.share_gradients(pupil.parameters)
            total_norm: Tensor = whole(nn.utils.clip_grad_norm_(pupil.parameters, config.clip))
            if torch.isfinite(total_norm):
                with _precision(device, config):
                    for optimiser in pupil.optimisers:
                        optimiser.step()
            norm = float(total_norm)
        for pupil in pupils:
            pupil.follow(min(config.average, (step + 1) / (step + 10)))
        timed += 1
        if (step + 1) % config.log_every == 0 or step + 1 == config.steps:
            means = crew.mean([total / count for total, count in sums.values()])
            row = {name: round(mean, 6) for name, mean in zip(sums, means, strict=True)}
            row |= {"step": step + 1, "share": round(share, 4), "norm": round(norm, 4)}
            row["s_per_step"] = round((time.monotonic() - began) / timed, 3)
            log.write(row)
            sums, timed, began = {}, 0, time.monotonic()
        if (step + 1) % config.save_every == 0 or step + 1 == config.steps:
            # Who continues from it sees the others' losses in its own sums.
            totals = crew.mean([total for total, _ in sums.values()])
            shared = {name: [total, sums[name][1]] for name, total in zip(sums, totals, strict=True)}
            state = {"pupils": [pupil.state() for pupil in pupils], "sums": shared, "step": step + 1}
            if crew.leads:
                torch.save(state, checkpoint.with_suffix(".tmp"))
                checkpoint.with_suffix(".tmp").replace(checkpoint)
            if on_save is not None:
                with torch.no_grad(), _averaged(model, pupils, shards) as shown:
                    if crew.leads:
                        on_save(shown, step + 1)
    log.close()
    if shards is not None:
        model = shards.plain(_averages(pupils))
    else:
        for pupil in pupils:
            for p, mean in zip(pupil.parameters, pupil.average, strict=True):
                p.data.copy_(mean)
    for p in learning:
        p.requires_grad_(True).grad = None
    return model


def _terms(
    learner: Learner, model: nn.Module, batch: Batch, number: int, config: LoopConfig, shards: Shards | None
) -> dict[str, Tensor]:
    """Return a learner's terms for a batch; draws, those of torch's global generators too, follow from its number."""
    rng = generator_of(config.seed, learner.name, number)
    device = next(model.parameters()).device
    with (
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        _precision(device, config),
    ):
        torch.manual_seed(rng.initial_seed())
        if shards is not None:
            return shards.terms(learner.loss, batch, rng)
        return learner.loss(model, batch, rng)


def _precision(device: torch.device, config: LoopConfig) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16")


def moved(batch: Batch, device: torch.device) -> Batch:
    """Return a batch with its tensors on ``device``."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    return tuple(moved(part, device) for part in batch) if isinstance(batch, tuple) else batch


def _averages(pupils: list[_Pupil]) -> dict[str, Tensor]:
    return {name: mean for pupil in pupils for name, mean in pupil.averages().items()}


@contextmanager
def _averaged(model: nn.Module, pupils: list[_Pupil], shards: Shards | None) -> Generator[nn.Module]:
    """Return the networks, undivided, with EMA weights."""
    if shards is not None:
        yield shards.plain(_averages(pupils))
        shards.release()
        return
    pairs = [pair for pupil in pupils for pair in zip(pupil.parameters, pupil.average, strict=True)]
    kept = [p.detach().clone() for p, _ in pairs]
    for p, mean in pairs:
        p.data.copy_(mean)
    yield model
    for (p, _), value in zip(pairs, kept, strict=True):
        p.data.copy_(value)
