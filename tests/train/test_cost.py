"""The dry run predicts the cost of training: its numbers compared with real tensors and
closed forms."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ultraflash_cli.engine.layers.dense_attention import dense_attention
from ultraflash_cli.engine.profiles import TINY_RANDOM, ULTRAFLASH
from ultraflash_cli.engine.stages.sr_dit import SrDit
from ultraflash_cli.main import main
from ultraflash_cli.train import cost
from ultraflash_cli.train.flows import group_flow
from ultraflash_cli.train.learning import Learner
from ultraflash_cli.train.recipes import RECIPES, cascade_dpo, tv2v_flow_matching
from ultraflash_cli.train.tally import Tally


def test_bytes_alive_and_operations_are_counted_on_any_device_alike() -> None:
    counts: list[tuple[int, int, int]] = []
    for device in ("cpu", "meta"):
        a = torch.ones(64, 32, device=device, requires_grad=True)
        with Tally() as tally:
            b = a @ a.T  # 16 kB, kept for the square
            c = b.square()  # 16 kB
            d = c.view(-1)[:4]
            assert tally.now_bytes == 2 * 64 * 64 * 4
            del c
            d.sum().backward()
        counts.append((tally.now_bytes, tally.peak_bytes, tally.flops))
    assert counts[0] == counts[1]
    assert counts[0][2] == 3 * 2 * 64 * 64 * 32  # forward, and two products backward


def test_attention_without_storage_has_the_operations_of_the_real_one() -> None:
    totals: list[int] = []
    for device in ("cpu", "meta"):
        q, k, v = (torch.ones(2, 3, n, 8, device=device, requires_grad=True) for n in (5, 7, 7))
        with FlopCounterMode(display=False) as counter:
            out = dense_attention(q, k, v)
            forward = counter.get_total_flops()
            out.sum().backward()
        totals += [forward, counter.get_total_flops() - forward]
        assert q.grad is not None and q.grad.shape == q.shape
    pairs = 2 * 3 * 5 * 7
    assert totals[0] == totals[2] == 4 * pairs * 8
    # A fused kernel multiplies queries and keys again instead of keeping the products.
    assert (totals[1], totals[3]) == (8 * pairs * 8, 10 * pairs * 8)


def tiny(recompute: bool = False) -> tv2v_flow_matching.Tv2vConfig:
    config = tv2v_flow_matching.configure(steps=2, seed=1, profile=TINY_RANDOM)
    loop = replace(config.loop, precision="fp32", recompute=recompute)
    window = replace(config.window, rows=8, columns=16)
    return replace(config, loop=loop, window=window)


def turn_of(config: tv2v_flow_matching.Tv2vConfig, device: str) -> tuple[float, int]:
    with torch.device(device):
        roles = tv2v_flow_matching.start(config, [], {})
    roles.requires_grad_(False).sr_dit.requires_grad_(True)
    (learner,) = tv2v_flow_matching.learners(config)
    for p in roles.sr_dit.parameters():
        p.register_post_accumulate_grad_hook(cost._drop_gradient)
    return cost.turn(learner, roles, cost.meta_batch(config, device), 1)


def test_a_turn_without_storage_costs_what_a_real_one_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tv2v_flow_matching.CascadeRoles, "load", lambda *_, **__: None)
    real, meta = (turn_of(tiny(), device) for device in ("cpu", "meta"))
    # The CPU computes attention explicitly: it keeps the weights, and counts 8 products
    # instead of 10.
    assert real[0] < meta[0] < 1.15 * real[0]
    assert 0.6 * real[1] < meta[1] < 1.05 * real[1]


def test_layers_that_recompute_keep_less_and_compute_a_third_more() -> None:
    plain, again = (turn_of(tiny(recompute), "meta") for recompute in (False, True))
    assert again[1] < 0.7 * plain[1]
    assert 1.15 < again[0] / plain[0] < 1.35


def test_costs_of_many_layers_follow_from_those_of_one_and_two() -> None:
    config = tiny()
    sr_dit = TINY_RANDOM.sr_dit
    assert sr_dit is not None
    deep = replace(config, profile=replace(TINY_RANDOM, sr_dit=replace(sr_dit, num_layers=4)))
    recipe = RECIPES["tv2v_flow_matching"].load()
    flops, peak = cost._extrapolated(recipe, deep, "student")
    direct = cost._counted(recipe, deep, "student")
    assert flops == direct[0]
    assert peak == pytest.approx(direct[1], rel=0.02)


def test_eight_gpus_of_80_gb_train_the_published_transformer() -> None:
    """Flow matching at 960 x 1664, 12 latent frames per GPU."""
    recipe = RECIPES["tv2v_flow_matching"].load()
    config = recipe.configure(steps=10_000, seed=1, profile=ULTRAFLASH)  # pyright: ignore[reportCallIssue]
    found = cost.cost_of(recipe, config, cost.Fleet())
    assert found.spare_bytes > 20e9
    # Whole in float32 before they are sharded: the transformer, upsampler and decoder.
    assert 5.7e9 < found.host_bytes < 5.8e9
    # A third of the float32 state of 1.42 billion weights on eight GPUs is its moments.
    learners = sum(size for name, size in found.memory.items() if name.endswith("of learners"))
    assert learners == pytest.approx(20 * 1.419e9 / 8, rel=0.01)
    # Forward, again forward, and back: twice as much in linear layers, 2.5 times in attention.
    tokens, dim = 12 * 64 * 104, 1536
    linears = 2 * tokens * 30 * (6 * dim**2 + 2 * dim * 8960)
    attention = 4 * dim * 30 * sum(range(1, 7)) * (tokens // 6) ** 2
    assert found.flops_per_step == pytest.approx(4 * linears + 4.5 * attention, rel=0.03)


@pytest.mark.parametrize("name", ["decoder", "latent_upsampler"])
def test_networks_of_convolutions_are_counted_at_every_scale(name: str) -> None:
    recipe = RECIPES[name].load()
    config: Any = recipe.configure(steps=10, seed=1, profile=ULTRAFLASH)  # pyright: ignore[reportCallIssue]
    pairs = replace(config.pairs, crop_px=32, frames=4)
    small = replace(config, pairs=pairs, scale_odds=((2, 1.0), (3, 1.0)), loop=replace(config.loop, batch=1))
    if name == "decoder":
        small = replace(small, condition="lr", without=0.0)
    found, alone = (
        cost.cost_of(recipe, each, cost.Fleet(gpus=1)) for each in (small, replace(small, scale_odds=((2, 1.0),)))
    )
    # A clip at x3 has 9/4 of the pixels of one at x2; of the upsampler, both see the small one.
    assert 1.2 < found.turns["student"] / alone.turns["student"] < 1.75
    trained = found.memory["weights of learners"] / 4
    assert trained == (13_972 + 9_844_611 if name == "decoder" else 9_721_504)
    assert found.memory["frozen networks"] > 0 and found.clips_per_step == 1


def test_every_recipe_runs_dry_at_the_published_size_or_says_why_not(capsys: pytest.CaptureFixture[str]) -> None:
    for name, recipe in RECIPES.items():
        words = ["train", "run", name, "--steps", "10", "--profile", "ultraflash", "--dry-run"]
        if not recipe.unpublished:
            config: Any = recipe.load().configure(steps=10, seed=1, profile=ULTRAFLASH)  # pyright: ignore[reportCallIssue]
            assert config.loop.runs_in_bf16 and config.loop.frozen == "bf16" and config.loop.steps == 10
            continue
        assert main(words) == 2
        assert f"{name} does not train ultraflash: {recipe.unpublished}" in capsys.readouterr().err
        assert main([*words[:5], "--dry-run"]) == 2
        assert recipe.unpublished in capsys.readouterr().err
    trained = {name for name, recipe in RECIPES.items() if not recipe.unpublished}
    assert trained == {"decoder", "latent_upsampler", "tv2v_flow_matching", "causal_dmd", "cascade_dpo"}


def test_a_sketch_of_sparse_attention_counts_no_more_than_the_budget() -> None:
    assert ULTRAFLASH.sr_dit is not None
    with torch.device("meta"):
        network = SrDit(replace(ULTRAFLASH.sr_dit, num_layers=1))
        clip, context = torch.zeros(1, 16, 6, 120, 208), torch.zeros(1, 512, 4096)
    with Tally() as tally:
        group_flow(network, clip, clip, torch.ones(1), context)
    tokens, dim = 6 * 64 * 104, 1536
    pairs = 12 * 3 * (network.key_budget(6, 120, 208) + 1) * 128**2
    attention = 4 * 128 * pairs
    linears = 2 * tokens * (6 * dim**2 + 2 * dim * 8960)
    cross = 4 * tokens * 512 * dim
    small = tally.flops - attention - linears - cross
    assert 0 < small < 0.05 * tally.flops


def test_a_preference_is_learned_from_the_last_groups_alone() -> None:
    config = cascade_dpo.configure(steps=2, seed=1, profile=TINY_RANDOM)
    assert config.window.latents == 36 and config.graded_groups == 2
    schedule = config.service_profile.sr_dit
    assert schedule is not None and len(set(schedule.kv_schedule)) > 1
    assert isinstance(cascade_dpo.learners(config)[0], Learner)


def test_the_command_prints_memory_flops_and_hours(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "run", "tv2v_flow_matching", "--steps", "100", "--dry-run"]
    fleet = ["--gpus", "2", "--gpu-memory", "3GB", "--rate", "1"]
    assert main([*words, "--profile", "tiny-random", *fleet]) == 0
    told = capsys.readouterr().out
    assert "on each of 2 GPUs" in told and "to spare of 3" in told and "100 steps" in told
    assert main(words) == 2
    assert "--profile ultraflash" in capsys.readouterr().err
