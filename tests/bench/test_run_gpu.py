"""The GPU script, tested with the trial model on this machine's device."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.part import PARTS, TARGETS, Setting, main, table
from ultraflash_cli.bench.kernels import OPERATIONS

ROOT = Path(__file__).parents[2]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHON": sys.executable}
    command = [str(ROOT / "benchmarks" / "run_gpu.sh"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_a_part_that_has_its_result_is_skipped_and_the_table_is_printed(tmp_path: Path) -> None:
    asked = ["--tiny", "--device", "cpu", "--out", str(tmp_path)]
    done = run(*asked, "--parts", "upscale_1k")
    assert done.returncode == 0, done.stderr
    (result,) = tmp_path.iterdir()
    content = json.loads(result.read_text())
    assert (content["part"], content["tiny"], content["device"]) == ("upscale_1k", True, "cpu")
    assert content["result"]["output"] == [96, 64] and content["result"]["fps"] > 0
    assert content["result"]["weights"] == "random"
    written_ns = result.stat().st_mtime_ns
    again = run(*asked, "--parts", "upscale_1k")
    assert "upscale_1k: there already" in again.stdout and result.stat().st_mtime_ns == written_ns
    (row,) = (line for line in again.stdout.splitlines() if line.startswith("| upscale to 1K"))
    assert f"| {content['result']['fps']:.1f} | `upscale_1k` |" in row and "unmeasured" in row


def test_a_part_that_fails_leaves_no_result_and_is_named(tmp_path: Path) -> None:
    done = run("--tiny", "--device", "cpu", "--out", str(tmp_path), "--parts", "upscale_1k_stretch")
    assert done.returncode == 1 and "without a result: upscale_1k_stretch" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["upscale_1k_stretch.log"]
    assert "fp8 cannot run here: 8-bit matmuls need an NVIDIA GPU" in (tmp_path / "upscale_1k_stretch.log").read_text()


def test_a_dry_run_lists_every_part_and_writes_nothing(tmp_path: Path) -> None:
    out = tmp_path / "results"
    done = run("--dry-run", "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert [line.partition(":")[0] for line in done.stdout.splitlines()] == list(PARTS) and not out.exists()


@pytest.mark.parametrize("arguments", [["--parts", "speed"], ["--fast"]], ids=["part", "option"])
def test_what_nobody_knows_is_refused(arguments: list[str]) -> None:
    done = run(*arguments)
    assert done.returncode == 2 and arguments[-1] in done.stderr


@pytest.mark.parametrize("part", ["kernel_memory_conv", "generate_480p", "memory_1k", "first_frame"])
def test_every_kind_of_part_gives_plain_numbers(part: str) -> None:
    result = PARTS[part].run(Setting(device=torch.device("cpu"), tiny=True))
    again = json.loads(json.dumps(result, allow_nan=False))
    if part == "first_frame":
        assert again["cold"]["process_seconds"] > again["cold"]["first_frame_seconds"] > again["cold"]["loaded"] > 0
        assert again["kernels_kept"]["frames"] == 21
    elif part == "memory_1k":
        assert [case["path"] for case in again["cases"]] == ["latents", "pixels", "generate"]
    elif part == "generate_480p":
        assert again["whole_clip"] and again["output"] == [48, 32]
    else:
        assert {row["impl"] for row in again["kernels"]} == {"reference", "joined"}


@pytest.mark.parametrize("count", [0, 1])
def test_a_part_for_two_gpus_is_skipped_with_its_reason_on_fewer(
    count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    out = tmp_path / "generate_1k_two_gpus.json"
    main(["generate_1k_two_gpus", "--device", "cpu", "--tiny", "--out", str(out)])
    assert json.loads(out.read_text())["result"] == {"skipped": f"needs two GPUs, found {count}"}
    assert "unmeasured" in table({"generate_1k": json.loads(out.read_text())})[2]


def test_every_target_names_parts_that_are_there_and_every_operation_has_one() -> None:
    assert {row.part for row in TARGETS} | {row.stretch_part for row in TARGETS} <= PARTS.keys()
    assert {f"kernel_{name}" for name in OPERATIONS} <= PARTS.keys()


def test_the_table_takes_the_worst_size_of_the_attention_and_says_what_is_unmeasured() -> None:
    rows = [
        {"impl": impl, "dtype": dtype, "flops_per_second": flops, "of_product": share}
        for impl, dtype, flops, share in [
            ("triton", "bfloat16", 3e14, 0.47),
            ("triton", "bfloat16", 3e14, 0.44),
            ("dense", "bfloat16", 5e14, 0.1),
        ]
    ]
    results = {
        "kernel_block_sparse_attention": {"result": {"kernels": rows}},
        "generate_2k": {"result": {"fps": 21.34}},
    }
    lines = table(results)
    assert len(lines) == 2 + len(TARGETS) + 1 and "under 10 s | unmeasured" in lines[-1]
    (row,) = (line for line in lines if "attention" in line)
    assert "| 45 % | 44 % |" in row and "| 55 % | unmeasured |" in row
    (two,) = (line for line in lines if "generate 2K, 81" in line)
    assert "| 23 | 21.3 |" in two and "| 32 | unmeasured |" in two
