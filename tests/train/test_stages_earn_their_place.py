"""The chain of recipes at toy size, on rendered scenes: every stage brings the picture
closer to the renderer's.

A recipe that only lowers its own loss may make pictures worse; here each stage is
measured against leaving it out, by the mean square error of decoded frames of held-out
scenes. The transformer's stages run with what the published size needs: learners and
teachers sharded, blocks that recompute their activations, hybrid rewards, the shrinking
memory of dynamic cache management, and kept pairs that count by a reward margin.
"""

import math
from collections.abc import Callable, Generator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from ultraflash_cli.engine.profiles import LITE
from ultraflash_cli.train.components import start_from_components
from ultraflash_cli.train.flows import clean_of, group_flow
from ultraflash_cli.train.latents import draw_scene, scene_caption
from ultraflash_cli.train.loop import Batch, Prefetcher, generator_of, run_loop
from ultraflash_cli.train.process_group import ALONE, ProcessGroup
from ultraflash_cli.train.recipes import cascade_dpo, causal_dmd, latent_upsampler, tv2v_flow_matching
from ultraflash_cli.train.roles import TOY, TOY_WORDS, CascadeRoles

LATENTS, LONG, SMALL, LARGE = 2, 8, (48, 80), (96, 160)
SCENES, HELD_OUT, CLIPS, KEPT = 24, 6, 4, 3
assert TOY.sr_dit is not None and TOY.upsampler is not None
PROFILE = replace(
    LITE,
    upsampler=replace(TOY.upsampler, latent_channels=16),
    sr_dit=replace(TOY.sr_dit, latent_channels=16, prediction="residual", sees_signal=True, kv_len=2),
    generator=None,
    text_encoder=None,
)
"""The built-in model's autoencoder, initialised with principal components that need no
training, and toy networks between its halves."""

Weights = dict[str, Tensor]


class Scenes:
    """Rendered scenes at both sizes, with captions."""

    def __init__(self, seed: int, count: int, latents: int = LATENTS, clips: int = CLIPS) -> None:
        self.clips = clips
        numbers, rng = range(1, count + 1), np.random.default_rng(1)
        self.low, self.high = (
            torch.stack([draw_scene(seed, number, latents, size) for number in numbers]) for size in (SMALL, LARGE)
        )
        self.captions = [scene_caption(seed, number, rng) for number in numbers]

    def frames(self, number: int) -> Batch:
        """Return the clips of a batch at both sizes, and the scale."""
        picked = [(self.clips * number + i) % len(self.captions) for i in range(self.clips)]
        return self.low[picked], self.high[picked], 2

    def worded(self, number: int) -> Batch:
        """Return the same, and captions."""
        return *self.frames(number), tuple(
            self.captions[(self.clips * number + i) % len(self.captions)] for i in range(self.clips)
        )


def even_colours(frames_bcthw: Tensor) -> Tensor:
    """A reward without reference: it prefers frames whose channels have similar
    levels."""
    return -frames_bcthw.mean((3, 4)).std(dim=1)


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Generator[ProcessGroup]:
    """A process group of size one, in which networks are sharded all the same."""
    meeting = tmp_path_factory.mktemp("group") / "meeting"
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=0, world_size=1)
    yield ProcessGroup(shards=True, shards_frozen=True)
    dist.destroy_process_group()


def trained(
    recipe: ModuleType,
    config: Any,
    weights: Weights,
    make: Callable[[int], Batch],
    folder: Path,
    group: ProcessGroup = ALONE,
) -> Weights:
    loop = replace(config.loop, average=0.9, save_every=1000, log_every=1000, recompute=group.shards)
    config = replace(config, loop=loop)
    roles: nn.Module = recipe.start(config, [], weights)
    roles = run_loop(roles, recipe.learners(config), Prefetcher(make, workers=0), loop, folder, group=group)
    return {
        name: x for name, x in roles.state_dict().items() if name.split(".")[0] not in getattr(recipe, "HELPERS", ())
    }


@pytest.fixture(scope="module")
def errors(tmp_path_factory: pytest.TempPathFactory, sharded: ProcessGroup) -> dict[str, float]:
    """Return the error left after every stage, each trained from the one before."""
    scenes, folder = Scenes(1, SCENES), tmp_path_factory.mktemp("chain")
    coder = CascadeRoles(PROFILE, ("encoder", "decoder"))
    start_from_components(coder, scenes.high[:8])
    weights: Weights = dict(coder.state_dict())

    upsampling = replace(latent_upsampler.configure(steps=400, seed=1, toy=True), profile=PROFILE)
    weights = trained(latent_upsampler, upsampling, weights, scenes.frames, folder / "upsampler")
    shared: dict[str, Any] = {"profile": PROFILE, "condition_noise": (0.0, 0.0)}
    config: Any = tv2v_flow_matching.configure(steps=80, seed=1, toy=True)
    config = replace(config, pixel_power=0.5, **shared)
    teacher = trained(tv2v_flow_matching, config, weights, scenes.worded, folder / "tv2v", sharded)
    config = replace(causal_dmd.configure(steps=40, seed=1, toy=True), matching=0.0, guidance=0.0, **shared)
    config = replace(config, rewards=(*config.rewards, (f"{__name__}:even_colours", 0.001)))
    student = trained(causal_dmd, config, teacher, scenes.worded, folder / "dmd", sharded)

    config = cascade_dpo.configure(steps=16, seed=1, toy=True)
    config = replace(
        config,
        better="truth",
        distinct=KEPT,
        pairs=replace(config.pairs, frames=4 * LONG),
        rewards=(("texture", 1.0), ("temporal", 0.1)),
        levels=(0.95, 1.0),
        graded_groups=2,
        **shared,
    )
    assert config.service_profile.sr_dit is not None
    assert config.service_profile.sr_dit.kv_schedule == (2, 2, 2, 1)
    given, long = cascade_dpo.merge([teacher, student]), Scenes(1, 2 * KEPT, LONG, 2)
    make = partial(cascade_dpo.numbered, long.worded, KEPT)
    preferring = trained(cascade_dpo, config, given, make, folder / "dpo", sharded)

    unseen = Scenes(0, HELD_OUT)
    left = _left(teacher, unseen)
    left |= {"student": _left(student, unseen)["refined"], "preferring": _left(preferring, unseen)["refined"]}
    return left | {"preference": _preference(config, given, preferring)}


@torch.no_grad()
def _preference(config: Any, given: Weights, preferring: Weights) -> float:
    """Return the preference loss for the true latents of long clips over the
    student's."""
    roles = cascade_dpo.start(config, [], given)
    own = {name.removeprefix("sr_dit."): x for name, x in preferring.items() if name.startswith("sr_dit.")}
    roles.sr_dit.load_state_dict(own)
    unseen = Scenes(0, 2, LONG, 2)
    batch = cascade_dpo.numbered(unseen.worded, KEPT, 0)
    return cascade_dpo.loss(replace(config, rewards=()), roles, batch, generator_of("preference"))["preference"].item()


@torch.no_grad()
def _left(weights: Weights, scenes: Scenes) -> dict[str, float]:
    """Return mean square errors of results from small clips: latents enlarged by a
    plain filter, by the upsampler, refined in one step, and encoded at the large
    size."""
    roles = CascadeRoles(PROFILE, ("encoder", "upsamplers", "decoder", "sr_dit", "text_encoder"), words=TOY_WORDS)
    roles.load(weights)
    small = roles.encode(scenes.low)
    plain = F.interpolate(small.flatten(1, 2), scale_factor=2, mode="bilinear").unflatten(1, small.shape[1:3])
    upsampled = roles.upsample(small, 2)
    level, noise = torch.ones(len(small)), torch.randn(upsampled.shape, generator=generator_of("noise"))
    context = roles.context(tuple(scenes.captions))
    refined = clean_of(noise, group_flow(roles.sr_dit, noise, upsampled, level, context), level)
    made = {"plain": plain, "upsampled": upsampled, "refined": refined, "encoded": roles.encode(scenes.high)}
    return {name: (roles.decode(x).clamp(0, 1) - scenes.high).square().mean().item() for name, x in made.items()}


def test_the_upsampler_is_better_than_a_plain_filter(errors: dict[str, float]) -> None:
    assert errors["encoded"] < 0.5 * errors["upsampled"] < errors["upsampled"] < 0.98 * errors["plain"]


def test_the_transformer_taught_by_flow_matching_is_better_than_none(errors: dict[str, float]) -> None:
    assert errors["refined"] < 0.98 * errors["upsampled"]


def test_the_student_of_one_step_is_better_than_one_step_of_its_teacher(errors: dict[str, float]) -> None:
    assert errors["student"] < 0.985 * errors["refined"]


def test_the_preference_for_the_truth_is_learned_and_loses_nothing_of_what_was(errors: dict[str, float]) -> None:
    assert errors["preference"] < 0.995 * math.log(
        2
    )  # without the stage: the loss of the reference, which prefers neither
    assert errors["preferring"] < 1.02 * errors["student"]
