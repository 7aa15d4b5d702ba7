"""The interface that every module in `recipes` implements."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ultraflash_cli.train.data import Material, PairConfig, pair_batch
from ultraflash_cli.train.learning import Batch, Learner, RecipeConfig
from ultraflash_cli.train.sheets import Picture

__all__ = [
    "Configure",
    "PairRecipeConfig",
    "RecipeModule",
    "Weights",
    "helpers_of",
    "make_pairs",
    "merged",
    "seeded",
]

Weights = dict[str, Tensor]
"""Tensors of roles by name, such as ``sr_dit.head.head.weight``."""


class Configure(Protocol):
    """Creates the frozen settings of a recipe; those of recipes that train several
    models also take ``profile``, with a default."""

    def __call__(self, *, steps: int, seed: int, toy: bool = False) -> RecipeConfig:
        """Return the settings for a built-in model, or for a toy model."""
        ...


class RecipeModule(Protocol):
    """A recipe: a module with pure functions of its frozen settings."""

    NETWORKS: tuple[str, ...]
    """The roles that an export writes."""

    @property
    def configure(self) -> Configure:
        """Makes the settings."""
        ...

    @property
    def start(self) -> Callable[[Any, list[Material], Weights | None], nn.Module]:
        """Builds the roles, as children of one module, from settings, material and
        weights."""
        ...

    @property
    def learners(self) -> Callable[[Any], tuple[Learner, ...]]:
        """Returns the learners for the settings, each with a pure loss."""
        ...

    @property
    def make(self) -> Callable[[Any, Path | None], Callable[[int], Batch]]:
        """Turns settings and data into a picklable function from a number to a batch."""
        ...

    @property
    def pictures(self) -> Callable[[Any, Any, Batch, torch.Generator], Picture]:
        """Renders sample results of the EMA weights, from settings, roles, a batch and
        a generator."""
        ...


def helpers_of(recipe: RecipeModule) -> tuple[str, ...]:
    """Return the roles needed only for training (teachers, critics, references): the
    recipe's ``HELPERS``, if any."""
    return getattr(recipe, "HELPERS", ())


def merged(recipe: RecipeModule, files: list[Weights]) -> Weights:
    """Combine the weights of several runs into one set, by the recipe's ``merge`` if it
    has one.

    Otherwise the set has the tensors of all files; where several have the same tensor,
    the last file wins.
    """
    if merge := getattr(recipe, "merge", None):
        return merge(files)
    return {name: value for tensors in files for name, value in tensors.items()}


@contextmanager
def seeded(config: RecipeConfig) -> Generator[None]:
    """Sample initial weights from the run's seed; torch's own generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.loop.seed)
        yield


@dataclass(frozen=True, kw_only=True)
class PairRecipeConfig(RecipeConfig):
    """Settings of a recipe that trains on pairs of clips from prepared material."""

    pairs: PairConfig = field(default_factory=PairConfig)
    """Sampling of clips."""
    scale_odds: tuple[tuple[int, float], ...] = ((2, 0.65), (3, 0.35))
    """Sampling weight of each scale."""

    @property
    def scales(self) -> tuple[int, ...]:
        """The scales of the pairs."""
        return tuple(scale for scale, _ in self.scale_odds)


def make_pairs(config: PairRecipeConfig, data: Path | None) -> Callable[[int], Batch]:
    """Return the function that makes a batch of pairs from its number."""
    assert data is not None, "pairs come from prepared material"
    return partial(pair_batch, data.absolute(), config.pairs, config.loop.seed, config.scale_odds, config.loop.batch)
