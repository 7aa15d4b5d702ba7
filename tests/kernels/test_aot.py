"""Every kernel compiles for every target without a GPU, and none spills more than the table says."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import triton

TABLE = Path("benchmarks") / "aot.json"
TARGETS = {"sm_80", "sm_89", "sm_90", "sm_100", "sm_103", "sm_120"}
EIGHT_BIT_TARGETS = TARGETS - {"sm_80"}
"""Targets that support 8-bit floating point."""


def test_no_kernel_spills_more_than_the_table_says(repository: Path) -> None:
    listed = json.loads((repository / TABLE).read_text())
    if triton.__version__ != listed["triton"]:
        pytest.skip(f"the table was made with Triton {listed['triton']}, this is {triton.__version__}")
    # The interpreter and the compiler cannot share a process.
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "benchmarks.aot", "--check"]
    done = subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_table_lists_every_target_and_no_spill_of_attention_at_head_size_128(repository: Path) -> None:
    from benchmarks.aot import EIGHT_BITS, HOT

    kernels = json.loads((repository / TABLE).read_text())["kernels"]
    for name, figures in kernels.items():
        assert figures.keys() == TARGETS - ({"sm_80"} if name.startswith(EIGHT_BITS) else set()), name
    attention = [name for name in kernels if name.startswith(HOT)]
    assert any("fp8" in name for name in attention) and not all("fp8" in name for name in attention)
    assert not any(line["spilled_bytes"] for name in attention for line in kernels[name].values())


def test_a_worse_kernel_a_new_one_and_a_vanished_one_are_found(repository: Path) -> None:
    from benchmarks.aot import compare

    listed = json.loads((repository / TABLE).read_text())["kernels"]
    assert compare(listed, listed) == []
    name = "block_sparse_attention, bf16, head 128, ring"
    worse = copy.deepcopy(listed)
    worse[name]["sm_90"]["spilled_bytes"] += 8
    found = "\n".join(compare(worse, listed))
    assert f"{name} on sm_90 spills 8 bytes, 0 before" in found
    assert "is hot and spills 8 bytes" in "\n".join(compare(worse, worse)), "even where the table says so"
    worse = copy.deepcopy(listed)
    worse[name]["sm_89"]["shared_bytes"] = 200_000
    assert "200000 bytes of shared memory, 101376 exist" in "\n".join(compare(worse, listed))
    fewer = {other: figures for other, figures in listed.items() if other != name}
    assert "is not in the table" in "\n".join(compare(listed, fewer))
    assert "no longer made" in "\n".join(compare(fewer, listed))


def test_a_loop_that_reads_bytes_spills_or_waits_for_its_loads_is_found(repository: Path) -> None:
    from benchmarks.aot import compare

    listed = json.loads((repository / TABLE).read_text())["kernels"]
    name = "block_sparse_attention, bf16, head 128, ring"
    for key, value, said in (
        ("loop_byte_loads", 64, "reads byte by byte in its loop, 64 times"),
        ("loop_local_accesses", 2, "keeps registers in local memory in its loop, 2 times"),
        ("loop_narrowest_product", 32, "multiplies 32 columns at once, 64 are safe"),
        ("loop_loads_ahead", 0, "waits for all its loads each time around its loop"),
        ("loop_loads_ahead", 1, "has 1 loads under way where it waits, 3 before"),
        ("loop_instructions", 900, "takes 900 instructions around its loop"),
    ):
        worse = copy.deepcopy(listed)
        worse[name]["sm_90"][key] = value
        assert f"{name} on sm_90 {said}" in "\n".join(compare(worse, listed))


def test_hot_loops_load_ahead_on_every_target(repository: Path) -> None:
    kernels = json.loads((repository / TABLE).read_text())["kernels"]
    loops = {name: line for name, line in kernels.items() if "loop_instructions" in line.get("sm_90", {})}
    assert len(loops) == 4
    for line in loops.values():
        assert all(figures["loop_loads_ahead"] >= 3 and not figures["loop_byte_loads"] for figures in line.values())
    assert loops["block_sparse_attention, bf16, head 128, ring"]["sm_90"]["loop_instructions"] <= 620


def test_the_smallest_loop_with_products_is_the_hot_one() -> None:
    from benchmarks.machine_code import loop_of

    text = """
        /*0000*/ S2R R0, SR_TID.X ;
    .L_x_1:
        /*0010*/ LDG.E.U8 R2, [R4] ;
    .L_x_2:
        /*0020*/ @P0 LDL R7, [R1] ;
        /*0030*/ HGMMA.64x128x16.F32.BF16 R24, R20, gdesc[UR4], R24 ;
        /*0040*/ @P1 BRA `(.L_x_2) ;
        /*0050*/ @!P2 BRA `(.L_x_1) ;
        /*0060*/ BRA `(.L_x_9) ;
    .L_x_9:
        /*0070*/ EXIT ;
    """
    assert loop_of(text) == ["LDL R7, [R1]", "HGMMA.64x128x16.F32.BF16 R24, R20, gdesc[UR4], R24", "BRA `(.L_x_2)"]
    assert loop_of("/*0000*/ EXIT ;") is None
