"""What a test runs under torchrun: the recipes of the SR transformer as the published model
trains them, at a tiny size, sharded with their frozen transformers."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ultraflash_cli.engine.profiles import TINY_RANDOM
from ultraflash_cli.train.loop import Batch, Prefetcher, run_loop
from ultraflash_cli.train.process_group import ALONE, ProcessGroup, joined_group
from ultraflash_cli.train.recipes import RECIPES
from ultraflash_cli.train.roles import CascadeRoles

__all__ = ["NAMES", "train"]

NAMES = ("tv2v_flow_matching", "causal_dmd", "cascade_dpo")


def config_of(name: str, accumulate: int, half: bool) -> Any:
    """Two steps on clips of two groups; blocks recompute their activations."""
    configure: Any = RECIPES[name].load().configure
    config = configure(steps=2, seed=1, profile=TINY_RANDOM)
    loop = replace(
        config.loop,
        precision="bf16" if half else "fp32",
        frozen="bf16" if half else "fp32",
        accumulate=accumulate,
        rate=1e-3,
        warmup=1,
        log_every=1,
    )
    window = replace(config.window, latents=12, rows=8, columns=8)
    config = replace(config, loop=loop, window=window, sample_guidance=2.0)
    if name == "causal_dmd":
        config = replace(config, critic_updates=2, decoded=(4, 4))
    if name == "cascade_dpo":
        config = replace(config, stronger_steps=1, graded_groups=1)
    return config


def weights() -> dict[str, Tensor]:
    """Random weights of all roles that are given."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        roles = CascadeRoles(TINY_RANDOM, ("upsamplers", "decoder", "sr_dit"))
        for parameter in roles.sr_dit.parameters():
            parameter.data.add_(0.05 * torch.randn(parameter.shape))
    state = roles.state_dict()
    stronger = {
        name.replace("sr_dit.", "stronger."): value for name, value in state.items() if name.startswith("sr_dit.")
    }
    return state | stronger


def batch(number: int) -> Batch:
    """Latents at two sizes and embeddings."""
    rng = torch.Generator().manual_seed(number)
    low, high = (torch.randn(1, 16, 12, side, side, generator=rng) for side in (4, 8))
    return low, high, 2, torch.randn(1, 6, 24, generator=rng)


def train(
    name: str,
    folder: Path,
    *,
    accumulate: int = 1,
    half: bool = False,
    group: ProcessGroup = ALONE,
) -> dict[str, Tensor]:
    """Train a recipe; return the EMA weights of what learns."""
    recipe, config = RECIPES[name].load(), config_of(name, accumulate, half)
    given = weights()
    if name != "cascade_dpo":
        given = {key: value for key, value in given.items() if not key.startswith("stronger.")}
    roles = recipe.start(config, [], given)
    batches = Prefetcher(batch, workers=0)
    learners = recipe.learners(config)
    made = run_loop(roles, learners, batches, config.loop, folder / name, group=group)
    learning = {role for learner in learners for role in learner.roles}
    return {key: value for key, value in made.state_dict().items() if key.split(".")[0] in learning}


def main(folder: Path) -> None:
    """Train all recipes in the processes of torchrun."""
    with joined_group(torch.device("cpu"), shards=True, shards_frozen=True) as (group, _):
        for name in NAMES:
            made = train(name, folder, group=group)
            if group.is_main:
                torch.save(made, folder / f"{name}.pt")
        for name in NAMES[:2]:
            train(name, folder / "half", half=True, group=group)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
