"""The training loop of all recipes: learners in turn, batches by number, EMA weights,
checkpoints, a log."""

import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from ultraflash_cli.engine.seeds import generator_of
from ultraflash_cli.train.checkpoint import Checkpoints
from ultraflash_cli.train.learning import Batch, Learner, LoopConfig, Loss, RecipeConfig, Trainee
from ultraflash_cli.train.process_group import ALONE, ProcessGroup
from ultraflash_cli.train.run_log import RunLog
from ultraflash_cli.train.shards import Shards, whole

__all__ = [
    "Batch",
    "Learner",
    "LoopConfig",
    "Loss",
    "Prefetcher",
    "RecipeConfig",
    "generator_of",
    "moved",
    "run_loop",
]


class Prefetcher:
    """Prepares batches by number in worker processes; ``make`` must be a picklable
    function of the number."""

    def __init__(self, make: Callable[[int], Batch], *, workers: int, ahead: int = 6) -> None:
        self.make = make
        self.ahead = ahead
        self.pool = ProcessPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) if workers else None

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
        """Stop the worker processes; pending batches are dropped."""
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)


def run_loop(
    model: nn.Module,
    learners: tuple[Learner, ...],
    batches: Prefetcher,
    config: LoopConfig,
    folder: Path,
    *,
    on_save: Callable[[nn.Module, int], None] | None = None,
    on_validate: Callable[[nn.Module, int], None] | None = None,
    validate_every: int = 1,
    warn: Callable[[str], None] | None = None,
    group: ProcessGroup = ALONE,
    log: RunLog | None = None,
) -> nn.Module:
    """Train ``model``, whose children are the roles, and return it with its EMA weights.

    In every step the learners take turns in order, on the same batches; only the
    current one requires gradients. The state is saved in the folder and resumed from
    there (see ``Checkpoints``); ``log`` writes ``log.jsonl``. Batches and noise are
    functions of their number: a resumed run repeats exactly the steps after its
    checkpoint, and N processes compute the same as one with N times the accumulation.
    ``on_save`` sees the EMA model at every checkpoint of the main process,
    ``on_validate`` after every ``validate_every`` steps and the last. A step whose
    gradient is not finite is skipped; the next line of the log counts it, and ``warn``
    is called.
    """
    folder.mkdir(parents=True, exist_ok=True)
    run = _Run(model, learners, config, folder, group, log or RunLog(folder))
    per_step = config.accumulate * group.size
    mine = batches.batches(run.first * per_step + group.rank, config.steps * per_step, group.size)
    try:
        for step in range(run.first, config.steps):
            run.step(step, [moved(next(mine), run.device) for _ in range(config.accumulate)])
            last = step + 1 == config.steps
            if last or (step + 1) % config.log_every == 0:
                run.write_losses(step, warn)
            if last or (step + 1) % config.save_every == 0:
                run.save(step, on_save)
            if on_validate is not None and (last or (step + 1) % validate_every == 0):
                run.show(step, on_validate)
        return run.finish()
    finally:
        run.checkpoints.close()


class _Run:
    """State of a training run."""

    def __init__(
        self,
        model: nn.Module,
        learners: tuple[Learner, ...],
        config: LoopConfig,
        folder: Path,
        group: ProcessGroup,
        log: RunLog,
    ) -> None:
        self.model, self.config, self.group, self.log = model, config, group, log
        self.device = next(model.parameters()).device
        self.shards: Shards | None = None
        _set_frozen_precision(model, learners, config)
        group.share_weights(model)
        if group.shards:
            learning = {p for learner in learners for p in learner.parameters(model).values()}
            self.shards = Shards(
                model,
                learning,
                half=config.runs_in_bf16,
                frozen=group.shards_frozen,
                by_layers=all(learner.steady for learner in learners),
            )
        self.trainees = [Trainee(learner, model, config) for learner in learners]
        self.learning = {p for trainee in self.trainees for p in trainee.parameters}

        self.checkpoints = Checkpoints(folder, group)
        self.first, sums = self.checkpoints.load(self.trainees, self.device)
        self.sums = {name: [part / group.size for part in both] for name, both in sums.items()}
        log.open(self.first, writes=group.is_main)
        self.began, self.timed, self.norm, self.skipped = time.monotonic(), 0, 0.0, 0

    def step(self, step: int, turn: list[Batch]) -> None:
        """Give each learner its turn on the batches of a step."""
        share = self.config.share_at(step)
        first = step * len(turn)
        numbers = [(first + i) * self.group.size + self.group.rank for i in range(len(turn))]
        for trainee in self.trainees:
            if trainee.learns_in(step):
                trainee.set_rate(share)
                self._learn(trainee, turn, numbers)
                trainee.follow(min(self.config.average, (step + 1) / (step + 10)))
        self.timed += 1

    def _learn(self, trainee: Trainee, turn: list[Batch], numbers: list[int]) -> None:
        for p in self.learning:
            p.requires_grad_(False)
        for p in trainee.parameters:
            p.requires_grad_(True).grad = None
        for number, batch in zip(numbers, turn, strict=True):
            terms = self._terms(trainee.learner, batch, number)
            (torch.stack(list(terms.values())).sum() / len(turn)).backward()
            for name, value in terms.items():
                key = name if len(self.trainees) == 1 else f"{trainee.learner.name}.{name}"
                total = self.sums.setdefault(key, [0.0, 0.0])
                total[0] += value.item()
                total[1] += 1

        self.group.share_gradients(trainee.parameters)
        norm: Tensor = whole(nn.utils.clip_grad_norm_(trainee.parameters, self.config.clip))
        if torch.isfinite(norm):
            with self._autocast():
                for optimiser in trainee.optimisers:
                    optimiser.step()
        else:
            self.skipped += 1
        self.norm = float(norm)

    def _terms(self, learner: Learner, batch: Batch, number: int) -> dict[str, Tensor]:
        """Return a learner's terms for a batch; all randomness, including torch's
        global generators, is seeded by the batch number."""
        rng = generator_of(self.config.seed, learner.name, number)
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), self._autocast():
            torch.manual_seed(rng.initial_seed())
            if self.shards is not None:
                return self.shards.terms(learner.loss, batch, rng)
            return learner.loss(self.model, batch, rng)

    def _autocast(self) -> torch.autocast:
        # Sharded networks are gathered in bfloat16 instead, see Shards.
        enabled = self.config.runs_in_bf16 and self.shards is None
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled)

    def write_losses(self, step: int, warn: Callable[[str], None] | None) -> None:
        """Log the mean losses since the last line, over all processes."""
        means = self.group.mean([total / count for total, count in self.sums.values()])
        row = {name: round(mean, 6) for name, mean in zip(self.sums, means, strict=True)}
        row |= {"step": step + 1, "share": round(self.config.share_at(step), 4)}
        row |= {"norm": round(self.norm, 4)}
        row["s_per_step"] = round((time.monotonic() - self.began) / self.timed, 3)
        if self.skipped:
            row["skipped"] = self.skipped
            if warn is not None:
                warn(
                    f"{self.skipped} of the last {self.timed} steps skipped, up to step {step + 1}: "
                    "the gradient was not finite; use a smaller learning rate if this continues"
                )
        self.log.write(row)
        self.sums, self.timed, self.began, self.skipped = {}, 0, time.monotonic(), 0

    def save(self, step: int, on_save: Callable[[nn.Module, int], None] | None) -> None:
        """Save the state, and show the EMA model."""
        # Summed over all processes: the run may resume with fewer or more of them.
        size = self.group.size
        totals = self.group.mean([total for total, _ in self.sums.values()])
        sums = {name: [size * total, size * self.sums[name][1]] for name, total in zip(self.sums, totals, strict=True)}
        self.checkpoints.save(self.trainees, (step + 1, sums))
        if on_save is not None:
            self.show(step, on_save)

    def show(self, step: int, on_show: Callable[[nn.Module, int], None]) -> None:
        """Call ``on_show`` with the EMA model in the main process."""
        with torch.no_grad(), self._averaged() as shown:
            if self.group.is_main:
                on_show(shown, step + 1)

    def finish(self) -> nn.Module:
        """Return the unsharded networks with their EMA weights."""
        self.log.close()
        self.checkpoints.wait()
        if self.shards is not None:
            self.model = self.shards.plain(self._averages())
        else:
            for trainee in self.trainees:
                for p, mean in zip(trainee.parameters, trainee.average, strict=True):
                    p.data.copy_(mean)
        for p in self.learning:
            p.requires_grad_(True).grad = None
        return self.model

    def _averages(self) -> dict[str, Tensor]:
        return {name: mean for each in self.trainees for name, mean in each.averages().items()}

    @contextmanager
    def _averaged(self) -> Generator[nn.Module]:
        """Return the unsharded networks with EMA weights."""
        if self.shards is not None:
            yield self.shards.plain(self._averages())
            self.shards.release()
            return
        pairs = [pair for each in self.trainees for pair in zip(each.parameters, each.average, strict=True)]
        kept = [p.detach().clone() for p, _ in pairs]
        for p, mean in pairs:
            p.data.copy_(mean)
        yield self.model
        for (p, _), value in zip(pairs, kept, strict=True):
            p.data.copy_(value)


def _set_frozen_precision(model: nn.Module, learners: tuple[Learner, ...], config: LoopConfig) -> None:
    """Store the frozen networks in the precision of the settings."""
    if config.frozen != "bf16":
        return
    learning = {p for learner in learners for p in learner.parameters(model).values()}
    for role in model.children():
        if learning.isdisjoint(role.parameters()):
            role.to(torch.bfloat16)


def moved(batch: Batch, device: torch.device) -> Batch:
    """Return a batch with its tensors on ``device``."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    return tuple(moved(part, device) for part in batch) if isinstance(batch, tuple) else batch
