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
OTHER_TABLES = ("aot_triton_3.6.json",)
"""Tables of ``python -m benchmarks.aot`` under other versions of Triton."""
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
    from benchmarks.aot_cases import EIGHT_BITS
    from benchmarks.aot_gates import HOPPER, HOT

    kernels = json.loads((repository / TABLE).read_text())["kernels"]
    for name, figures in kernels.items():
        targets = EIGHT_BIT_TARGETS if name.startswith(EIGHT_BITS) else TARGETS
        assert figures.keys() == ({"sm_90"} if name.startswith(HOPPER) else targets), name
    attention = [name for name in kernels if name.startswith(HOT)]
    assert any("fp8" in name for name in attention) and not all("fp8" in name for name in attention)
    assert not any(line["spilled_bytes"] for name in attention for line in kernels[name].values())


def test_a_worse_kernel_a_new_one_and_a_vanished_one_are_found(repository: Path) -> None:
    from benchmarks.aot_gates import compare

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
    from benchmarks.aot_gates import compare

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


@pytest.mark.parametrize("table", [TABLE.name, *OTHER_TABLES])
def test_the_kernel_for_hopper_overlaps_softmax_and_products(repository: Path, table: str) -> None:
    from benchmarks.aot_gates import HOPPER, compare

    recorded = json.loads((repository / "benchmarks" / table).read_text())
    assert recorded["triton"].startswith("3.6") or table == TABLE.name
    assert compare(recorded["kernels"], recorded["kernels"]) == []
    loops = {name: line["sm_90"] for name, line in recorded["kernels"].items() if name.startswith(HOPPER)}
    assert any("bf16" in name for name in loops) and any("fp16" in name for name in loops)
    assert sum("fp8" in name for name in loops) == 3, "with a ring, without, and without lists"
    for name, figures in loops.items():
        longest, products = (625, 8) if "fp8" in name else (470, 16)
        assert figures["loop_instructions"] <= longest and figures["loop_products"] == products
        assert figures["loop_hidden_exponentials"] >= 64, "a softmax step has 64 scores a thread"
        assert figures["shared_bytes"] <= 232_448


@pytest.mark.parametrize(
    ("case", "key", "value", "said"),
    [
        ("bf16, ring", "loop_instructions", 471, "expected at most 470"),
        ("bf16, ring", "loop_product_starts", 16, "expected 2"),
        ("bf16, ring", "loop_global_loads", 1, "expected 0"),
        ("bf16, ring", "loop_local_accesses", 2, "expected 0"),
        ("bf16, ring", "spilled_bytes", 8, "expected 0"),
        ("bf16, ring", "loop_hidden_exponentials", 2, "computes 2 exponentials beside products, expected 64"),
        ("bf16, ring", "loop_multiplying_registers", 248, "expected at most 240"),
        ("bf16, ring", "loop_copying_registers", 40, "expected at most 24"),
        ("bf16, ring", "shared_bytes", 240_000, "240000 bytes of shared memory, 232448 exist"),
        ("fp8, ring", "loop_instructions", 626, "expected at most 625"),
        ("fp8, ring", "loop_products", 16, "expected 8"),
        ("fp8, ring", "loop_multiplying_registers", 240, "expected at most 232"),
        ("fp8, dense", "loop_copying_registers", 40, "expected at most 24"),
    ],
)
def test_faults_of_the_kernels_for_hopper_are_found(
    repository: Path, case: str, key: str, value: int, said: str
) -> None:
    from benchmarks.aot_gates import compare

    listed = json.loads((repository / TABLE).read_text())["kernels"]
    name = f"block_sparse_attention_hopper, {case}"
    worse = copy.deepcopy(listed)
    worse[name]["sm_90"][key] = value
    assert said in "\n".join(compare(worse, listed))


def test_hot_loops_load_ahead_on_every_target(repository: Path) -> None:
    kernels = json.loads((repository / TABLE).read_text())["kernels"]
    loops = {name: line for name, line in kernels.items() if "loop_loads_ahead" in line.get("sm_90", {})}
    assert len(loops) == 6
    for line in loops.values():
        assert all(figures["loop_loads_ahead"] >= 3 and not figures["loop_byte_loads"] for figures in line.values())
    assert loops["block_sparse_attention, bf16, head 128, ring"]["sm_90"]["loop_instructions"] <= 620


def test_the_way_back_from_code_that_waits_is_no_loop() -> None:
    from benchmarks.machine_code import loop_of

    text = """
    .L_x_1:
        /*0010*/ @!P0 BRA `(.L_x_3) ;
        /*0020*/ MUFU.EX2 R7, R6 ;
        /*0030*/ QGMMA.64x128x32.F32.E4M3.E4M3 R24, gdesc[UR4], R24 ;
        /*0040*/ @P1 BRA `(.L_x_1) ;
    .L_x_2:
        /*0050*/ QGMMA.64x128x32.F32.E4M3.E4M3 R24, gdesc[UR4], R24 ;
        /*0060*/ EXIT ;
    .L_x_3:
        /*0070*/ BRA `(.L_x_2) ;
    """
    loop = loop_of(text)
    assert loop is not None and "MUFU.EX2 R7, R6" in loop


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


def test_a_loop_is_read_together_with_the_registers_of_its_tasks() -> None:
    from benchmarks.machine_code import split_loop_of

    text = """
        /*0000*/ USETMAXREG.TRY_ALLOC.CTAPOOL UP0, 0xf0 ;
    .L_x_1:
        /*0010*/ WARPGROUP.ARRIVE ;
        /*0020*/ HGMMA.64x128x16.F32.BF16 R24, R20, gdesc[UR4], R24 ;
        /*0030*/ MUFU.EX2 R7, R6 ;
        /*0040*/ WARPGROUP.DEPBAR.LE gsb0, 0x1 ;
        /*0050*/ MUFU.EX2 R99, R98 ;
        /*0060*/ WARPGROUP.DEPBAR.LE gsb0, 0x0 ;
        /*0070*/ @P1 BRA `(.L_x_1) ;
        /*0080*/ USETMAXREG.DEALLOC.CTAPOOL 0x18 ;
        /*0090*/ LDG.E R5, desc[UR4][R2.64] ;
        /*00a0*/ UTMALDG.4D [UR16], [UR22] ;
    """
    found = split_loop_of(text)
    assert found is not None and found.as_json() == {
        "instructions": 7,
        "products": 1,
        "product_starts": 1,
        "product_waits": 2,
        "hidden_exponentials": 1,
        "global_loads": 0,
        "local_accesses": 0,
        "multiplying_registers": 100,
        "copying_registers": 6,
    }
    assert split_loop_of("/*0000*/ EXIT ;") is None
