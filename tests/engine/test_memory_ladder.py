"""The smaller plans that are chosen if a job needs too much memory."""

from dataclasses import replace

import pytest

from tests.engine.published import part, published
from ultraflash_cli.engine.footprint.ladder import plan_memory
from ultraflash_cli.engine.footprint.plan import MemoryPlan, MemorySettings
from ultraflash_cli.engine.stages.sr_dit import SrDitConfig
from ultraflash_cli.errors import OutOfMemory


def test_enough_memory_gives_the_full_plan() -> None:
    plan = plan_memory(published(3, generates=True), budget_bytes=80 * 10**9)
    assert plan.settings == MemorySettings(kv_len=3, group_latents=6)
    assert plan.notes == plan.warnings == ()


def test_less_and_less_memory_takes_one_step_after_another_until_none_is_left() -> None:
    work = published(3, generates=True)
    seen: list[MemoryPlan] = []
    budget = plan_memory(work).total
    with pytest.raises(OutOfMemory):
        while True:
            plan = plan_memory(work, budget_bytes=budget)
            assert plan.total <= budget
            seen.append(plan)
            budget = plan.total - 1
    assert [plan.total for plan in seen] == sorted((plan.total for plan in seen), reverse=True)
    assert not seen[0].steps
    changed = [bool(plan.warnings) for plan in seen]
    assert changed == sorted(changed), "equal results are tried before other pixels"
    assert {"offload_text", "offload_generator"} <= {n for plan in seen for n, v in vars(plan.settings).items() if v}
    lengths = [plan.settings.kv_len for plan in seen]
    assert lengths[0] == 3 and min(length or 3 for length in lengths) == 1
    groups = [plan.settings.group_latents for plan in seen]
    assert groups == sorted(groups, reverse=True) and groups[-1] == 2


def test_steps_with_equal_results_are_notes_and_the_others_warnings() -> None:
    plan = plan_memory(published(3, generates=False), budget_bytes=24 * 10**9)
    assert "text encoder freed after encoding the prompt" in plan.notes
    assert plan.warnings == (f"for lack of memory: SR transformer remembers {plan.settings.kv_len} of 3 blocks",)


def test_24_gigabytes_do_not_hold_2k_with_the_published_memory() -> None:
    plan = plan_memory(published(3, generates=False), budget_bytes=24 * 10**9)
    assert (plan.settings.kv_len or 3) < 3
    assert plan_memory(published(2, generates=False), budget_bytes=24 * 10**9).warnings == ()


def test_a_step_that_turns_out_not_to_be_needed_is_not_taken() -> None:
    work = replace(published(3, generates=False), text_encoder=None)
    full = plan_memory(work)
    rings = part(full, "SR transformer KV rings")
    plan = plan_memory(work, budget_bytes=full.total - rings * 19 // 60)  # decoding in pieces alone saves less
    assert plan.settings.kv_len == 2 and plan.settings.decode_latents is None


def test_nothing_that_fits_is_one_line_with_what_takes_most_and_exit_code_5() -> None:
    wanted = r"needs \d+\.\d\d GB, most of it for generator KV ring and .+, and 8\.00 GB may be used; .*--max-memory"
    with pytest.raises(OutOfMemory, match=wanted) as refused:
        plan_memory(published(3, generates=True), budget_bytes=8 * 10**9)
    assert refused.value.exit_code == 5
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 250


def test_on_a_cpu_nothing_is_moved_to_the_host() -> None:
    work = replace(published(2, generates=True), on_gpu=False)
    full = plan_memory(replace(work, text_encoder=None)).total
    with pytest.raises(OutOfMemory):
        plan_memory(work, budget_bytes=full // 4)
    assert plan_memory(work, budget_bytes=int(0.9 * full)).host_bytes == 0


def test_the_generator_stays_where_the_host_cannot_take_it() -> None:
    work = published(3, generates=True)
    budget = plan_memory(replace(work, text_encoder=None)).total - 10**9
    assert plan_memory(work, budget_bytes=budget).settings.offload_generator
    assert not plan_memory(work, budget_bytes=budget, host_budget_bytes=10**9).settings.offload_generator


def test_the_settings_shorten_the_memory_of_every_group() -> None:
    config = SrDitConfig(kv_schedule=(3, 3, 2, 1))
    shorter = MemorySettings(kv_len=2, group_latents=4).apply_to(config)
    assert (shorter.kv_len, shorter.kv_schedule, shorter.group_latents) == (2, (2, 2, 2, 1), 4)
    assert MemorySettings(kv_len=3).apply_to(config) == config


def test_a_plan_is_plain_values_for_machines() -> None:
    plan = plan_memory(published(2, generates=True), budget_bytes=30 * 10**9).as_json()
    assert plan["total_bytes"] == sum(each["bytes"] for each in plan["parts"]) <= plan["budget_bytes"]
    assert plan["settings"]["offload_text"] is True
    assert [step["changes_pixels"] for step in plan["steps"]] == [False]
