"""Choice of the generator for a clip, and how the memory plan and the cache rules reach
it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.models.installing import put
from ultraflash_cli.engine.cache_policy import CacheManagement, RefreshGate, SharpnessDrift
from ultraflash_cli.engine.footprint.plan import MemoryPart, MemoryPhase, MemoryPlan, MemorySettings, MemoryStep
from ultraflash_cli.engine.profiles import LITE, TINY_RANDOM, ULTRAFLASH
from ultraflash_cli.engine.schedule import kv_lengths
from ultraflash_cli.errors import OutOfMemory, UsageError, WeightsError
from ultraflash_cli.jobs.planning.generate import GenerateJob, PreparedGeneration
from ultraflash_cli.jobs.running import loader as models
from ultraflash_cli.jobs.running.loader import Models, planes_for
from ultraflash_cli.jobs.running.prepare import prepare_generation
from ultraflash_cli.models.build import find_scorer, speedups_within
from ultraflash_cli.models.profile import settle_coders, under_memory_plan, with_cache_rules
from ultraflash_cli.models.shelf import Shelf
from ultraflash_cli.weights.store import WeightStore


def prepared(folder: Path, **options: Any) -> PreparedGeneration:
    settings: dict[str, Any] = {"prompt": "a corgi", "model": "tiny-random", "device": "cpu", "threads": 1}
    settings |= {"folder": folder, **options}
    return prepare_generation(GenerateJob(**settings))


def test_beyond_its_window_the_short_generator_slides_where_the_long_one_is_not_installed(tmp_path: Path) -> None:
    import torch

    short = prepared(tmp_path, model="ultraflash", store=tmp_path)
    assert (short.generator, short.long, short.warnings) == (ULTRAFLASH.generator, False, ())
    alone = prepared(tmp_path, model="ultraflash", store=tmp_path, seconds=20)
    assert alone.generator.slide and alone.generator.sink == 3 and not alone.long
    assert len(alone.warnings) == 1 and "weights pull ultraflash-long" in alone.warnings[0]
    for name in ("ultraflash-long/generator", "ultraflash-long/lora"):
        put(WeightStore(tmp_path), name, {"x": torch.zeros(1)})
    long = prepared(tmp_path, model="ultraflash", store=tmp_path, seconds=20)
    assert (long.generator, long.long, long.warnings) == (ULTRAFLASH.long_generator, True, ())
    assert long.plan.chunks[:2] == (1, 3)


def test_a_model_that_is_not_installed_names_the_set_to_pull(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"and 6 more are missing\; run `ultraflash weights pull ultraflash`"):
        Models().plan_generator(prepared(tmp_path, model="ultraflash", store=tmp_path))


def test_the_cache_rules_reach_generator_and_sr_transformer(tmp_path: Path) -> None:
    made = prepared(tmp_path, cache_management="steps=2,refresh=0.5,kv", seconds=2.5)
    built = Models().generator(made)
    video: Any = built.model
    assert video._video.sampler.config.later_steps == 2
    assert isinstance(video._video.sampler.gate, RefreshGate)
    assert video._video.refiner.sr_dit.config.kv_schedule == kv_lengths(len(made.plan.groups))


def test_without_the_rule_a_network_used_before_has_no_gate(tmp_path: Path) -> None:
    shared = Models()
    shared.generator(prepared(tmp_path, cache_management="refresh"))
    video: Any = shared.generator(prepared(tmp_path)).model
    assert video._video.sampler.gate is None


def test_managed_changes_nothing_when_all_rules_are_off() -> None:
    assert with_cache_rules(TINY_RANDOM, CacheManagement(), long=False, groups=4) == TINY_RANDOM


def test_the_memory_plan_reaches_the_cascade(tmp_path: Path) -> None:
    profile = under_memory_plan(TINY_RANDOM, MemorySettings(kv_len=1, group_latents=2))
    assert profile.sr_dit is not None
    assert (profile.group_latents, profile.sr_dit.group_latents, profile.sr_dit.kv_len) == (2, 2, 1)
    with pytest.raises(OutOfMemory, match="smallest plan needs"):
        Models().generator(prepared(tmp_path, max_memory="1M"))


def test_a_plan_that_changes_pixels_is_a_warning_and_part_of_the_fingerprint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = prepared(tmp_path)
    full = Models().generator(made)
    _, _, plan = Models().plan_generator(made)
    step = MemoryStep(text="a short SR memory", changes_pixels=True)
    smaller = replace(plan, settings=MemorySettings(kv_len=1), steps=(step,))
    monkeypatch.setattr(models, "_plan_generation", lambda *_: smaller)
    small = Models().generator(made)
    assert small.warnings == ("for lack of memory: a short SR memory",)
    assert small.memory_plan != full.memory_plan


def test_a_gpu_makes_planes_where_the_encoder_takes_them(tmp_path: Path) -> None:
    spec, gpu = prepared(tmp_path).spec, torch.device("cuda")
    form = planes_for(spec, gpu)
    assert form is not None and (form.matrix, form.full_range, form.bits) == ("bt709", False, 8)
    deep = planes_for(replace(spec, pix_fmt="yuv420p10le"), gpu)
    assert deep is not None and deep.bits == 10
    assert planes_for(spec, torch.device("cpu")) is None
    assert planes_for(replace(spec, pix_fmt="yuv444p"), gpu) is None
    assert planes_for(None, gpu) is None


def test_the_scorer_is_the_plug_ins_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(find_scorer(), SharpnessDrift)

    class Plugin:
        name = "learned"

        def load(self) -> Any:
            return lambda: "a learned scorer"

    monkeypatch.setattr(
        "ultraflash_cli.models.build.entry_points",
        lambda group: [Plugin()] if group == "ultraflash.scorers" else [],
    )
    assert find_scorer() == "a learned scorer"


def test_other_coders_are_refused_where_a_model_has_one() -> None:
    for choice in ({"encoder": "wan-vae", "decoder": "auto"}, {"encoder": "auto", "decoder": "ultra"}):
        with pytest.raises(UsageError, match="lite has only one"):
            settle_coders(LITE, Shelf(), **choice)


@pytest.mark.parametrize(
    ("device", "budget", "parked", "graphs", "expected"),
    [
        pytest.param("cuda", None, False, True, (True, True), id="nothing known of the memory"),
        pytest.param("cuda", 1.0, False, True, (True, True), id="room for both"),
        pytest.param("cuda", 0.99, False, True, (False, False), id="no room"),
        pytest.param("cuda", 1.0, False, False, (False, True), id="without graphs, as asked"),
        pytest.param("cuda", 1.0, True, True, (True, False), id="a parked generator does not work ahead"),
        pytest.param("cpu", None, False, True, (False, False), id="no GPU"),
    ],
)
def test_graphs_and_lanes_are_taken_on_a_gpu_that_has_room_for_them(
    device: str, budget: float | None, parked: bool, graphs: bool, expected: tuple[bool, bool]
) -> None:
    import torch

    parts = {"generator weights": 70, "generator KV rings": 10, "generator activations": 15, "SR transformer state": 5}
    held = (MemoryPart(name=n, bytes=count, doubled=not n.endswith("weights")) for n, count in parts.items())
    phase = MemoryPhase(name="generate", parts=tuple(held))
    plan = MemoryPlan(
        phases=(phase, phase),
        settings=MemorySettings(offload_generator=parked),
        budget_bytes=None if budget is None else int(130 * budget),
    )
    assert plan.beside_bytes == 30
    chosen = speedups_within(plan, torch.device(device), graphs=graphs)
    assert (chosen.graphs, chosen.streams) == expected
