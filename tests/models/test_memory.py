"""The machine's memory, a job's share of it, and the description of a plan."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ultraflash_cli.engine.plan import plan_upscale
from ultraflash_cli.engine.profiles import LITE, TINY_LITE, TINY_RANDOM, ULTRAFLASH
from ultraflash_cli.engine.schedule import plan_generation
from ultraflash_cli.errors import OutOfMemory, UsageError
from ultraflash_cli.host import host_bytes_available, parse_memory, resident_bytes
from ultraflash_cli.models import memory
from ultraflash_cli.models.memory import (
    describe_memory,
    memory_budget,
    plan_generation_memory,
    plan_upscale_memory,
)

CPU, GPU = torch.device("cpu"), torch.device("cuda")
GIGABYTE = 10**9


def bf16(part: str) -> torch.dtype:
    return torch.bfloat16


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("6G", 6 * GIGABYTE),
        ("6g", 6 * GIGABYTE),
        ("5.5GB", 5_500_000_000),
        ("512M", 512 * 10**6),
        ("6GiB", 6 * 2**30),
        ("2 Gi", 2 * 2**30),
        ("123456", 123456),
    ],
)
def test_a_size_of_memory_is_read(text: str, count: int) -> None:
    assert parse_memory(text) == count


@pytest.mark.parametrize("text", ["", "G", "-6G", "six", "6X", "6G6", "0", "0G", "1e9", "i", "5iB", "nan"])
def test_what_is_no_size_of_memory_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(UsageError, match="--max-memory must be a size such as 6G") as refused:
        parse_memory(text)
    assert refused.value.exit_code == 2


def machine(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


MEMINFO = "MemTotal:       24000000 kB\nMemFree:         1000000 kB\nMemAvailable:   20000000 kB\n"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        pytest.param({}, None, id="nothing is known"),
        pytest.param({"proc/meminfo": MEMINFO}, 20_480_000_000, id="no container"),
        pytest.param({"proc/meminfo": "MemFree: 1000 kB\n"}, 1_024_000, id="an old kernel"),
        pytest.param(
            {
                "proc/meminfo": MEMINFO,
                "sys/fs/cgroup/memory.max": "4000000000\n",
                "sys/fs/cgroup/memory.current": "1500000000\n",
                "sys/fs/cgroup/memory.stat": "anon 900000000\ninactive_file 500000000\n",
            },
            3 * GIGABYTE,
            id="a container's limit",
        ),
        pytest.param(
            {
                "proc/meminfo": MEMINFO,
                "sys/fs/cgroup/memory.max": "max\n",
                "sys/fs/cgroup/memory.current": "1500000000\n",
                "sys/fs/cgroup/memory.stat": "anon 1\n",
            },
            20_480_000_000,
            id="a container without a limit",
        ),
        pytest.param(
            {
                "proc/meminfo": MEMINFO,
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "2000000000\n",
                "sys/fs/cgroup/memory/memory.usage_in_bytes": "1000000000\n",
                "sys/fs/cgroup/memory/memory.stat": "inactive_file 1\ntotal_inactive_file 250000000\n",
            },
            1_000_000_001,
            id="the first interface",
        ),
    ],
)
def test_free_memory_is_the_machines_within_a_containers_limit(
    tmp_path: Path, files: dict[str, str], expected: int | None
) -> None:
    assert host_bytes_available(machine(tmp_path, files)) == expected


def test_what_the_process_holds_already_counts_as_free_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "host_bytes_available", lambda: 1000)
    monkeypatch.setattr(memory, "resident_bytes", lambda: 200)
    assert memory_budget(CPU, None) == 1200


def test_the_memory_of_this_process_is_read(tmp_path: Path) -> None:
    assert resident_bytes(machine(tmp_path, {"proc/self/statm": "900 25 3 1 0 4 0\n"})) == 25 * os.sysconf(
        "SC_PAGE_SIZE"
    )
    assert resident_bytes(tmp_path / "a system that does not say") == 0


def test_the_budget_is_what_is_free_and_no_more_than_was_asked_for() -> None:
    free = memory_budget(CPU, None)
    assert free is None or free > 0
    assert memory_budget(CPU, "1M") == 10**6
    with pytest.raises(UsageError):
        memory_budget(CPU, "much")


def test_an_upscale_by_lite_fits_a_laptop() -> None:
    plan = plan_upscale_memory(
        LITE, plan_upscale(832, 480), device=CPU, dtype_of=lambda _: torch.float32, budget_bytes=4 * GIGABYTE
    )
    assert plan.steps == () and plan.total < 2.5 * GIGABYTE


def test_a_target_too_large_for_the_machine_is_refused_with_what_takes_most() -> None:
    sizes = plan_upscale(3840, 2160, res="3x")
    with pytest.raises(OutOfMemory, match="most of it for pixel path activations and") as refused:
        plan_upscale_memory(LITE, sizes, device=CPU, dtype_of=bf16, budget_bytes=GIGABYTE)
    assert refused.value.exit_code == 5


def test_a_gpu_that_is_too_small_gets_the_smaller_plan_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "host_bytes_available", lambda: None)
    plan = plan_generation_memory(ULTRAFLASH, scale=3, device=GPU, dtype_of=bf16, budget_bytes=28 * GIGABYTE)
    told = "\n".join(describe_memory(plan))
    assert "of 28.00 GB at the peak" in told and "GB in host memory" in told
    assert "same result: text encoder freed after encoding the prompt" in told
    assert "other pixels: SR transformer remembers 2 of 3 blocks" in told
    assert plan.warnings == ("for lack of memory: SR transformer remembers 2 of 3 blocks",)


def test_a_known_embedding_needs_no_text_encoder() -> None:
    sizes = plan_upscale(832, 480, res="1k")
    plans = [
        plan_upscale_memory(ULTRAFLASH, sizes, device=GPU, dtype_of=bf16, encodes_text=encodes)
        for encodes in (True, False)
    ]
    assert plans[0].total - plans[1].total > 11 * GIGABYTE


@pytest.mark.parametrize("long", [False, True], ids=["short", "long"])
@pytest.mark.parametrize("scale", [1, 2, 3], ids=["480p", "1k", "2k"])
def test_every_size_of_a_generation_is_planned(scale: int, long: bool) -> None:
    plan = plan_generation_memory(
        TINY_RANDOM, scale=scale, long=long, low_frames=True, device=CPU, dtype_of=lambda _: torch.float32
    )
    names = {part.name for phase in plan.phases for part in phase.parts}
    assert ("SR transformer weights" in names) == (scale > 1)
    assert {"generator KV ring", "low-resolution decoder state" if scale > 1 else "decoder state"} <= names


def test_a_model_that_cannot_generate_is_reported() -> None:
    with pytest.raises(UsageError, match="tiny-lite cannot generate"):
        plan_generation_memory(replace(TINY_LITE, generator=None), scale=2, device=CPU, dtype_of=bf16)


def test_a_short_clip_takes_less_than_one_of_any_length() -> None:
    totals = [
        plan_generation_memory(LITE, scale=2, device=CPU, dtype_of=bf16, clip=clip).total
        for clip in (plan_generation(3, chunk=3), plan_generation(60, chunk=3), None)
    ]
    assert totals[0] < 0.75 * totals[1] and totals[1] == totals[2]
