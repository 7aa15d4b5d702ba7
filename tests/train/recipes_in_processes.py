"""Script that a test runs under torchrun: every recipe for two steps, sharded. Those of
the SR transformer train as the published model does, at a tiny size; the others as
toys."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from tests.train.made import SMALL, write_likeness_package
from ultraflash_cli.engine.profiles import TINY_RANDOM
from ultraflash_cli.engine.stages.encoder import EncoderConfig
from ultraflash_cli.train.loop import Batch, Prefetcher, run_loop
from ultraflash_cli.train.process_group import ALONE, ProcessGroup, joined_group
from ultraflash_cli.train.recipes import RECIPES, autoencoder, generator_distil, pixels
from ultraflash_cli.train.roles import TOY, TOY_WORDS, CascadeRoles

__all__ = ["ANYTHING", "NAMES", "PUBLISHED", "before", "train"]

PUBLISHED = ("tv2v_flow_matching", "causal_dmd", "cascade_dpo")
NAMES = tuple(RECIPES)

ANYTHING = ("critic.layers.6.bias",)
"""Parameters on which the loss does not depend: the bias of a critic whose scores are
only compared with each other. Its gradient is rounding noise."""


def config_of(name: str, accumulate: int, half: bool) -> Any:
    """Return a config of two steps that logs after each; the SR transformer trains on
    clips of two groups and recomputes the activations of its blocks."""
    configure: Any = RECIPES[name].load().configure
    config = configure(steps=2, seed=1, toy=True)
    if name in PUBLISHED:
        config = configure(steps=2, seed=1, profile=TINY_RANDOM)
    precision = "bf16" if half else "fp32"
    loop = replace(config.loop, precision=precision, frozen=precision, accumulate=accumulate, warmup=1, log_every=1)
    config = replace(config, loop=replace(loop, rate=1e-3))

    if name in PUBLISHED:
        window = replace(config.window, latents=12, rows=8, columns=8)
        config = replace(config, window=window, sample_guidance=2.0)
    if name == "causal_dmd":
        config = replace(config, critic_updates=2, decoded=(4, 4))
    if name == "cascade_dpo":
        config = replace(config, stronger_steps=1, graded_groups=1)
    if name == "decoder":
        config = replace(config, condition="lr", without=0.5)
    if name == "perceptual":
        config = replace(config, pixels=SMALL, critic_every=1)
    return config


def weights(name: str) -> dict[str, Tensor] | None:
    """Return random weights for all given roles."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        if name in PUBLISHED:
            return _published(with_stronger=name == "cascade_dpo")
        match name:
            case "pixels":
                return pixels.PixelRoles().state_dict()
            case "perceptual":
                return pixels.PixelRoles(SMALL).state_dict()
            case "bottleneck" | "autoencoder":
                return CascadeRoles(autoencoder.TOY_SPACE, autoencoder.NETWORKS).state_dict()
            case "cascade_decoder":
                return CascadeRoles(TOY, ("decoder",)).state_dict()
            case "latent_upsampler" | "generator":
                return CascadeRoles(TOY, ("encoder", "decoder")).state_dict()
            case "sr_dit":
                return CascadeRoles(TOY, ("encoder", "upsamplers", "decoder")).state_dict()
            case "generator_distil":
                parts = ("encoder", "decoder", *generator_distil.NETWORKS)
                return CascadeRoles(TOY, parts, words=TOY_WORDS).state_dict()
            case _:
                return None


def _published(*, with_stronger: bool) -> dict[str, Tensor]:
    roles = CascadeRoles(TINY_RANDOM, ("upsamplers", "decoder", "sr_dit"))
    for parameter in roles.sr_dit.parameters():
        parameter.data.add_(0.05 * torch.randn(parameter.shape))
    state = roles.state_dict()
    stronger = {n.replace("sr_dit.", "stronger."): x for n, x in state.items() if n.startswith("sr_dit.")}
    return state | stronger if with_stronger else state


def batches_of(name: str) -> Callable[[int], Batch]:
    """Return a function from numbers to batches: noise of the right shapes."""

    def batch(number: int) -> Batch:
        rng = torch.Generator().manual_seed(number)

        def clips(count: int, frames: int, side: int) -> Tensor:
            return torch.rand(count, 3, frames, side, side, generator=rng)

        if name in PUBLISHED:
            low, high = (torch.randn(1, 16, 12, side, side, generator=rng) for side in (4, 8))
            return low, high, 2, torch.randn(1, 6, 24, generator=rng)
        match name:
            case "perceptual":
                return clips(2, 4, 24), clips(2, 4, 48), 2, torch.tensor([False, True])
            case "autoencoder":
                return clips(2, 8, 32), 0.5
            case "cascade_decoder":
                return torch.randn(2, 8, 2, 4, 4, generator=rng), clips(2, 8, 32)
            case "bottleneck":
                encoder = autoencoder.TOY_SPACE.encoder
                assert isinstance(encoder, EncoderConfig)
                return torch.randn(2, encoder.width, 2, 6, 6, generator=rng), torch.ones(encoder.width)
            case "generator" | "generator_distil":
                shown = torch.randn(2, 8, 4, 6, 10, generator=rng)
                return shown, ("a hill", "a lake"), None, torch.zeros(2, 4, 6, 10)
            case _:
                return clips(1, 16, 32), clips(1, 16, 64), 2

    return batch


def train(
    name: str,
    folder: Path,
    *,
    accumulate: int = 1,
    half: bool = False,
    group: ProcessGroup = ALONE,
) -> dict[str, Tensor]:
    """Train a recipe; return the EMA weights of the trained roles."""
    if name in ("perceptual", "cascade_decoder"):
        package = folder / f"package_of_{group.rank}"
        if not package.exists():
            write_likeness_package(package)
        sys.path.insert(0, str(package))
    recipe, config = RECIPES[name].load(), config_of(name, accumulate, half)
    roles = recipe.start(config, [], weights(name))
    batches = Prefetcher(batches_of(name), workers=0)
    learners = recipe.learners(config)
    made = run_loop(roles, learners, batches, config.loop, folder / name, group=group)
    learning = {role for learner in learners for role in learner.roles}
    state = cast("dict[str, Tensor]", made.state_dict())
    return {key: value for key, value in state.items() if not learning or key.split(".")[0] in learning}


def before(name: str) -> dict[str, Tensor]:
    """Return the weights of all roles before the first step."""
    recipe: Any = RECIPES[name].load()
    return recipe.start(config_of(name, 1, half=False), [], weights(name)).state_dict()


def main(folder: Path) -> None:
    """Train all recipes in torchrun's processes."""
    with joined_group(torch.device("cpu"), shards=True, shards_frozen=True) as (group, _):
        for name in NAMES:
            made = train(name, folder / "both", group=group)
            if group.is_main:
                torch.save(made, folder / f"{name}.pt")
        for name in PUBLISHED[:2]:
            train(name, folder / "half", half=True, group=group)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
