"""Runners for the generator, its sampler and the schedule."""

from collections.abc import Callable
from itertools import accumulate
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.parity.vector_set import VectorSet
from ultraflash_cli.engine.flow_matching import FlowSchedule, fewer_steps
from ultraflash_cli.engine.sampling import GeneratorInputs, Sampler
from ultraflash_cli.engine.schedule import kv_lengths, plan_generation
from ultraflash_cli.engine.stages.generator import ChunkResult, Generator, GeneratorConfig
from ultraflash_cli.weights.convert import RULES, merge_lora, normalise

__all__ = ["RUNNERS", "generator_config"]

PUBLISHED_STEPS = (1000, 750, 500, 250)
"""Steps that the indices of a set refer to."""


def _scheduler(vectors: VectorSet) -> None:
    config, io = vectors.config, vectors.io
    schedule = FlowSchedule(config["shift"])
    steps = schedule.warp(config["denoising_step_list"])
    vectors.compare("sigmas", schedule.sigmas, tolerance=0)
    vectors.compare("timesteps", schedule.timesteps, tolerance=0)
    vectors.compare("warped", torch.tensor(steps), tolerance=0)
    vectors.expect("warped steps", list(steps) == config["warped"])
    for count, fewer in config.get("reduced_steps", {}).items():
        vectors.expect(f"{count} steps", list(fewer_steps(steps, int(count))) == fewer)
    for dtype in sorted({name.split(".")[0] for name in io if name.endswith(".flow")}):
        x_t, flow, noise = (io[f"{dtype}.{name}"] for name in ("xt", "flow", "renoise"))
        rows = list(enumerate(io["t"].tolist()))
        clean = torch.stack([schedule.clean(x_t[i], flow[i], t) for i, t in rows])
        noisy = torch.stack([schedule.renoise(x_t[i], noise[i], t) for i, t in rows])
        for name, got in (("x0", clean), ("noisy", noisy)):
            vectors.expect(f"dtype of {dtype}.{name}", got.dtype == io[f"{dtype}.{name}"].dtype)
            vectors.compare(f"{dtype}.{name}", got, tolerance=0)


class _Recorded(Generator):
    """A generator that records the inputs and outputs of its network."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__(config)
        self.runs: list[tuple[Tensor, Tensor]] = []

    def forward_chunk(self, x_bcthw: Tensor, *args: Any, **kwargs: Any) -> ChunkResult:
        result = super().forward_chunk(x_bcthw, *args, **kwargs)
        self.runs.append((x_bcthw.transpose(1, 2), result.flow_bcthw.transpose(1, 2)))
        return result


def generator_config(vectors: VectorSet) -> GeneratorConfig:
    """Return the config of the network of an ``lr_generator`` set."""
    config = vectors.config
    chunks: list[int] = config["chunk_frames"]
    _, channels, _, patch_rows, patch_cols = vectors.weights()["patch_embedding.weight"].shape
    return GeneratorConfig(
        **{key: config[key] for key in ("dim", "num_heads", "num_layers", "ffn_dim", "freq_dim", "text_dim")},
        text_len=config["text_len"],
        latent_channels=channels,
        patch=(1, patch_rows, patch_cols),
        chunk_latents=max(chunks),
        independent_first_frame=chunks[0] == 1 and max(chunks) > 1,
        steps=tuple(PUBLISHED_STEPS[i] for i in config["step_indices"]),
        window=config["cache_frames"],
        sink=config["sink_size"],
        slide=config["local_attn_size"] != -1,
    )


def _lr_generator(vectors: VectorSet) -> None:
    config, io, weights = vectors.config, vectors.io, vectors.weights()
    chunks: list[int] = config["chunk_frames"]
    stage = _Recorded(generator_config(vectors))
    stage.load_state_dict(_with_adapters(vectors, weights))
    height, width = config["latent_hw"]
    tokens = stage.config.tokens_per_frame(height, width)
    steps = list(range(len(config["step_indices"])))
    vectors.expect("tokens_per_frame", tokens == config.get("tokens_per_frame", tokens))
    vectors.expect("timesteps", list(stage.config.steps_of_chunk(0)) == config["timesteps"])

    prompt = io["prompt_embeds"]
    sampler = Sampler(stage)
    state = sampler.init_state(batch=prompt.shape[0], height=height, width=width, context=prompt)
    for chunk, frames in enumerate(chunks):
        noise = io[f"c{chunk}.noise"]
        vectors.expect(f"length of chunk {chunk}", noise.shape[1] == frames)
        draws = [io[f"c{chunk}.s{i}.renoise"] for i in steps[:-1]]
        stacked = torch.stack(draws, dim=1) if draws else noise[:, None][:, :0]
        stage.runs.clear()
        state, clean = sampler.step(state, GeneratorInputs(noise.transpose(1, 2), stacked.transpose(2, 3)))
        for i in steps:
            vectors.compare(f"c{chunk}.s{i}.flow", stage.runs[i][1])
            if i:
                vectors.compare(f"c{chunk}.s{i - 1}.x_next", stage.runs[i][0])
        vectors.compare(f"c{chunk}.x0", clean.transpose(1, 2))
        for ring in state.rings:
            ends = config["global_local_end_after_chunk"][chunk]
            vectors.expect(f"fill after chunk {chunk}", [ring.total, ring.fill] == ends)
    for layer, ring in enumerate(state.rings):
        for name, used in zip("kv", ring.used[:2], strict=True):
            if f"final_kv.layer{layer}.{name}" in io:
                vectors.compare(f"final_kv.layer{layer}.{name}", used.transpose(1, 2))


def _with_adapters(vectors: VectorSet, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Merge the adapters of the set, if it has any, as the long variant does when it is loaded."""
    adapters = vectors.config.get("lora")
    if adapters is None:
        return weights
    stored = load_file(vectors.path / adapters["file"])
    vectors.expect("the number of adapters", len(stored) == adapters["num_tensors"])
    expected = {name.removeprefix(adapters["key_prefix"]): tuple(value.shape) for name, value in stored.items()}
    plain = normalise(stored, expected, RULES["lora"])
    return merge_lora(weights, plain, scale=adapters["alpha"] / adapters["rank"])


def _cascade_schedule(vectors: VectorSet) -> None:
    for case in vectors.read_json("cascade_schedule.json"):
        plan = plan_generation(
            case["num_frames_requested"],
            independent_first=case["independent_first_frame"],
            chunks_per_group=case["chunks_per_group"],
        )
        facts: dict[str, object] = {
            "chunks": plan.chunks,
            "groups": plan.groups,
            "group_offsets": tuple(accumulate(plan.groups[:-1], initial=0)),
            "pixel_frames": plan.pixel_frames,
            "total_pixel_frames": plan.total_frames,
            "adaptive_kv_len": kv_lengths(len(plan.groups)),
        }
        for fact, found in facts.items():
            found = list(found) if isinstance(found, tuple) else found
            vectors.expect(f"{fact} of {case['num_frames_requested']} latents", found == case[fact])


RUNNERS: dict[str, Callable[[VectorSet], None]] = {
    "cascade_schedule": _cascade_schedule,
    "lr_generator": _lr_generator,
    "scheduler": _scheduler,
}
"""Runner of each set, by the longest prefix of its name."""
