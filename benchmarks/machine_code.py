"""Contents of the hottest loop of a compiled kernel, read from its machine code."""

import re
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from typing import Any

from triton import knobs

__all__ = ["HotLoop", "disassembled", "hot_loop", "loop_of"]

_LABEL = re.compile(r"\s*(\.L_\w+):")
_INSTRUCTION = re.compile(r"\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?(.*?)\s*;")
_PRODUCT = re.compile(r"\b(?:[HIQ]?GMMA|[HIQ]MMA|UTC\w*MMA)\b")
_NARROW = re.compile(r"GMMA\.64x(\d+)x")
_BYTE = re.compile(r"^LD[GS]?\.(?:\w+\.)*[US]8")
_LOCAL = re.compile(r"^(?:LDL|STL)\b")
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
        products=sum(bool(_PRODUCT.search(each)) for each in body),
        byte_loads=sum(bool(_BYTE.match(each)) for each in body),
        local_accesses=sum(bool(_LOCAL.match(each)) for each in body),
        narrowest_product=min(narrow, default=0),
        loads_ahead=max(waits, default=0),
    )


def loop_of(text: str) -> list[str] | None:
    """Return the instructions of the smallest loop with products."""
    instructions: list[str] = []
    labels: dict[str, int] = {}
    for line in text.splitlines():
        if label := _LABEL.match(line):
            labels[label[1]] = len(instructions)
        elif found := _INSTRUCTION.match(line):
            instructions.append(found[1])
    loops: list[list[str]] = []
    for at, each in enumerate(instructions):
        target = re.search(r"^BRA\b.*`\((\.L_\w+)\)", each)
        if target and labels.get(target[1], at + 1) <= at:
            body = instructions[labels[target[1]] : at + 1]
            if any(_PRODUCT.search(inner) for inner in body):
                loops.append(body)
    return min(loops, key=len, default=None)
