"""One loop for every recipe: batches by number, optimiser, averaged weights, checkpoints, a log."""

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

__all__ = ["Batch", "LoopConfig", "Prefetcher", "run_loop"]

Batch = tuple[Tensor, Tensor, int]
"""(low [B, 3, T, h, w], high [B, 3, T, H, W], scale)."""


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
    """Largest gradient norm."""
    average: float = 0.999
    """Decay of the averaged weights."""
    batch: int = 4
    """Clips in a batch."""
    seed: int = 1
    """Seed of every draw."""
    save_every: int = 200
    """Steps between checkpoints."""

    def share_at(self, step: int) -> float:
        """Return the share of the highest learning rate that holds at a step, counted from 0."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        last = self.last_rate / self.rate
        return last + (1 - last) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


class KernelOptimiser(torch.optim.Optimizer):
    """Muon for convolution kernels: Nesterov momentum, its matrix orthogonalised by Newton-Schulz steps.

    A kernel [out, in, h, w] counts as a matrix [out, in * h * w]. Source: Jordan et al., 2024 (the quintic's
    coefficients are theirs).
    """

    def __init__(self, kernels: list[nn.Parameter], rate: float, momentum: float = 0.95) -> None:
        super().__init__(kernels, {"lr": rate, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Take one step along the orthogonalised momentum of every kernel that has a gradient."""
        for group in self.param_groups:
            for kernel in group["params"]:
                if kernel.grad is None:
                    continue
                memory = self.state[kernel].setdefault("momentum", torch.zeros_like(kernel))
                memory.mul_(group["momentum"]).add_(kernel.grad)
                ahead = kernel.grad + group["momentum"] * memory
                step = _orthogonal(ahead.reshape(ahead.shape[0], -1)).reshape(kernel.shape)
                kernel.add_(step, alpha=-group["lr"])


def _orthogonal(matrix: Tensor) -> Tensor:
    x = matrix / (matrix.norm() + 1e-12)
    wide = x if x.shape[0] <= x.shape[1] else x.T
    for _ in range(5):
        gram = wide @ wide.T
        wide = 3.4445 * wide + (-4.7750 * gram + 2.0315 * gram @ gram) @ wide
    return wide if x.shape[0] <= x.shape[1] else wide.T


class Prefetcher:
    """Batches by number, made ahead in worker processes; ``make`` must be a picklable function of the number."""

    def __init__(
        self, make: Callable[[int], Batch], *, workers: int, ahead: int = 6, cores: set[int] | None = None
    ) -> None:
        self.make = make
        self.ahead = ahead
        self.pool = ProcessPoolExecutor(workers, initializer=_start_worker, initargs=(cores,)) if workers else None

    def batches(self, first: int, stop: int) -> Iterator[Batch]:
        """Yield batches ``first`` to ``stop`` - 1 in order."""
        if self.pool is None:
            yield from (self.make(number) for number in range(first, stop))
            return
        waiting = [self.pool.submit(self.make, number) for number in range(first, min(stop, first + self.ahead))]
        following = first + len(waiting)
        while waiting:
            batch = waiting.pop(0).result()
            if following < stop:
                waiting.append(self.pool.submit(self.make, following))
                following += 1
            yield batch

    def close(self) -> None:
        """End the worker processes; what they have not begun is dropped."""
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)


def _start_worker(cores: set[int] | None) -> None:
    torch.set_num_threads(1)
    if cores:
        os.sched_setaffinity(0, cores)


def run_loop(
    model: nn.Module,
    loss: Callable[[nn.Module, Batch], dict[str, Tensor]],
    batches: Prefetcher,
    config: LoopConfig,
    folder: Path,
    *,
    is_kernel: Callable[[str], bool] = lambda name: False,
    on_save: Callable[[nn.Module, int], None] | None = None,
) -> nn.Module:
    """Train ``model`` (its parameters that require gradients) and return its averaged twin.

    ``loss`` returns named terms, weighted already; their sum is minimised. The folder gets ``state.pt`` (resumed
    from when it is there) and ``log.jsonl``. Matrices and kernels whose name ``is_kernel`` accepts take
    orthogonalised steps, everything else AdamW's. ``on_save`` sees the averaged model at every checkpoint.
    """
    folder.mkdir(parents=True, exist_ok=True)
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    parameters = [p for _, p in named]
    kernels = [p for name, p in named if p.ndim >= 2 and is_kernel(name)]
    others = [p for name, p in named if p.ndim < 2 or not is_kernel(name)]
    optimisers: list[torch.optim.Optimizer] = []
    if others:
        optimisers.append(torch.optim.AdamW(others, lr=config.rate, betas=(0.9, 0.99), weight_decay=0.0))
    if kernels:
        optimisers.append(KernelOptimiser(kernels, config.kernel_rate))
    highest = [optimiser.param_groups[0]["lr"] for optimiser in optimisers]
    average = [p.detach().clone() for p in parameters]
    first = 0
    checkpoint = folder / "state.pt"
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        for p, a, value, mean in zip(parameters, average, saved["parameters"], saved["average"], strict=True):
            p.data.copy_(value)
            a.copy_(mean)
        for optimiser, state in zip(optimisers, saved["optimisers"], strict=True):
            optimiser.load_state_dict(state)
        first = int(saved["step"])
    sums: dict[str, float] = {}
    since, began = 0, time.monotonic()
    with (folder / "log.jsonl").open("a") as log:
        for step, batch in enumerate(batches.batches(first, config.steps), start=first):
            share = config.share_at(step)
            for optimiser, rate in zip(optimisers, highest, strict=True):
                optimiser.param_groups[0]["lr"] = rate * share
            terms = loss(model, batch)
            total = torch.stack(list(terms.values())).sum()
            model.zero_grad(set_to_none=True)
            total.backward()
            norm = nn.utils.clip_grad_norm_(parameters, config.clip)
            if torch.isfinite(norm):
                for optimiser in optimisers:
                    optimiser.step()
            decay = min(config.average, (step + 1) / (step + 10))
            for p, mean in zip(parameters, average, strict=True):
                mean.lerp_(p.detach(), 1 - decay)
            for name, value in terms.items():
                sums[name] = sums.get(name, 0.0) + value.item()
            since += 1
            if (step + 1) % 50 == 0:
                row = {name: round(value / since, 6) for name, value in sums.items()}
                row |= {"step": step + 1, "share": round(share, 4), "norm": round(float(norm), 4)}
                row["s_per_step"] = round((time.monotonic() - began) / since, 3)
                log.write(json.dumps(row) + "\n")
                log.flush()
                sums, since, began = {}, 0, time.monotonic()
            if (step + 1) % config.save_every == 0 or step + 1 == config.steps:
                state = {
                    "parameters": [p.detach() for p in parameters],
                    "average": average,
                    "optimisers": [optimiser.state_dict() for optimiser in optimisers],
                    "step": step + 1,
                }
                torch.save(state, checkpoint.with_suffix(".tmp"))
                checkpoint.with_suffix(".tmp").replace(checkpoint)
                if on_save is not None:
                    _with(parameters, average, lambda done=step + 1: on_save(model, done))
    for p, a in zip(parameters, average, strict=True):
        p.data.copy_(a)
    return model


def _with(parameters: list[nn.Parameter], values: list[Tensor], act: Callable[[], None]) -> None:
    """Run ``act`` while the parameters hold ``values``."""
    kept = [p.detach().clone() for p in parameters]
    for p, value in zip(parameters, values, strict=True):
        p.data.copy_(value)
    act()
    for p, value in zip(parameters, kept, strict=True):
        p.data.copy_(value)
