"""The training recipes, one file each, and a table of them by name."""

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
    """Name of the recipe and of its module."""
    summary: str
    """One sentence for the help."""

    learns_from: Literal["material", "pairs", "scenes"] = "material"
    """Kind of ``--data``: prepared material, pairs made from it, or encoded scenes (optional)."""

    unpublished: str = ""
    """Reason why it cannot train the published model; empty if it can."""

    profiles: bool = False
    """Whether it trains the networks of several models: ``configure`` then takes a ``profile``."""

    def load(self) -> "RecipeModule":
        """Return the module."""
        return cast("RecipeModule", import_module(f"{__name__}.{self.name}"))


_HAS_CODERS = "its encoder and decoder have weights, which the recipe decoder trains further"
_HAS_NO_PIXEL_PATH = "it has no pixel path; decoder --condition lr lets its decoder read the frames"
_HAS_GENERATOR = (
    "its generator has weights (ultraflash weights pull ultraflash); this recipe trains one for "
    "rendered scenes, with a prompt encoder of its own"
)

RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            name="bottleneck",
            summary="Start an autoencoder: train its middle on components.",
            unpublished=_HAS_CODERS,
        ),
        Recipe(
            name="autoencoder",
            summary="Train encoder and decoder of one latent space.",
            unpublished=_HAS_CODERS,
        ),
        Recipe(
            name="pixels",
            summary="Train the pixel path by regression.",
            unpublished=_HAS_NO_PIXEL_PATH,
        ),
        Recipe(
            name="perceptual",
            summary="Tune the pixel path for appearance, on kept pairs.",
            learns_from="pairs",
            unpublished=_HAS_NO_PIXEL_PATH,
        ),
        Recipe(
            name="sr_dit",
            summary="Train the SR transformer by one-step regression.",
            unpublished="its one-step regression is causal_dmd with --set guidance=0 --set matching=0",
        ),
        Recipe(name="decoder", summary="Train the decoder, and a new encoder, by regression.", profiles=True),
        Recipe(name="latent_upsampler", summary="Train the latent upsamplers by regression.", profiles=True),
        Recipe(name="tv2v_flow_matching", summary="Train a dense SR transformer by flow matching.", profiles=True),
        Recipe(name="causal_dmd", summary="Distil the SR transformer into one sparse step.", profiles=True),
        Recipe(name="cascade_dpo", summary="Tune the SR transformer by preference (DPO).", profiles=True),
        Recipe(
            name="cascade_decoder",
            summary="Tune the decoder on the cascade's own latents.",
            unpublished="its scenes are rendered; the recipe decoder trains it on clips",
        ),
        Recipe(
            name="generator",
            summary="Train a text-to-video generator by flow matching.",
            learns_from="scenes",
            profiles=True,
            unpublished=_HAS_GENERATOR,
        ),
        Recipe(
            name="generator_distil",
            summary="Distil the generator into few steps.",
            learns_from="scenes",
            unpublished=_HAS_GENERATOR,
        ),
    )
}
"""Every recipe by name."""
