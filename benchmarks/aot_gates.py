"""What compiled kernels must keep to: spills, shared memory, and the contents of their hottest loops."""

from collections.abc import Mapping

__all__ = ["HOPPER", "HOT", "Figures", "compare"]

Figures = dict[str, dict[str, dict[str, int]]]
"""Registers per thread, bytes of stack (spills) and bytes of shared memory, by kernel
and target."""

MOST_SHARED_BYTES = {80: 166_912, 89: 101_376, 90: 232_448, 100: 232_448, 103: 232_448, 120: 101_376}
"""Maximum shared memory of one program."""

HOT = (
    "block_sparse_attention, bf16, head 128",
    "block_sparse_attention, fp16, head 128",
    "block_sparse_attention_fp8, bf16, head 128",
    "dense_attention_fp8, bf16, head 128",
)
"""Prefixes of the names of kernels that must not spill at all."""
HOPPER = "block_sparse_attention_hopper"
"""Prefix of the names of kernels for compute capability 9.0 alone."""

NARROWEST_PRODUCT = 64
"""Minimum columns of a warp-group product at which four warps do not read shared memory
out of bounds."""
LONGEST_HOPPER_LOOP = 470
"""Maximum instructions per warp in the hot loop of the attention kernel for Hopper."""
LONGEST_HOPPER_FP8_LOOP = 625
"""The same in 8 bits, where scales of keys and values are factors of each score."""
LEAST_HIDDEN_EXPONENTIALS = 64
"""Exponentials of its loop that must run while products are in flight: all scores of a
thread."""
LOOP_GROWTH = 1.03
"""Allowed length of a loop relative to its line in the table: compilers differ a
little."""


def _gates(figures: Mapping[str, int], before: Mapping[str, int]) -> list[str]:
    """Return descriptions of problems in the hottest loop of a kernel."""
    wrong: list[str] = []
    if (count := figures.get("loop_byte_loads", 0)) > 0:
        wrong.append(f"reads byte by byte in its loop, {count} times")
    if (count := figures.get("loop_local_accesses", 0)) > 0:
        wrong.append(f"keeps registers in local memory in its loop, {count} times")
    if 0 < (columns := figures.get("loop_narrowest_product", 0)) < NARROWEST_PRODUCT:
        wrong.append(f"multiplies {columns} columns at once, {NARROWEST_PRODUCT} are safe")
    ahead, was_ahead = figures.get("loop_loads_ahead", 0), before.get("loop_loads_ahead", 0)
    if ahead == 0 and "loop_loads_ahead" in figures:
        wrong.append("waits for all its loads each time around its loop")
    elif ahead < was_ahead:
        wrong.append(f"has {ahead} loads under way where it waits, {was_ahead} before")
    length, allowed = figures.get("loop_instructions", 0), before.get("loop_instructions", 0)
    if allowed and length > LOOP_GROWTH * allowed:
        wrong.append(f"takes {length} instructions around its loop, {allowed} before")
    return wrong


def _split_gates(name: str, figures: Mapping[str, int]) -> list[str]:
    """Return descriptions of problems of a kernel in which some warps copy and two warp
    groups multiply."""
    from ultraflash_kernels.block_sparse_attention import kernel_hopper, kernel_hopper_fp8

    registers, products, longest = kernel_hopper.REGISTERS, 16, LONGEST_HOPPER_LOOP
    if "fp8" in name:
        both = kernel_hopper_fp8.REGISTERS_DENSE, kernel_hopper_fp8.REGISTERS
        registers, products, longest = both["dense" not in name], 8, LONGEST_HOPPER_FP8_LOOP
    expected = {"loop_products": products, "loop_product_starts": 2, "loop_product_waits": 2}
    expected |= {"loop_global_loads": 0, "loop_local_accesses": 0, "spilled_bytes": 0}
    wrong = [
        f"has {key} {figures.get(key)}, expected {value}"
        for key, value in expected.items()
        if figures.get(key) != value
    ]
    most = {"loop_instructions": longest}
    most |= {"loop_multiplying_registers": registers["CONSUMER"], "loop_copying_registers": registers["PRODUCER"]}
    wrong += [
        f"has {key} {figures.get(key)}, expected at most {value}"
        for key, value in most.items()
        if not 0 < figures.get(key, 0) <= value
    ]
    if figures.get("loop_hidden_exponentials", 0) < LEAST_HIDDEN_EXPONENTIALS:
        count = figures.get("loop_hidden_exponentials", 0)
        wrong.append(f"computes {count} exponentials beside products, expected {LEAST_HIDDEN_EXPONENTIALS}")
    return wrong


def compare(found: Figures, listed: Figures) -> list[str]:
    """Return a sentence for each kernel that is worse than its line in the table
    allows."""
    wrong: list[str] = []
    for name, targets in found.items():
        for target, figures in targets.items():
            before = listed.get(name, {}).get(target)
            if before is None:
                wrong.append(f"{name} on {target} is not in the table: run python -m benchmarks.aot")
                continue
            spilled = figures["spilled_bytes"]
            if spilled > before["spilled_bytes"]:
                wrong.append(f"{name} on {target} spills {spilled} bytes, {before['spilled_bytes']} before")
    for name, targets in found.items():
        for target, figures in targets.items():
            if figures["spilled_bytes"] and name.startswith(HOT):
                wrong.append(f"{name} on {target} is hot and spills {figures['spilled_bytes']} bytes")
            wrong += [f"{name} on {target} {said}" for said in _gates(figures, listed.get(name, {}).get(target, {}))]
            if name.startswith(HOPPER):
                wrong += [f"{name} on {target} {said}" for said in _split_gates(name, figures)]
            most = MOST_SHARED_BYTES[int(target.removeprefix("sm_"))]
            if figures["shared_bytes"] > most:
                wrong.append(f"{name} on {target} needs {figures['shared_bytes']} bytes of shared memory, {most} exist")
    wrong += [f"{name} is in the table and no longer made" for name in listed.keys() - found.keys()]
    return wrong
