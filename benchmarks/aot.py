"""Registers, spills and shared memory of every kernel, compiled ahead of time; no GPU is needed.

python -m benchmarks.aot            compile all for all targets, write benchmarks/aot.json
python -m benchmarks.aot --check    compare with that file: exit code 1 if a kernel spills more or is not listed
python -m benchmarks.aot --table benchmarks/aot_triton_3.6.json --targets 90
                                    the same under another Triton, in a table of its own

A kernel is compiled as its operation launches it: operations run on tensors without storage, and the launches are
compiled instead of executed. Triton's interpreter must be off.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from benchmarks.aot_cases import CASES, EIGHT_BITS
from benchmarks.aot_gates import HOPPER, HOT, Figures, compare
from benchmarks.machine_code import hot_loop, split_loop

__all__ = ["TABLE", "TARGETS", "main", "measure"]

TABLE = Path(__file__).with_name("aot.json")
TARGETS = (80, 89, 90, 100, 103, 120)
"""Compute capabilities, times ten."""


class TargetDriver:
    """Stand-in for the GPU driver that Triton expects; it only names the target."""

    def __init__(self, target: int) -> None:
        self.target = target

    def get_current_target(self) -> GPUTarget:
        """Name the GPU to compile for."""
        return GPUTarget("cuda", self.target, 32)

    def get_current_device(self) -> int:
        """Number devices by target, since Triton keeps compiled kernels by device."""
        return self.target

    def get_current_stream(self, device: int) -> int:
        """Name the only stream."""
        return 0


@contextmanager
def compiling_for(target: int) -> Generator[list[Any]]:
    """Compile launches for ``target`` instead of executing them; compiled kernels are
    appended to the given list."""
    compiled: list[Any] = []
    run = JITFunction.run

    def compile_only(self: JITFunction, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        made = run(self, *args, grid=grid, warmup=True, **options)
        if not any(made is other for other in compiled):
            compiled.append(made)
        return made

    driver.set_active(TargetDriver(target))  # pyright: ignore[reportArgumentType]
    with (
        mock.patch.object(JITFunction, "run", compile_only),
        mock.patch.object(torch.cuda, "get_device_capability", lambda *_: divmod(target, 10)),
    ):
        yield compiled


def measure(cases: Sequence[str] = tuple(CASES), targets: Sequence[int] = TARGETS) -> Figures:
    """Compile these cases for these targets and return the resources of the
    programs."""
    figures: Figures = {}
    for target in targets:
        for name in cases:
            if (target < 89 and name.startswith(EIGHT_BITS)) or (target != 90 and name.startswith(HOPPER)):
                continue
            with compiling_for(target) as compiled:
                CASES[name]()
            several = len(compiled) > 1
            for number, program in enumerate(compiled):
                listed = f"{name}, {number} {program.metadata.name}" if several else name
                line = resources(program)
                if name.startswith(HOT) and (loop := hot_loop(program)) is not None:
                    line |= {f"loop_{key}": value for key, value in loop.as_json().items()}
                if name.startswith(HOPPER) and (split := split_loop(program)) is not None:
                    line |= {f"loop_{key}": value for key, value in split.as_json().items()}
                figures.setdefault(listed, {})[f"sm_{target}"] = line
    return figures


def resources(program: Any) -> dict[str, int]:
    """Return registers and stack from the machine code, and shared memory from the
    compiler."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(program.asm["cubin"])
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        usage = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    return {
        "registers": found["REG"],
        "spilled_bytes": found["STACK"] + found["LOCAL"],
        "shared_bytes": program.metadata.shared,
    }


def _place(name: str, order: Sequence[str]) -> int:
    """Return the position of the case that a line of the table belongs to."""
    return max((at for at, case in enumerate(order) if name.startswith(case)), default=len(order))


def main(arguments: Sequence[str] | None = None) -> None:
    """Compile, then write the table or compare with it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    parser.add_argument("--only", metavar="START", help="cases whose names begin so; the others keep their lines")
    parser.add_argument("--table", type=Path, default=TABLE, help="the table to write or compare with")
    parser.add_argument(
        "--targets", type=int, nargs="+", choices=TARGETS, default=list(TARGETS), help="compute capabilities, times ten"
    )
    settings = parser.parse_args(arguments)
    if knobs.runtime.interpret:
        sys.exit("Triton's interpreter is on (TRITON_INTERPRET), expected off")
    cases = [name for name in CASES if name.startswith(settings.only or "")]
    found = measure(cases, settings.targets)
    listed = json.loads(settings.table.read_text())["kernels"] if settings.table.exists() else {}
    if settings.only:
        listed = {name: line for name, line in listed.items() if settings.check is False or name in found}
    if not settings.check:
        order = list(CASES)
        kept = listed if settings.only or len(settings.targets) < len(TARGETS) else {}
        merged = {name: kept.get(name, {}) | lines for name, lines in found.items()}
        merged = listed | merged if settings.only else merged
        merged = dict(sorted(merged.items(), key=lambda item: _place(item[0], order)))
        settings.table.write_text(json.dumps({"triton": triton.__version__, "kernels": merged}, indent=1) + "\n")
        listed = {name: merged[name] for name in found}
    wrong = compare(found, listed)
    print("\n".join(wrong) or f"{len(found)} kernels on {len(settings.targets)} targets")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
