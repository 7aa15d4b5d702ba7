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
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from torch import Tensor
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from benchmarks.aot_gates import HOPPER, HOT, Figures, compare
from benchmarks.machine_code import hot_loop, split_loop
from ultraflash_kernels.block_lists import BlockLists, BlockRule
from ultraflash_kernels.fp8_linear import Fp8Rows

__all__ = ["CASES", "EIGHT_BITS", "TABLE", "TARGETS", "main", "measure"]

TABLE = Path(__file__).with_name("aot.json")
TARGETS = (80, 89, 90, 100, 103, 120)
"""Compute capabilities, times ten."""
GRID = (6, 90, 156, 2, 8, 8)
"""Frames, rows and columns of tokens of a group of the 2K stage, and those of a block."""


def blocks(dtype: torch.dtype, *, width: int = 128, tokens: int = 128, count: int = 720) -> Tensor:
    """Return queries or keys in the SR transformer's layout, with the heads of a token
    next to each other, without storage."""
    return torch.empty((1, count, tokens, 12, width), dtype=dtype, device="meta").permute(0, 3, 1, 2, 4)


def attention(
    dtype: torch.dtype, *, width: int = 128, tokens: int = 128, ring: bool = True, hopper: bool = False
) -> None:
    """Launch block-sparse attention of a group of the 2K stage, by the kernel for
    Hopper if ``hopper``."""
    from ultraflash_kernels.block_sparse_attention import kernel, kernel_hopper

    new = blocks(dtype, width=width, tokens=tokens)
    old = torch.empty((1, 12, 720, tokens, width), dtype=dtype, device="meta")
    rows, fill = 12 * 720, 720 if ring else 0
    starts, chosen, order = (torch.empty(size, dtype=torch.int32, device="meta") for size in (rows + 1, 1 << 22, rows))
    lists = BlockLists(starts, chosen, order, (1, 12, 720, fill + 720))
    remembered = (old, old) if ring else (None, None)
    forward = kernel_hopper.forward if hopper else kernel.forward
    forward(new, new, new, lists, *remembered, fill, GRID if tokens == 128 else ())


def dense_attention_fp8(*, width: int = 128) -> None:
    """Launch dense attention in 8 bits of a chunk of the generator, to its ring."""
    from ultraflash_kernels.block_sparse_attention import kernel_fp8_dense

    q, k, v = chunk_rows(width)
    kernel_fp8_dense.forward(q, k, v, torch.bfloat16)


def chunk_rows(width: int) -> tuple[Fp8Rows, Fp8Rows, Fp8Rows]:
    """Return a chunk of the generator in 8 bits, and the first keys and values of its
    ring, which holds a multiple of 16 tokens."""

    def rows(*shape: int) -> Tensor:
        return on_meta(1, 12, *shape, dtype=torch.float8_e4m3fn)

    def scales(*shape: int) -> Tensor:
        return on_meta(1, 12, *shape, dtype=torch.float32)

    capacity, used = 32768, 6 * 1560
    return (
        Fp8Rows(rows(4680, width), scales(4680, 1)),
        Fp8Rows(rows(capacity, width)[:, :, :used], scales(capacity, 1)[:, :, :used]),
        Fp8Rows(rows(width, capacity)[..., :used], scales(1, capacity)[..., :used]),
    )


def dense_attention(dtype: torch.dtype) -> None:
    """Launch dense attention of a chunk of the generator, to its ring."""
    from ultraflash_kernels.block_sparse_attention import kernel_hopper

    ring = torch.empty((1, 12, 21 * 1560, 128), dtype=dtype, device="meta")[:, :, : 6 * 1560]
    q = torch.empty((1, 12, 4680, 128), dtype=dtype, device="meta")
    kernel_hopper.dense(q, ring, ring)


def attention_fp8(*, width: int = 128, tokens: int = 128, ring: bool = True) -> None:
    """Launch block-sparse attention in 8 bits of a group of the 2K stage."""
    from ultraflash_kernels.block_sparse_attention import kernel_fp8

    rows = small_rows(tokens, width)
    turned, fill = small_rows(width, tokens, turned=True), 720 if ring else 0
    starts, chosen, order = (on_meta(size, dtype=torch.int32) for size in (12 * 720 + 1, 1 << 22, 12 * 720))
    lists = BlockLists(starts, chosen, order, (1, 12, 720, fill + 720))
    remembered = (rows, turned) if ring else None
    grid = GRID if tokens == 128 else ()
    kernel_fp8.forward(rows, rows, turned, lists, remembered, fill, grid, torch.bfloat16)


def hopper_fp8(*, ring: bool = True) -> None:
    """Launch block-sparse attention in 8 bits of a group of the 2K stage, by the kernel
    for Hopper."""
    from ultraflash_kernels.block_sparse_attention import kernel_fp8, kernel_hopper_fp8

    with mock.patch.object(kernel_fp8, "forward", kernel_hopper_fp8.forward):
        attention_fp8(ring=ring)


def hopper_fp8_dense() -> None:
    """Launch dense attention in 8 bits of a chunk of the generator by the kernel for
    Hopper."""
    from ultraflash_kernels.block_sparse_attention import kernel_fp8_dense, kernel_hopper_fp8

    with mock.patch.object(kernel_fp8_dense, "forward", kernel_hopper_fp8.dense):
        dense_attention_fp8()


def small_rows(rows: int, cols: int, *, turned: bool = False) -> Fp8Rows:
    """Return rows of the blocks of a group of the 2K stage in 8 bits."""
    step = (1, cols) if turned else (rows, 1)
    values = on_meta(1, 12, 720, rows, cols, dtype=torch.float8_e4m3fn)
    return Fp8Rows(values, on_meta(1, 12, 720, *step, dtype=torch.float32))


def choice(dtype: torch.dtype) -> None:
    """Launch means and selection of blocks of a group of the 2K stage."""
    from ultraflash_kernels.block_topk import kernel

    rule = BlockRule(rows=12, cols=20, temporal=3, remembered=3, window=9, budget=6400)
    q = blocks(torch.bfloat16)
    kernel.choose_blocks(kernel.block_means([q], dtype), kernel.block_means([q, q], dtype), rule)


def on_meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Return a tensor without storage."""
    return torch.empty(shape, dtype=dtype, device="meta")


def modulated(vectors: torch.dtype, *, small: bool = False) -> None:
    """Launch norm and modulation of a group of the 2K stage, to 8 bits if ``small``."""
    from ultraflash_kernels.adaln_modulate import kernel

    launch = kernel.modulate_fp8 if small else kernel.modulate
    launch(on_meta(1, 720, 128, 1536), on_meta(1, 1536, dtype=vectors), on_meta(1, 1536, dtype=vectors), 1e-6)


def moved(*, affine: bool = False) -> None:
    """Launch the norm of a residual stream that lacks an offset, of a group of the 2K
    stage."""
    from ultraflash_kernels.adaln_modulate import kernel

    offset = on_meta(1536, dtype=torch.float32)
    vector = on_meta(1536) if affine else on_meta(1, 1536, dtype=torch.float32)
    kernel.modulate(on_meta(1, 92160, 1536), vector, vector, 1e-6, offset, affine)


def gated() -> None:
    """Launch the gated sum of a group of the 2K stage."""
    from ultraflash_kernels.adaln_modulate import kernel

    x = on_meta(1, 720, 128, 1536)
    kernel.gate(x, x, on_meta(1, 1536, dtype=torch.float32))


def summed(norm: str) -> None:
    """Launch a sum and its norm of a group of the 2K stage, with an offset of a chunk of
    the generator."""
    from ultraflash_kernels.adaln_modulate import kernel

    x, vector = on_meta(1, 720, 128, 1536), on_meta(1, 1536, dtype=torch.float32)
    if norm == "weights":
        weight = on_meta(1536)
        kernel.residual_norm(x, x, vector, weight, weight, 1e-6, True, False)
    elif norm == "offset":
        chunk, vectors = on_meta(1, 3, 1560, 1536), on_meta(1, 3, 1536)
        kernel.residual_norm(chunk, chunk, vectors, vectors, vectors, 1e-6, False, False, on_meta(1536))
    else:
        kernel.residual_norm(x, x, None, vector, vector, 1e-6, False, norm == "fp8")


def normed() -> None:
    """Launch the norm of the tokens of a group of the 2K stage."""
    from ultraflash_kernels.rms_norm import kernel

    kernel.norm(on_meta(1, 92160, 1536), on_meta(1536), 1e-6)


def to_text(tokens: int, keys: int, *, small: bool = False) -> None:
    """Launch attention of so many tokens to a prompt, to 8 bits if ``small``."""
    from ultraflash_kernels.text_attention import kernel

    kv = on_meta(1, 12, keys, 128)
    given = (on_meta(1, tokens, 1536), on_meta(1536), kv, kv, on_meta(keys, dtype=torch.float32), 1e-6)
    _ = kernel.forward_fp8(*given) if small else kernel.forward(*given)


def turned() -> None:
    """Launch norm, rotation and scatter of a group of the 2K stage."""
    from ultraflash_kernels.rms_norm_rope import kernel

    x, weight, turns = on_meta(1, 720, 128, 1536), on_meta(1536), on_meta(5298, 2, dtype=torch.float32)
    size = (6, 90, 156)
    out = on_meta(1, 12, 720, 128, 128)
    kernel.forward(x, x, x, weight, weight, turns, (22, 21, 21), size, size, (2, 8, 8), 1e-6, (out, out, out))


def turned_blocks(*, small: bool = False) -> None:
    """Launch norm, rotation, scatter and means of a group of the 2K stage, without
    padding, to 8 bits if ``small``."""
    from ultraflash_kernels.rms_norm_rope import kernel_blocks

    size, block = GRID[:3], GRID[3:]
    x, weight, turns = on_meta(1, 84240, 1536), on_meta(1536), on_meta(5298, 2, dtype=torch.float32)
    out, mean = on_meta(1, 12, 720, 128, 128), on_meta(1, 12, 720, 128)
    given = (x, x, x, weight, weight, turns, (22, 21, 21), size, size, block, 1e-6)
    if small:
        values, scales = small_rows(128, 128)
        kernel_blocks.forward(*given, (values, values, values), (mean, mean), (scales, scales, scales))
    else:
        kernel_blocks.forward(*given, (out, out, out), (mean, mean))


def turned_tokens() -> None:
    """Launch norm, rotation and scatter of a chunk of the generator to 8 bits, with
    keys and values to its ring."""
    from ultraflash_kernels.rms_norm_rope import kernel_tokens

    size = (3, 30, 52)
    x, weight, turns = on_meta(1, 4680, 1536), on_meta(1536), on_meta(1788, 2, dtype=torch.float32)
    (q, q_scales), (k, k_scales), (v, v_scales) = chunk_rows(128)
    out, scales = (q, k[:, :, :4680], v[..., :4680]), (q_scales, k_scales[:, :, :4680], v_scales[..., :4680])
    kernel_tokens.forward(x, x, x, weight, weight, turns, (22, 21, 21), size, size, 1e-6, out, scales)


def converted(dtype: torch.dtype, bits: int, *, last: bool) -> None:
    """Launch the conversion of a group of frames at 2K, channels last or as planes."""
    from ultraflash_kernels.frames_to_yuv import kernel
    from ultraflash_kernels.frames_to_yuv.levels import Levels

    frames = on_meta(24, 3, 1440, 2496, dtype=dtype)
    frames = frames.contiguous(memory_format=torch.channels_last) if last else frames
    packed = on_meta(24, 1440 * 2496 * 3 // 2, dtype=torch.uint8 if bits == 8 else torch.uint16)
    levels = Levels(0.2126, 0.7152, 0.0722, 219.0, 16.0, 120.7, 142.2, 128.0, 255.0)
    kernel.forward(frames, packed, levels)


def quantised(width: int, *, gelu: bool = False) -> None:
    """Launch the quantisation of rows of a group of the 1K stage."""
    from ultraflash_kernels.fp8_linear import kernel

    kernel.quantise(on_meta(39936, width), gelu=gelu)


def convolved(channels: int) -> None:
    """Launch the first and the last convolution of a memory block."""
    from ultraflash_kernels.memory_conv import kernel

    x = on_meta(2, channels, 120, 208, dtype=torch.float16).contiguous(memory_format=torch.channels_last)
    both, one = (on_meta(channels, n * channels, 3, 3, dtype=torch.float16) for n in (2, 1))
    both, one = (weight.contiguous(memory_format=torch.channels_last) for weight in (both, one))
    bias = on_meta(channels, dtype=torch.float16)
    kernel.forward(x.unsqueeze(0), x[:1], both, bias, None, 0.0)
    kernel.forward(x.unsqueeze(1), None, one, bias, x, 0.0)


def doubled(channels: int, outs: int) -> None:
    """Launch the convolution behind a stage of the decoder that doubles its size."""
    from ultraflash_kernels.memory_conv import kernel

    x = on_meta(2, channels, 120, 208, dtype=torch.float16).contiguous(memory_format=torch.channels_last)
    taps = on_meta(4 * outs, channels, 2, 2, dtype=torch.float16).contiguous(memory_format=torch.channels_last)
    kernel.upsampled(x, taps.unsqueeze(0), None, 1.0)


CASES: dict[str, Callable[[], None]] = {
    "block_sparse_attention, bf16, head 128, ring": lambda: attention(torch.bfloat16),
    "block_sparse_attention, fp16, head 128, ring": lambda: attention(torch.float16),
    "block_sparse_attention, bf16, head 128": lambda: attention(torch.bfloat16, ring=False),
    "block_sparse_attention, bf16, head 64, ring": lambda: attention(torch.bfloat16, width=64),
    "block_sparse_attention, bf16, head 96, ring": lambda: attention(torch.bfloat16, width=96),
    "block_sparse_attention, bf16, head 32, 32 tokens, ring": lambda: attention(torch.bfloat16, width=32, tokens=32),
    "block_sparse_attention, fp32, head 128, ring": lambda: attention(torch.float32),
    "block_sparse_attention_hopper, bf16, ring": lambda: attention(torch.bfloat16, hopper=True),
    "block_sparse_attention_hopper, fp16": lambda: attention(torch.float16, ring=False, hopper=True),
    "block_sparse_attention_hopper, bf16, dense": lambda: dense_attention(torch.bfloat16),
    "block_sparse_attention_hopper, fp8, ring": hopper_fp8,
    "block_sparse_attention_hopper, fp8": lambda: hopper_fp8(ring=False),
    "block_sparse_attention_hopper, fp8, dense": hopper_fp8_dense,
    "block_sparse_attention_fp8, bf16, head 128, ring": attention_fp8,
    "block_sparse_attention_fp8, bf16, head 128": lambda: attention_fp8(ring=False),
    "block_sparse_attention_fp8, bf16, head 32, 32 tokens, ring": lambda: attention_fp8(width=32, tokens=32),
    "dense_attention_fp8, bf16, head 128": dense_attention_fp8,
    "dense_attention_fp8, bf16, head 64": lambda: dense_attention_fp8(width=64),
    "block_topk, bf16": lambda: choice(torch.bfloat16),
    "block_topk, fp32": lambda: choice(torch.float32),
    "adaln_modulate, bf16, float32 vectors": lambda: modulated(torch.float32),
    "adaln_modulate, bf16": lambda: modulated(torch.bfloat16),
    "adaln_modulate with an offset, bf16, float32 vectors": moved,
    "adaln_modulate with an offset, bf16, weights": lambda: moved(affine=True),
    "adaln_modulate_fp8, bf16, float32 vectors": lambda: modulated(torch.float32, small=True),
    "gated_residual, bf16, float32 gate": gated,
    "residual_norm, bf16, gate, weights": lambda: summed("weights"),
    "residual_norm, bf16, float32 vectors": lambda: summed("vectors"),
    "residual_norm with an offset, bf16, gate": lambda: summed("offset"),
    "residual_norm_fp8, bf16, float32 vectors": lambda: summed("fp8"),
    "rms_norm, bf16, 1536": normed,
    "rms_norm_rope, bf16, 12 heads of 128": turned,
    "rms_norm_rope_means, bf16, 12 heads of 128": turned_blocks,
    "rms_norm_rope_means_fp8, bf16, 12 heads of 128": lambda: turned_blocks(small=True),
    "rms_norm_rope_fp8, bf16, 12 heads of 128": turned_tokens,
    "text_attention, bf16, 128 keys": lambda: to_text(84240, 128),
    "text_attention, bf16, 512 keys": lambda: to_text(84240, 512),
    "text_attention, bf16, a chunk of the generator, 128 keys": lambda: to_text(4680, 128),
    "text_attention_fp8, bf16, 128 keys": lambda: to_text(84240, 128, small=True),
    "frames_to_yuv, fp16 planes to 8 bits": lambda: converted(torch.float16, 8, last=False),
    "frames_to_yuv, fp16 channels last to 8 bits": lambda: converted(torch.float16, 8, last=True),
    "frames_to_yuv, fp32 planes to 10 bits": lambda: converted(torch.float32, 10, last=False),
    "quantise_rows, bf16, 1536": lambda: quantised(1536),
    "quantise_rows, bf16, 8960": lambda: quantised(8960),
    "quantise_rows of GELU, bf16, 8960": lambda: quantised(8960, gelu=True),
    "memory_conv, fp16, 64 channels": lambda: convolved(64),
    "memory_conv, fp16, 128 channels": lambda: convolved(128),
    "memory_conv, fp16, 256 channels": lambda: convolved(256),
    "upsampled_conv, fp16, 256 to 128 channels": lambda: doubled(256, 128),
    "upsampled_conv, fp16, 64 to 64 channels": lambda: doubled(64, 64),
}
"""Functions that launch kernels, by their names in the table; a case with several
kernels lists each after its name."""

EIGHT_BITS = (
    "adaln_modulate_fp8",
    "block_sparse_attention_fp8",
    "dense_attention_fp8",
    "quantise_rows",
    "residual_norm_fp8",
    "rms_norm_rope_fp8",
    "rms_norm_rope_means_fp8",
    "text_attention_fp8",
)
"""Prefixes of the names of kernels that read or write float8_e4m3fn, which targets
before 89 do not support."""


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
