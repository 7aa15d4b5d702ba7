"""The recipes, one file each, and the table of their names."""

from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Literal

__all__ = ["RECIPES", "Recipe"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A recipe by name; what it needs is imported on ``load``."""

    name: str
    """What users call it, and the name of its file."""
    summary: str
    """One sentence for the help."""

    learns_from: Literal["material", "pairs", "scenes"] = "material"
    """What its data are: prepared material, pairs made of it, or drawn scenes (encoded ones, or new as it goes)."""

    profiles: bool = False
    """Whether it trains the networks of several models: ``configure`` then takes a ``profile``."""

    def load(self) -> ModuleType:
        """Return the module, which offers these.

        ``NETWORKS``: the roles that an export writes. ``HELPERS``, where there are any: roles that only training needs.
        ``merge``, where weights of several runs are more than one laid over the other.
        ``configure(steps=, seed=, toy=)``: its frozen config, with ``loop``. ``start(config, materials, weights)``: the
        roles, children of one module, before the first step. ``learners(config)``: who learns what, each with a pure
        ``loss(roles, batch, rng)``. ``make(config, data)``: a picklable function from a number to a batch.
        ``pictures(config, roles, batch, rng)``: a picture of what the averaged weights do.
        """
        return import_module(f"{__name__}.{self.name}")


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe(name="bottleneck", summary="Train the middle of a fresh autoencoder on the components of its material."),
        Recipe(name="autoencoder", summary="Train encoder and decoder of one latent space for every size."),
        Recipe(name="pixels", summary="Train encoder, latent upsamplers and decoder together, by regression."),
        Recipe(
            name="perceptual",
            summary="Tune the pixel path for how frames look, on pairs that make-pairs made.",
            learns_from="pairs",
        ),
        Recipe(name="sr_dit", summary="Train the SR transformer by one-step regression, through the decoder."),
        Recipe(name="decoder", summary="Train the decoder by regression onto pixels; a fresh encoder learns along."),
        Recipe(
            name="latent_upsampler",
            summary="Train the latent upsamplers by regression onto encoded clips.",
            profiles=True,
        ),
        Recipe(
            name="tv2v_flow_matching",
            summary="Train a dense, many-step SR transformer by flow matching.",
            profiles=True,
        ),
        Recipe(
            name="causal_dmd",
            summary="Distil the SR transformer into one sparse step, with hybrid rewards.",
            profiles=True,
        ),
        Recipe(
            name="cascade_dpo",
            summary="Tune the SR transformer by preferences over roll-outs of the cascade.",
            profiles=True,
        ),
        Recipe(
            name="generator",
            summary="Train a causal text-to-video generator on drawn scenes, by flow matching.",
            learns_from="scenes",
            profiles=True,
        ),
        Recipe(
            name="generator_distil",
            summary="Distil the generator into few steps, on its own roll-outs.",
            learns_from="scenes",
        ),
    )
}
"""Every recipe by name."""
