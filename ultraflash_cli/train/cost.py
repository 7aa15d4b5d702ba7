"""Cost of a training run: GPU memory by part, operations per step and hours, computed
on the meta device, where tensors have shapes but no storage.

The losses of a recipe are run unchanged with one and two layers; as all layers are
alike, the rest is extrapolated. Weights, gradients, moments and EMA weights are counted
parameter by parameter under the rules of `Shards`.
"""

from dataclasses import dataclass, replace
from itertools import product
from typing import Any, cast

import torch
from torch import Tensor, nn

from ultraflash_cli.engine.profiles import Profile
from ultraflash_cli.engine.seeds import generator_of
from ultraflash_cli.engine.stages.text_encoder import TextEncoderConfig
from ultraflash_cli.errors import UsageError
from ultraflash_cli.train.large import comes_encoded
from ultraflash_cli.train.learning import Batch, Learner, RecipeConfig
from ultraflash_cli.train.recipe import RecipeModule
from ultraflash_cli.train.recipes import RECIPES
from ultraflash_cli.train.recipes.tv2v_flow_matching import Tv2vConfig
from ultraflash_cli.train.run import TrainJob
from ultraflash_cli.train.shards import transformer_parts
from ultraflash_cli.train.tally import Tally

__all__ = ["GPU_CONTEXT", "Cost", "Fleet", "cost_of", "cost_of_job", "meta_batch", "turn"]

GPU_CONTEXT = 2 * 10**9
"""Bytes assumed for the CUDA context, libraries and the buffers of collectives."""

FRAGMENTATION = 0.05
"""Share of activations assumed to be lost between allocations."""

LEARNER_BYTES = {"weights": 4, "EMA": 4, "gradients": 4, "optimiser": 8}
"""Bytes per trained parameter, in float32: its value, its EMA, its gradient and AdamW's two
moments."""


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """Hardware of a run."""

    gpus: int = 8
    """GPUs, one process each; learners are sharded over them."""
    gpu_bytes: int = 80 * 10**9
    """Memory of each GPU in bytes."""
    tflops: float = 400.0
    """Measured training throughput of each GPU, in 10^12 operations per second."""
    shard_frozen: bool = False
    """Whether frozen transformers are sharded as well."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Resources needed by a run."""

    memory: dict[str, int]
    """Bytes on each GPU, by part."""
    host_bytes: int
    """Host memory of each process at startup: all networks are built in full in
    float32, then sharded."""
    flops_per_step: float
    """Mean operations per optimiser step on each GPU; a learner updated in every n-th
    step counts one n-th."""
    turns: dict[str, float]
    """Operations of one turn of each learner on one batch."""
    clips_per_step: int
    """Clips per step over all GPUs."""
    steps: int
    """Optimiser steps."""
    fleet: Fleet
    """Hardware of the run."""

    @property
    def total_bytes(self) -> int:
        """Bytes on each GPU."""
        return sum(self.memory.values())

    @property
    def spare_bytes(self) -> int:
        """Bytes left; negative if the run does not fit."""
        return self.fleet.gpu_bytes - self.total_bytes

    @property
    def seconds_per_step(self) -> float:
        """Mean seconds per step at the fleet's throughput."""
        return self.flops_per_step / (self.fleet.tflops * 1e12)

    @property
    def hours(self) -> float:
        """Duration of the run in hours."""
        return self.steps * self.seconds_per_step / 3600


def cost_of(recipe: RecipeModule, config: Any, fleet: Fleet) -> Cost:
    """Return the cost of a run of a recipe. Raises UsageError for recipes and models of
    small sizes, whose cost does not matter."""
    profile: Profile | None = getattr(config, "profile", None)
    if profile is None or not comes_encoded(profile):
        raise UsageError("--dry-run computes runs at the published size; give --profile ultraflash")

    roles = _roles(recipe, config)
    learning = {p for each in recipe.learners(config) for p in each.parameters(roles).values()}
    memory, flops = _weights(roles, learning, config, fleet), dict[str, float]()

    peak = 0
    for learner in recipe.learners(config):
        turn_flops, turn_peak = _extrapolated(recipe, config, learner.name)
        flops[learner.name], peak = turn_flops, max(peak, turn_peak)

    memory["activations and caches"] = round(peak * (1 + FRAGMENTATION))
    memory["CUDA and collectives (assumed)"] = GPU_CONTEXT
    shares = {each.name: flops[each.name] / each.every for each in recipe.learners(config)}
    return Cost(
        memory=memory,
        host_bytes=4 * sum(p.numel() for p in roles.parameters()),
        flops_per_step=sum(shares.values()) * config.loop.accumulate,
        turns=flops,
        clips_per_step=fleet.gpus * config.loop.batch * config.loop.accumulate,
        steps=config.loop.steps,
        fleet=fleet,
    )


def cost_of_job(job: TrainJob, fleet: Fleet) -> Cost:
    """Return the cost of a job. Raises UsageError as ``cost_of`` does."""
    if unpublished := RECIPES[job.recipe].unpublished:
        raise UsageError(
            f"--dry-run computes runs at the published size, and {job.recipe} does not train that model: {unpublished}"
        )
    recipe = RECIPES[job.recipe].load()
    return cost_of(recipe, job.configure(recipe), fleet)


def _roles(recipe: RecipeModule, config: RecipeConfig) -> nn.Module:
    with torch.device("meta"):
        return recipe.start(config, [], {})


def _weights(roles: nn.Module, learning: set[nn.Parameter], config: RecipeConfig, fleet: Fleet) -> dict[str, int]:
    """Return the bytes of parameters, gradients and optimiser state on each GPU."""
    count = sum(p.numel() for p in learning)
    memory = {f"{name} of learners": per * count // fleet.gpus for name, per in LEARNER_BYTES.items()}
    parts = [tuple(part.parameters()) for part in transformer_parts(roles)]
    in_parts = {p for part in parts for p in part}
    value_bytes = 2 if config.loop.runs_in_bf16 else 4
    # The part being computed and the next one; everything else throughout the turn.
    largest = max((sum(p.numel() for p in part) for part in parts), default=0)
    rest = sum(p.numel() for p in learning - in_parts)
    memory["gathered weights"] = value_bytes * (2 * largest + rest)

    frozen_bytes = 2 if config.loop.frozen == "bf16" else 4
    frozen = set(roles.parameters()) - learning
    sharded = {p for p in frozen if fleet.shard_frozen and p in in_parts}
    whole = sum(p.numel() for p in frozen - sharded)
    divided = sum(p.numel() for p in sharded) // fleet.gpus
    memory["frozen networks"] = frozen_bytes * (whole + divided)
    return memory


def _extrapolated(recipe: RecipeModule, config: RecipeConfig, learner: str) -> tuple[float, int]:
    """Return operations and peak bytes of a learner's turn on one batch, extrapolated
    from runs with one and two transformer layers, and with one and two steps of a
    stronger model."""
    if not isinstance(config, Tv2vConfig):
        return _of_scales(recipe, config, learner)
    sr_dit = config.profile.sr_dit
    assert sr_dit is not None, "the config was checked"
    axes = {"layers": sr_dit.num_layers}
    if hasattr(config, "stronger_steps"):
        axes["steps"] = cast("Any", config).stronger_steps
    names = list(axes)
    counted: dict[tuple[int, ...], tuple[float, int]] = {}
    for point in product(*(sorted({1, min(2, axes[name])}) for name in names)):
        at = dict(zip(names, point, strict=True))
        counted[point] = _counted(recipe, _with(config, at), learner)
    target = tuple(axes[name] for name in names)
    flops = _linear({point: flops for point, (flops, _) in counted.items()}, target)
    peak = _linear({point: float(peak) for point, (_, peak) in counted.items()}, target)
    return flops, round(peak)


def _of_scales(recipe: RecipeModule, config: RecipeConfig, learner: str) -> tuple[float, int]:
    """Return the mean operations and the peak bytes of a turn over a recipe's
    scales."""
    odds = dict(cast("Any", config).scale_odds)
    at = {scale: replace(cast("Any", config), scale_odds=((scale, 1.0),)) for scale in odds}
    counted = {scale: _counted(recipe, alone, learner) for scale, alone in at.items()}
    flops = sum(odds[scale] * flops for scale, (flops, _) in counted.items()) / sum(odds.values())
    return flops, max(peak for _, peak in counted.values())


def _with(config: Tv2vConfig, at: dict[str, int]) -> Tv2vConfig:
    profile: Profile = config.profile
    assert profile.sr_dit is not None, "the config was checked"
    shallow = replace(profile, sr_dit=replace(profile.sr_dit, num_layers=at["layers"]))
    config = replace(config, profile=shallow)
    return replace(cast("Any", config), stronger_steps=at["steps"]) if "steps" in at else config


def _linear(values: dict[tuple[int, ...], float], target: tuple[int, ...]) -> float:
    """Return the function linear in each argument that matches the values at 1 and
    2."""
    if not target:
        return values[()]
    first = target[0]
    low, high = ({point[1:]: value for point, value in values.items() if point[0] == at} for at in (1, 2))
    start = _linear(low, target[1:])
    return start if first == 1 else start + (first - 1) * (_linear(high, target[1:]) - start)


def _counted(recipe: RecipeModule, config: RecipeConfig, name: str) -> tuple[float, int]:
    """Return operations and peak bytes of a learner's turn on one batch."""
    roles = _roles(recipe, config)
    if config.loop.runs_in_bf16:
        roles.to(torch.bfloat16)
    (learner,) = (each for each in recipe.learners(config) if each.name == name)
    learning = set(learner.parameters(roles).values())
    for p in roles.parameters():
        p.requires_grad_(p in learning)
        if p in learning:
            # As under sharding, a gradient is freed as soon as it is complete.
            p.register_post_accumulate_grad_hook(_drop_gradient)
    batch = meta_batch(config) if isinstance(config, Tv2vConfig) else _meta_pairs(config)
    return turn(learner, roles, batch, config.loop.seed)


def turn(learner: Learner, roles: nn.Module, batch: Batch, seed: int) -> tuple[float, int]:
    """Run a learner's loss forward and backward on a batch; return the operations and
    the peak of additionally allocated bytes."""
    with Tally() as tally:
        terms: dict[str, Tensor] = learner.loss(roles, batch, generator_of(seed, "cost"))
        torch.stack(list(terms.values())).sum().backward()
    return float(tally.flops), tally.peak_bytes


def _drop_gradient(p: Tensor) -> None:
    p.grad = None


def _meta_pairs(config: RecipeConfig) -> Batch:
    """Return a batch of clip pairs without storage."""
    pairs, (scale, _) = cast("Any", config).pairs, cast("Any", config).scale_odds[0]
    size, side = (config.loop.batch, 3, pairs.frames), pairs.crop_px
    low = torch.zeros(*size, side, side, device="meta")
    return low, torch.zeros(*size, scale * side, scale * side, device="meta"), scale


def meta_batch(config: Tv2vConfig, device: str = "meta") -> Batch:
    """Return a batch of the configured window, without storage unless a device is
    given."""
    words, window = config.profile.text_encoder, config.window
    assert isinstance(words, TextEncoderConfig), "encoded data come with embeddings"
    batch, scale = config.loop.batch, config.scale_odds[0][0]
    channels = config.profile.latent_stages[1].latent_channels
    size = (batch, channels, window.latents)
    low = torch.zeros(*size, window.rows // scale, window.columns // scale, device=device)
    high = torch.zeros(*size, window.rows, window.columns, device=device)
    return low, high, scale, torch.zeros(batch, words.text_len, words.dim, device=device)
