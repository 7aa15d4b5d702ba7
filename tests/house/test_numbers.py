"""Numbers in the documentation match the stored measurements."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks.sr_gain import Clip, table


def result(repository: Path, name: str) -> Any:
    return json.loads((repository / "benchmarks" / "results" / f"{name}.json").read_text())


def page(repository: Path, name: str) -> str:
    return " ".join((repository / name).read_text(encoding="utf-8").split())


SCORES = (("psnr_y", 2), ("ssim", 4), ("vmaf", 1), ("vmaf_neg", 1), ("tdiff", 2))


@pytest.mark.parametrize(
    ("file", "method", "title"),
    [
        pytest.param("quality_x2_plain_cpu_2026-11-28", "lanczos", "lanczos", id="lanczos"),
        pytest.param(
            "quality_x2_peers_cpu_2026-11-28",
            "waifu2x-photo-noise1",
            "waifu2x upconv7 photo, noise 1",
            id="waifu2x",
        ),
        pytest.param(
            "quality_x2_detail0_cpu_2026-11-28",
            "ultraflash --detail 0",
            "**ultraflash** (lite, `--detail 0`)",
            id="lite",
        ),
        pytest.param("quality_x2_cpu_2026-11-30", "ultraflash", "**ultraflash** (lite, default)", id="default"),
    ],
)
def test_the_readme_shows_the_measured_quality(repository: Path, file: str, method: str, title: str) -> None:
    readme = page(repository, "README.md")
    for mean in result(repository, file)["means"]:
        if mean["method"] == method and mean["kind"] in ("clean", "deg"):
            scores = " | ".join(f"{mean['scores'][name]:.{digits}f}" for name, digits in SCORES)
            assert f"| {mean['kind']} | {title} | {scores} |" in readme


def test_the_speed_of_an_upscale_is_the_measured_one(repository: Path) -> None:
    [case] = result(repository, "bench_x2_cpu_2026-11-30")["cases"]
    fps, memory = f"{case['frames'] / case['seconds']:.1f}", f"{case['peak_rss_bytes'] / 1e9:.1f} GB"
    speed = page(repository, "docs/performance.md")
    reached = case["stages"] and sum(each["share"] * each["flops_per_second"] for each in case["stages"])
    convolution = case["limits"]["convolution_flops_per_second"]
    row = (
        f"| 832x480 to 1664x960 | {fps} ({case['wall']['fps']:.1f} from file to file) | {memory} | "
        f"{round(case['flops_per_output_pixel'], -2):,.0f} | {reached / 1e9:.0f} / {convolution / 1e9:.0f} GFLOP/s |"
    )
    assert row in speed
    assert f"| {fps} | {memory} |" in page(repository, "README.md")


def test_the_speed_of_generating_is_the_measured_one(repository: Path) -> None:
    pages = page(repository, "docs/performance.md"), page(repository, "README.md")
    for case, name in zip(
        result(repository, "bench_generate_cpu_2026-11-30")["cases"], ("480p", "1K", "2K"), strict=True
    ):
        fps, memory = f"{case['frames'] / case['seconds']:.1f}", f"{case['peak_rss_bytes'] / 1e9:.1f} GB"
        shares = {stage["name"].removeprefix("low_"): f"{100 * stage['share']:.0f} %" for stage in case["stages"]}
        wanted = [name, fps, f"{case['wall']['fps']:.1f}", memory]
        wanted += [shares.get(stage, "") for stage in ("generator", "sr_dit", "decoder")]
        assert "| " + " | ".join(wanted).replace("|  |", "| |") + " |" in pages[0]
        if name == "1K":
            assert f"`generate`, 5 seconds at 1K | the same | {fps} | {memory} |" in pages[1]


def test_memory_over_the_length_of_a_clip_is_the_measured_one(repository: Path) -> None:
    text = page(repository, "docs/performance.md")
    for each in result(repository, "memory_by_length_cpu_2026-11-23"):
        for peak in each["peak_rss_bytes_by_seconds"].values():
            short, long = (peak[seconds] / 2**20 for seconds in ("6", "60"))
            growth = 100 * (long / short - 1)
            assert f"{each['size']} | {short:.0f} MiB | {long:.0f} MiB | {growth:.1f} % |" in text


HEADS = ("kind", "colour", "time", "motion")


@pytest.mark.parametrize(
    ("file", "size"), [("generation_lite_cpu_2026-11-30", "480p"), ("generation_lite_1k_cpu_2026-11-30", "1K")]
)
def test_the_scores_of_generated_clips_are_the_measured_ones(repository: Path, file: str, size: str) -> None:
    found = result(repository, file)["summary"]
    shares = [f"{100 * found[name]:.0f} %" for name in HEADS]
    steady = [f"{found[name]:.2f}" for name in ("unsteady", "unsteady_drawn", "unsteady_ratio")]
    assert f"| {' | '.join([size, *shares, *steady])} |" in page(repository, "docs/quality.md")


def test_the_gain_of_the_sr_transformer_is_the_measured_one(repository: Path) -> None:
    found = result(repository, "sr_gain_lite_cpu_2026-11-30")
    readme = page(repository, "benchmarks/training/lite2/README.md").replace("*", "")
    rows = [{name: Clip(**clip) for name, clip in row.items()} for row in found["clips"]]
    assert " ".join(table(rows).split()) in readme
    assert len(rows) == 60 and found["lower_with"] == {"alex": 60, "vgg": 60}
    means = found["summary"]
    alex, vgg = (100 * (1 - means["with"][trunk] / means["without"][trunk]) for trunk in ("alex", "vgg"))
    assert f"LPIPS is {alex:.0f} % lower with AlexNet and {vgg:.0f} % lower with VGG" in readme
    gain = f"lowers LPIPS by {alex:.0f} % (AlexNet) and {vgg:.0f} % (VGG)"
    assert gain in page(repository, "docs/quality.md")


def test_the_judge_and_its_words_in_the_readme_are_the_measured_ones(repository: Path) -> None:
    found = result(repository, "generation_lite_cpu_2026-11-30")
    shares = {name: f"{100 * found['summary'][name]:.0f} %" for name in HEADS}
    readme = page(repository, "README.md")
    assert f"the time of day in {shares['time']}, the colour in {shares['colour']}" in readme
    assert f"the motion in {shares['motion']} and the subject in {shares['kind']}" in readme
    judge = found["judge"]["accuracy"]["unseen"]
    shown = re.search(
        r"right about the subject in ([\d.]+) %, the colour in ([\d.]+) %", page(repository, "docs/quality.md")
    )
    assert shown is not None
    assert [float(share) for share in shown.groups()] == [round(100 * judge[name], 1) for name in ("kind", "colour")]


def test_the_efficiency_of_two_ray_workers_is_the_measured_one(repository: Path) -> None:
    told, guide = result(repository, "cluster_cpu_2026-11-30"), page(repository, "docs/cluster.md")
    separate = sum(told["separate"]["cpu_seconds"])
    together = told["ray"]["cpu_seconds_workers"] + told["ray"]["cpu_seconds_plan_and_join"]
    assert f"with {together:.1f} seconds of processor time" in guide and f"took {separate:.1f}." in guide
    assert f"an efficiency of {separate / together:.2f}," in guide
    assert separate / together >= 0.9 and told["tiny"]["equal_outputs"] == told["tiny"]["clips"] == 200
