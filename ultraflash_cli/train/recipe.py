"""The interface that every module in `recipes` implements."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ultraflash_cli.train.data import Material
from ultraflash_cli.train.learning import Batch, Learner, RecipeConfig
from ultraflash_cli.train.sheets import Picture

__all__ = ["Configure", "RecipeModule", "Weights", "overlaid"]

Weights = dict[str, Tensor]
"""Tensors of roles by name, such as ``sr_dit.head.head.weight``."""


class Configure(Protocol):
    """Creates the frozen settings of a recipe; those of recipes that train several
    models also take ``profile``, with a default."""

    def __call__(self, *, steps: int, seed: int, toy: bool = False) -> RecipeConfig:
        """Return the settings for a built-in model, or for a toy model."""
        ...


class RecipeModule(Protocol):
    """A recipe: a module with pure functions of its own frozen settings."""

    NETWORKS: tuple[str, ...]
    """The roles that an export writes."""
    HELPERS: tuple[str, ...]
    """Roles needed only for training: teachers, critics, references."""

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

    @property
    def merge(self) -> Callable[[list[Weights]], Weights]:
        """Combines the weights of several runs into one set."""
        ...


def overlaid(files: list[Weights]) -> Weights:
    """Return the tensors of all files; where several have the same tensor, the last file wins."""
    return {name: value for tensors in files for name, value in tensors.items()}
