"""The paper's recipes in sequence, at toy size, each trained once on first use."""

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from tests.train.made import CLEAN, soft_materials
from ultraflash_cli.train.data import PairDataset
from ultraflash_cli.train.loop import Batch, Prefetcher, generator_of, run_loop
from ultraflash_cli.train.recipes import (
    causal_dmd,
    decoder,
    generator,
    generator_distil,
    latent_upsampler,
    tv2v_flow_matching,
)

__all__ = ["CLIPS", "SCENE_SIZE", "Chain", "Weights", "batches_of", "held_out", "scenes", "toy", "train"]

SCENE_SIZE = (32, 48)
CLIPS = 4

Weights = dict[str, Tensor]


def toy(recipe: ModuleType, steps: int, **changes: Any) -> Any:
    """Return the recipe's toy settings for small clips that are only downscaled."""
    config = recipe.configure(steps=steps, seed=1, toy=True)
    loop = replace(config.loop, average=0.9, save_every=steps // 2, log_every=steps)
    if hasattr(config, "pairs"):
        frames, crop_px = changes.pop("frames", 16), changes.pop("crop_px", 24)
        changes["pairs"] = replace(
            config.pairs, shares=(("clip", 1.0),), degradation=CLEAN, crop_px=crop_px, frames=frames
        )
    return replace(config, loop=loop, **changes)


@functools.cache
def dataset(pairs: Any, held_out: bool) -> PairDataset:
    materials = soft_materials(4, first_seed=100) if held_out else soft_materials(8)
    return PairDataset(materials, pairs, seed=2 if held_out else 1, scale_of={2: 1.0})


def pairs_of(config: Any, *, held_out: bool, captions: bool) -> Callable[[int], Batch]:
    data = dataset(config.pairs, held_out)

    def make(number: int) -> Batch:
        batch = data.batch(number, CLIPS)
        return (*batch, tuple(data.caption(number * CLIPS + i) for i in range(CLIPS))) if captions else batch

    return make


@functools.cache
def scenes(number: int, seed: int) -> Batch:
    config = toy(generator, 2, size=SCENE_SIZE)
    config = replace(config, loop=replace(config.loop, seed=seed, batch=CLIPS))
    return generator.scene_batch(config, None, number)


def batches_of(recipe: ModuleType, config: Any, *, held_out: bool = False) -> Callable[[int], Batch]:
    if recipe in (generator, generator_distil):
        return lambda number: scenes(number % 12, 0 if held_out else 1)
    return pairs_of(config, held_out=held_out, captions=recipe not in (decoder, latent_upsampler))


def held_out(recipe: ModuleType, config: Any, roles: nn.Module, *, batches: int = 3) -> dict[str, float]:
    """Return the mean of every term over held-out clips."""
    make, terms = batches_of(recipe, config, held_out=True), dict[str, float]()
    with torch.no_grad():
        for learner in recipe.learners(config):
            for number in range(batches):
                for name, value in learner.loss(roles, make(number), generator_of("test", number)).items():
                    terms[name] = terms.get(name, 0.0) + value.item() / batches
    return terms


def train(recipe: ModuleType, config: Any, roles: nn.Module, folder: Path) -> Weights:
    batches = Prefetcher(batches_of(recipe, config), workers=0)
    run_loop(roles, recipe.learners(config), batches, config.loop, folder)
    helpers = getattr(recipe, "HELPERS", ())
    return {name: value for name, value in roles.state_dict().items() if name.split(".")[0] not in helpers}


class Chain:
    """Weights of every stage, trained once on first use, and its loss before and
    after."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.errors: dict[str, tuple[dict[str, float], dict[str, float]]] = {}
        self.roles: dict[str, Any] = {}
        self.made: dict[str, Weights] = {}

    def run(self, recipe: ModuleType, config: Any, weights: Weights | None) -> Weights:
        name = recipe.__name__.rsplit(".", 1)[-1]
        if name not in self.made:
            roles = recipe.start(config, [], weights)
            before = held_out(recipe, config, roles)
            self.made[name] = train(recipe, config, roles, self.folder / name)
            self.errors[name], self.roles[name] = (before, held_out(recipe, config, roles)), roles
        return self.made[name]

    def decoder(self) -> Weights:
        return self.run(decoder, toy(decoder, 40, frames=8), None)

    def upsampler(self) -> Weights:
        return self.run(latent_upsampler, toy(latent_upsampler, 30, frames=8), self.decoder())

    def tv2v(self) -> Weights:
        return self.run(tv2v_flow_matching, toy(tv2v_flow_matching, 80), self.upsampler())

    def dmd(self) -> Weights:
        return self.run(causal_dmd, toy(causal_dmd, 60), self.tv2v())

    def generator(self) -> Weights:
        return self.run(generator, toy(generator, 120, size=SCENE_SIZE, shift=3.0), self.decoder())
