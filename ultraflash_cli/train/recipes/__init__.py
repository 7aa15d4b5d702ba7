"""The recipes, one file each, and the table of their names."""

from dataclasses import dataclass
from importlib import import_module
from types import ModuleType

__all__ = ["RECIPES", "Recipe"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A recipe by name; what it needs is imported on ``load``."""

    name: str
    """What users call it, and the name of its file."""
    summary: str
    """One sentence for the help."""

    def load(self) -> ModuleType:
        """Return the module, which offers these.

        ``NETWORKS``: the roles that it trains. ``configure(steps=, seed=)``: its frozen config, with ``loop``,
        ``pairs`` and ``scale_odds``. ``start(config, materials, weights)``: the roles before the first step.
        ``loss(config, roles, batch)``: named terms. ``is_kernel(name)``: which parameters take orthogonalised steps.
        """
        return import_module(f"{__name__}.{self.name}")


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe(name="pixels", summary="Train encoder, latent upsamplers and decoder together, by regression."),
        Recipe(name="sr_dit", summary="Train the SR transformer by one-step regression, through the decoder."),
    )
}
"""Every recipe by name."""
