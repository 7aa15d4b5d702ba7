"""Contents of the hottest loop of a compiled kernel, read from its machine code."""

import re
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from typing import Any

from triton import knobs

__all__ = ["HotLoop", "SplitLoop", "disassembled", "hot_loop", "loop_of", "split_loop", "split_loop_of"]

_LABEL = re.compile(r"\s*(\.L_\w+):")
_INSTRUCTION = re.compile(r"\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?(.*?)\s*;")
_PRODUCT = re.compile(r"\b(?:[HIQ]?GMMA|[HIQ]MMA|UTC\w*MMA)\b")
_NARROW = re.compile(r"GMMA\.64x(\d+)x")
_BYTE = re.compile(r"^LD[GS]?\.(?:\w+\.)*[US]8")
_LOCAL = re.compile(r"^(?:LDL|STL)\b")
_GLOBAL = re.compile(r"^LDG")
_REGISTER = re.compile(r"\bR(\d+)\b")
_WAIT = re.compile(r"async_wait.*?num = (\d+)")


@dataclass(frozen=True)
class HotLoop:
    """The smallest loop that contains matrix-unit products."""

    instructions: int
    """Instructions per warp and iteration."""
    products: int
    byte_loads: int
    """Loads of single bytes, from layouts that the compiler could not vectorise."""
    local_accesses: int
    """Loads and stores of spilled registers."""
    narrowest_product: int
    """Columns of the narrowest warp-group product; 0 if there is none."""
    loads_ahead: int
    """Copies still in flight at the least strict wait; 0 if the loop waits for all."""

    def as_json(self) -> dict[str, int]:
        """Return plain values."""
        return asdict(self)


@dataclass(frozen=True)
class SplitLoop:
    """The hot loop of a kernel in which one warp copies and warp groups multiply, each
    with registers of its own."""

    instructions: int
    """Instructions per warp and iteration."""
    products: int
    product_starts: int
    """Batches of warp-group products; as many as products if the assembler serialised
    them."""
    product_waits: int
    """Waits for such batches."""
    hidden_exponentials: int
    """Exponentials between the first wait and the last, computed while products are in
    flight."""
    global_loads: int
    """Loads from global memory, which belong to the warp that copies."""
    local_accesses: int
    """Loads and stores of spilled registers."""
    multiplying_registers: int
    """Registers per thread that the code of multiplying warps uses."""
    copying_registers: int
    """Registers per thread that the code of the copying warp uses."""

    def as_json(self) -> dict[str, int]:
        """Return plain values."""
        return asdict(self)


def disassembled(cubin: bytes) -> str:
    """Return the machine code as text."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [knobs.nvidia.nvdisasm.path, "-c", file.name]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def hot_loop(program: Any) -> HotLoop | None:
    """Return the hottest loop of a compiled kernel; None if no loop contains
    products."""
    body = loop_of(disassembled(program.asm["cubin"]))
    if body is None:
        return None
    narrow = [int(columns) for each in body for columns in _NARROW.findall(each)]
    waits = [int(count) for count in _WAIT.findall(program.asm["ttgir"])]
    return HotLoop(
        instructions=len(body),
        products=_products(body),
        byte_loads=sum(bool(_BYTE.match(each)) for each in body),
        local_accesses=sum(bool(_LOCAL.match(each)) for each in body),
        narrowest_product=min(narrow, default=0),
        loads_ahead=max(waits, default=0),
    )


def split_loop(program: Any) -> SplitLoop | None:
    """Return the hot loop of a compiled kernel whose warps have different tasks; None
    if no loop contains products."""
    return split_loop_of(disassembled(program.asm["cubin"]))


def split_loop_of(text: str) -> SplitLoop | None:
    """Return the hot loop of disassembled machine code, as ``split_loop`` does."""
    body = loop_of(text)
    if body is None:
        return None
    waits = [at for at, each in enumerate(body) if each.startswith("WARPGROUP.DEPBAR")]
    between = body[waits[0] : waits[-1]] if waits else []
    # Code between two reallocations of registers belongs to one task.
    tasks: list[list[str]] = [[]]
    for each in _instructions(text)[0]:
        tasks[-1].append(each)
        if each.startswith("USETMAXREG"):
            tasks.append([])
    return SplitLoop(
        instructions=len(body),
        products=_products(body),
        product_starts=sum(each.startswith("WARPGROUP.ARRIVE") for each in body),
        product_waits=len(waits),
        hidden_exponentials=sum(each.startswith("MUFU.EX2") for each in between),
        global_loads=sum(bool(_GLOBAL.match(each)) for each in body),
        local_accesses=sum(bool(_LOCAL.match(each)) for each in body),
        multiplying_registers=max(_registers(task) for task in tasks if _products(task)),
        copying_registers=max((_registers(task) for task in tasks if _has(task, "UTMALDG")), default=0),
    )


def _products(body: list[str]) -> int:
    return sum(bool(_PRODUCT.search(each)) for each in body)


def _has(task: list[str], name: str) -> bool:
    return any(each.startswith(name) for each in task)


def _registers(task: list[str]) -> int:
    """Return the number of registers that instructions name."""
    return 1 + max((int(number) for each in task for number in _REGISTER.findall(each)), default=-1)


def _instructions(text: str) -> tuple[list[str], dict[str, int]]:
    """Return all instructions, and the position of each label among them."""
    instructions: list[str] = []
    labels: dict[str, int] = {}
    for line in text.splitlines():
        if label := _LABEL.match(line):
            labels[label[1]] = len(instructions)
        elif found := _INSTRUCTION.match(line):
            instructions.append(found[1])
    return instructions, labels


def loop_of(text: str) -> list[str] | None:
    """Return the instructions of the smallest loop with products. Code that waits lies
    behind the end of the program, and its way back, across that end, is no loop."""
    instructions, labels = _instructions(text)
    loops: list[list[str]] = []
    for at, each in enumerate(instructions):
        target = re.search(r"^BRA\b.*`\((\.L_\w+)\)", each)
        if target and labels.get(target[1], at + 1) <= at:
            body = instructions[labels[target[1]] : at + 1]
            if _products(body) and "EXIT" not in body:
                loops.append(body)
    return min(loops, key=len, default=None)
