"""Settings that all recipes share: those of the loop, and of learners with their roles,
losses and optimisers."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ultraflash_cli.errors import ConfigError
from ultraflash_cli.train.muon import KernelOptimiser
from ultraflash_cli.train.shards import part_like

__all__ = ["Batch", "Learner", "LoopConfig", "Loss", "RecipeConfig", "Trainee"]

Batch = Any
"""Result of a recipe's batch function: tensors, numbers, words, and tuples of them."""

Loss = Callable[[Any, Batch, torch.Generator], dict[str, Tensor]]
"""A pure function from roles (a module of the recipe's own class), a batch, and the CPU
generator of all noise, to named terms with their weights applied. Their sum is
minimised; a term without a gradient is only logged."""


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """Loop settings shared by all recipes."""

    steps: int
    """Total optimiser steps."""
    rate: float = 6e-4
    """Highest learning rate."""
    last_rate: float = 1e-5
    """Learning rate of the last step, at the end of a cosine schedule."""
    kernel_rate: float = 0.007
    """Highest learning rate of convolution kernels, whose steps are orthogonalised (Muon)."""
    warmup: int = 100
    """Steps over which the rate rises from 0."""
    clip: float = 0.5
    """Largest gradient norm of a learner."""
    average: float = 0.999
    """Decay of the EMA of the weights."""
    batch: int = 4
    """Number of clips in a batch."""
    accumulate: int = 1
    """Batches whose gradients are accumulated in one step."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """``bf16``: matmuls and convolutions in bfloat16 (autocast), including the optimisers' matmuls; weights, momenta
    and the EMA stay float32."""
    recompute: bool = False
    """Whether the blocks of trained transformers keep only their inputs and are
    recomputed in the backward pass (activation checkpointing)."""
    frozen: Literal["fp32", "bf16"] = "fp32"
    """Precision of the weights of networks that do not learn."""
    seed: int = 1
    """Seed of all random choices."""
    save_every: int = 200
    """Steps between checkpoints, each with the loss plot and sample pictures."""
    log_every: int = 50
    """Steps per line of the log, which holds their mean losses."""

    def __post_init__(self) -> None:
        for name in ("rate", "batch", "accumulate", "save_every", "log_every"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"training: {name} must be positive, got {getattr(self, name)}")
        if self.precision not in ("fp32", "bf16"):
            raise ConfigError(f"training: precision must be fp32 or bf16, got {self.precision!r}")
        if self.frozen not in ("fp32", "bf16"):
            raise ConfigError(f"training: frozen must be fp32 or bf16, got {self.frozen!r}")

    @property
    def runs_in_bf16(self) -> bool:
        """Whether matmuls and convolutions run in bfloat16."""
        return self.precision == "bf16"

    def share_at(self, step: int) -> float:
        """Return the learning rate at a step (counted from 0), as a share of the
        highest."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        last = self.last_rate / self.rate
        return last + (1 - last) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


@dataclass(frozen=True, kw_only=True)
class RecipeConfig:
    """Settings common to all recipes."""

    loop: LoopConfig
    """Settings of the training loop."""


def _no_kernels(_name: str) -> bool:
    return False


@dataclass(frozen=True, kw_only=True)
class Learner:
    """Some of the roles, the loss that they minimise, and their update interval; each
    learner has its own optimisers."""

    loss: Loss
    """Loss to minimise."""
    name: str = "model"
    """Name used in the log and for the random seeds."""
    roles: tuple[str, ...] = ()
    """Children of the roles' module that it trains; empty means all. Its turn changes
    no other weights."""
    every: int = 1
    """Update interval in steps; the learner is updated in the last step of each
    interval."""
    steady: bool = True
    """Whether its loss calls every transformer equally often for all batches. Only then
    can sharded layers be gathered one at a time, as all processes must do so
    together."""
    rate: float = 1.0
    """Factor on the learning rates."""
    betas: tuple[float, float] = (0.9, 0.99)
    """AdamW's decay of the mean gradient and of its mean square."""
    weight_decay: float = 0.0
    """AdamW's weight decay, relative to the learning rate."""
    is_kernel: Callable[[str], bool] = _no_kernels
    """Whether a named matrix uses orthogonalised updates; everything else uses AdamW."""

    def parameters(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """Return the parameters of its roles that require gradients."""
        named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        return {name: p for name, p in named.items() if not self.roles or name.split(".")[0] in self.roles}


class Trainee:
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
            self.optimisers.append(
                torch.optim.AdamW(others, lr=rate, betas=learner.betas, weight_decay=learner.weight_decay)
            )
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
        """Update the EMA weights from the parameters."""
        for p, mean in zip(self.parameters, self.average, strict=True):
            mean.lerp_(p.detach(), 1 - decay)

    def averages(self) -> dict[str, Tensor]:
        return dict(zip(self.names, self.average, strict=True))

    def state(self) -> dict[str, Any]:
        """Return everything needed to resume a run, by parameter name; sharded if the
        parameters are."""
        return {
            "parameters": dict(zip(self.names, (p.detach() for p in self.parameters), strict=True)),
            "average": self.averages(),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
        }

    def load(self, state: dict[str, Any]) -> None:
        """Load a saved state, whole or sharded like this one."""
        for part in ("parameters", "average"):
            if isinstance(state[part], list):  # the format of runs from before names were stored
                state[part] = dict(zip(self.names, state[part], strict=True))
        for name, p, a in zip(self.names, self.parameters, self.average, strict=True):
            p.data.copy_(part_like(state["parameters"][name], p))
            a.copy_(part_like(state["average"][name], a))
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            likes = [p for group in optimiser.param_groups for p in group["params"]]
            moments = {
                number: {name: part_like(value, likes[number]) for name, value in values.items()}
                for number, values in saved["state"].items()
            }
            optimiser.load_state_dict(saved | {"state": moments})
