"""Budgets for the launches and memory traffic of a full-size group on a GPU; they may
only decrease."""

import functools
import itertools
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ultraflash_cli.bench.roofline import H200, Cascade, cascades, parse_rates, roof_of
from ultraflash_cli.bench.trace import (
    TRACES,
    Launch,
    StageTrace,
    _traced,
    trace,
)
from ultraflash_cli.errors import UsageError
from ultraflash_cli.jobs.planning.feed import expected_fps
from ultraflash_cli.jobs.running import prepare
from ultraflash_cli.main import main

BUDGETS = {
    # launches, GB that all move, GB that passes without arithmetic move
    "generator": (2753, 135.5, 38.8),
    "generator fp8": (3173, 121, 57.2),
    "generator fp8 steps": (2582, 97.5, 46.2),
    "encoder": (418, 9.4, 0.9),
    "upsampler 1k": (64, 3.7, 0.5),
    "upsampler 2k": (64, 8.3, 1.1),
    "SR transformer 1k": (615, 176, 44.8),
    "SR transformer 2k": (615, 394, 101.2),
    "SR transformer 1k fp8": (675, 177, 90.2),
    "SR transformer 2k fp8": (675, 397, 203),
    "decoder 1k": (103, 42.3, 3.9),
    "decoder 2k": (206, 97, 9.9),
}

traced = functools.cache(trace)


@pytest.fixture(scope="module")
def estimates() -> dict[str, Cascade]:
    """Return the frame rates of an H200 by the name of the cascade."""
    return {each.name: each for each in cascades([roof_of(traced(name), H200) for name in TRACES])}


@pytest.mark.parametrize("name", TRACES)
def test_a_group_stays_within_its_budget(name: str) -> None:
    launches, moved_gb, passes_gb = BUDGETS[name]
    found = traced(name)
    assert found.count <= launches
    assert found.bytes <= moved_gb * 1e9
    assert found.pass_bytes <= passes_gb * 1e9
    # A budget must not stay far above the actual value either.
    assert found.bytes > 0.97 * moved_gb * 1e9 and found.count > 0.97 * launches


def test_arithmetic_is_that_of_the_published_model() -> None:
    """Per 12 frames, docs/reference/cascade.md 11: the trace counts all of the work and no
    more, but for attention to the padding of prompts."""
    names = ("generator", "decoder 1k", "upsampler 1k", "SR transformer 1k", "SR transformer 2k")
    flops = {name: trace(name).flops / 1e12 for name in names}
    for name, tokens in (("generator", 5 * 4680), ("SR transformer 1k", 37440), ("SR transformer 2k", 84240)):
        flops[name] += 30 * 4 * tokens * (512 - 128) * 1536 / 1e12
    assert flops["SR transformer 1k"] / 2 == pytest.approx(61, rel=0.01)
    assert flops["SR transformer 2k"] / 2 == pytest.approx(138, rel=0.01)
    assert flops["generator"] == pytest.approx(141, rel=0.01)
    # Of 6.3 published, 2.0 are convolutions over doubled pictures and the growth in time
    # before them. Four taps of nine remain, and the growth is in them.
    assert flops["decoder 1k"] / 2 == pytest.approx(5.23, rel=0.01)
    assert flops["upsampler 1k"] / 2 == pytest.approx(0.7, rel=0.03)


def test_a_launch_takes_what_its_arithmetic_or_its_traffic_takes() -> None:
    launches = {
        Launch("addmm", 10**9, 695 * 10**9, 40_000): 2,  # 1 ms of arithmetic
        Launch("residual_norm", 36 * 10**8, 0): 1,  # 1 ms of traffic
        Launch("fused_conv", 10**6, 270 * 10**9, 64): 3,  # 1 ms
        Launch("cat", 1, 0): 1000,  # nothing but launches
    }
    roof = roof_of(StageTrace("x", 24, launches), H200)
    assert roof.parts_ms == pytest.approx({"products": 2, "attention": 0, "convolutions": 3, "passes": 1 + 2.5})
    assert roof.bound_by == "passes" and roof.expected_ms == pytest.approx(8.5)
    assert roof.ideal_ms == pytest.approx((2 * 695 + 3 * 270) / 788)
    assert roof.hopper_ms == roof.expected_ms, "there is no attention"
    texts = StageTrace("x", 24, {Launch("text_attention_fp8", 36 * 10**8, 510 * 10**9): 1})
    assert roof_of(texts, H200).parts_ms["attention"] == pytest.approx(1.0)
    dense = StageTrace("x", 24, {Launch("scaled_dot_product_attention", 10**6, 560 * 10**9): 1})
    assert roof_of(dense, H200).hopper_ms == pytest.approx(1.0)
    assert roof_of(dense, parse_rates("attention=1120")).hopper_ms == pytest.approx(0.5), "a given rate is kept"
    slower = roof_of(StageTrace("x", 24, launches), parse_rates("traffic=1.8, narrow_convolution = 135"))
    assert slower.parts_ms["passes"] == pytest.approx(4.5) and slower.bound_by == "convolutions"
    for wrong in ("speed=1", "traffic=fast", "traffic=0"):
        with pytest.raises(UsageError):
            parse_rates(wrong)


def test_dense_attention_in_8_bits_has_a_rate_of_its_own() -> None:
    q, k = (torch.empty(1, 12, n, 128, dtype=torch.float8_e4m3fn, device="meta") for n in (4680, 9360))
    scales = [torch.empty(1, 12, n, 1, device="meta") for n in (4680, 9360)]
    given = (q, k, k.mT, *scales, scales[1].mT, torch.bfloat16)
    launches = _traced(lambda: torch.ops.ultraflash.dense_attention_fp8(*given))
    roof = roof_of(StageTrace("x", 12, launches), parse_rates("fp8_attention=600"))
    hopper = _traced(lambda: torch.ops.ultraflash.dense_attention_fp8_hopper(*given))
    assert [launch.flops for launch in hopper] == [launch.flops for launch in launches]
    expected_ms = 4 * 12 * 4680 * 9360 * 128 / 600e9
    assert roof.parts_ms == pytest.approx({"products": 0, "attention": expected_ms, "convolutions": 0, "passes": 0})


def test_bench_roofline_estimates_the_published_model_without_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--roofline", "--json", "--rates", "product=1000"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["measured"] is False and found["rates"]["product"] == 1000
    stages = {stage["name"]: stage for stage in found["stages"]}
    assert stages.keys() == TRACES.keys()
    assert all(stage["ideal_ms"] < stage["expected_ms"] for stage in stages.values())
    fps = {each["name"]: each for each in found["cascades"]}
    assert fps["upscale 1k"]["expected_fps"] > 2 * fps["upscale 2k"]["expected_fps"] > 0
    assert fps["generate 1k"]["two_gpus_fps"] > fps["generate 1k"]["expected_fps"]
    managed, whole = fps["generate 2k fp8 steps"], fps["generate 2k fp8"]
    assert managed["expected_fps"] > whole["expected_fps"], "a step less saves time"
    assert all(each["hopper_fps"] > each["expected_fps"] for each in fps.values())
    assert all(each["hopper_two_gpus_fps"] >= each["hopper_fps"] for each in fps.values())
    assert cascades([]) == []
    assert main(["bench", "--rates", "product=1"]) == 2


@pytest.mark.parametrize(("size", "width_px", "height_px"), [("1k", 1664, 960), ("2k", 2496, 1440)])
@pytest.mark.parametrize("command", ["upscale", "generate"])
def test_presets_assume_the_speed_that_is_estimated(
    estimates: dict[str, Cascade], command: str, size: str, width_px: int, height_px: int
) -> None:
    assumed = expected_fps(
        "ultraflash",
        "cuda",
        width_px=width_px,
        height_px=height_px,
        generates=command == "generate",
        facts=prepare._Facts(),
    )
    assert assumed == pytest.approx(estimates[f"{command} {size}"].expected_fps, rel=0.04)


def test_the_documented_estimates_are_those_of_the_roofline(repository: Path, estimates: dict[str, Cascade]) -> None:
    text = (repository / "docs" / "performance.md").read_text()
    titles = {"generate": "generate {}, 12-frame window", "upscale": "upscale to {} (model)"}
    for command, size in itertools.product(titles, ("1k", "2k")):
        plain, small = estimates[f"{command} {size}"], estimates[f"{command} {size} fp8"]
        fewer = estimates.get(f"{command} {size} fp8 steps")
        pairs = [(each.expected_fps, each.hopper_fps) for each in (plain, small)]
        if fewer is not None:
            pairs.append((fewer.expected_fps, fewer.hopper_fps))
            pairs.append((plain.two_gpus_fps, plain.hopper_two_gpus_fps))
        cells = [titles[command].format(size.upper()), f"{plain.ideal_fps:.0f}"]
        cells += [f"{default:.0f} / {hopper:.0f}" for default, hopper in pairs]
        assert f"| {' | '.join(cells)} |" in text


def test_docs_say_what_the_rates_of_others_in_8_bits_would_change(repository: Path) -> None:
    text = " ".join((repository / "docs" / "performance.md").read_text().split())
    said = re.search(
        r"Others reach 750 in 8 bits; .* would be (\d+), (\d+), (\d+) and (\d+), and with `steps` (\d+) and (\d+)\.",
        text,
    )
    assert said is not None
    rates = replace(H200, fp8_attention=750, fp8_sparse_attention=750)
    fps = {each.name: each.expected_fps for each in cascades([roof_of(traced(name), rates) for name in TRACES])}
    names = [f"{command} {size} fp8" for command in ("generate", "upscale") for size in ("1k", "2k")]
    names += [f"generate {size} fp8 steps" for size in ("1k", "2k")]
    assert [int(number) for number in said.groups()] == [round(fps[name]) for name in names]


def test_the_documented_traffic_is_what_is_counted(repository: Path) -> None:
    text = (repository / "docs" / "performance.md").read_text()

    def sizes(stage: str, field: str, suffix: str = "") -> str:
        return " / ".join(f"{getattr(traced(f'{stage} {size}{suffix}'), field) / 1e9:.0f}" for size in ("1k", "2k"))

    for row in (
        f"| SR transformer, 1K / 2K | 342 / 785 | {sizes('SR transformer', 'bytes')} |",
        f"| SR transformer in 8 bits, 1K / 2K | 224 / 504 | {sizes('SR transformer', 'bytes', ' fp8')} |",
        f"| decoder, passes without arithmetic, 1K / 2K | 74 / 167 | {sizes('decoder', 'pass_bytes')} |",
        f"| generator, a chunk of 12 frames | 216 | {traced('generator').bytes / 1e9:.0f} |",
        f"| generator in 8 bits, a chunk of 12 frames | 152 | {traced('generator fp8').bytes / 1e9:.0f} |",
    ):
        assert row in text
