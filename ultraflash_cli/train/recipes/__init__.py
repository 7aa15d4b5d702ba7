"""The recipes, one file each, and the table of their names."""

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Literal, cast

if TYPE_CHECKING:
    from ultraflash_cli.train.recipe import RecipeModule

__all__ = ["RECIPES", "Recipe"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A recipe by name; ``load`` imports it."""

    name: str
    """What users call it, and the name of its file."""
    summary: str
    """One sentence for the help."""

    learns_from: Literal["material", "pairs", "scenes"] = "material"
    """What ``--data`` is: prepared material, pairs made from it, or encoded scenes (optional)."""

    profiles: bool = False
    """Whether it trains the networks of several models: ``configure`` then takes a ``profile``."""

    def load(self) -> "RecipeModule":
        """Return the module."""
        return cast("RecipeModule", import_module(f"{__name__}.{self.name}"))


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe(name="bottleneck", summary="Start an autoencoder: train its middle on components."),
        Recipe(name="autoencoder", summary="Train encoder and decoder of one latent space."),
        Recipe(name="pixels", summary="Train the pixel path by regression."),
        Recipe(
            name="perceptual",
            summary="Tune the pixel path for appearance, on kept pairs.",
            learns_from="pairs",
        ),
        Recipe(name="sr_dit", summary="Train the SR transformer by one-step regression."),
        Recipe(name="decoder", summary="Train the decoder, and a new encoder, by regression.", profiles=True),
        Recipe(name="latent_upsampler", summary="Train the latent upsamplers by regression.", profiles=True),
        Recipe(name="tv2v_flow_matching", summary="Train a dense SR transformer by flow matching.", profiles=True),
        Recipe(name="causal_dmd", summary="Distil the SR transformer into one sparse step.", profiles=True),
        Recipe(name="cascade_dpo", summary="Tune the SR transformer by preference (DPO).", profiles=True),
        Recipe(
            name="generator",
            summary="Train a text-to-video generator by flow matching.",
            learns_from="scenes",
            profiles=True,
        ),
        Recipe(
            name="generator_distil",
            summary="Distil the generator into few steps.",
            learns_from="scenes",
        ),
    )
}
"""Every recipe by name."""
