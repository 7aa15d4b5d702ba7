"""A chunk of the generator in 8 bits on a GPU: its kernels against their references, and
rates."""

from typing import TYPE_CHECKING, Any

import torch

from ultraflash_cli.engine.cache import KvTokens, WindowRing
from ultraflash_cli.engine.layers.rope import rotation_tables
from ultraflash_kernels.block_sparse_attention import dense_attention_fp8
from ultraflash_kernels.fp8_linear import Fp8Rows
from ultraflash_kernels.rms_norm_rope import rms_norm_rope_fp8

if TYPE_CHECKING:
    from benchmarks.gpu.here import Here, Impl

__all__ = ["compared"]


def compared(here: "Here", *, heads: int, head: int) -> dict[str, Any]:
    """Return how many numbers of norm and rotation to 8 bits differ from those of the
    reference, and the relative error of attention to caches of one chunk, two and seven,
    the whole window, whose keys fill no whole tiles; on a GPU also its rate, in TFLOP/s.
    Values are 1 on average, so that sums with too few bits show."""
    size = (1, 4, 5) if here.dry else (3, 30, 52)
    chunk = size[0] * size[1] * size[2]
    most = 7 * chunk
    shape = (1, heads, most, head)
    ring = WindowRing.empty(shape, dtype=here.dtype, device=here.device, fp8=True)
    found: dict[str, Any] = {}
    queries: list[Fp8Rows] = []

    def fill() -> int:
        nonlocal ring
        differing = 0
        for start in range(0, most, chunk):
            ring, slots = ring.reserve(chunk, start=start, capacity=most, sink=0)
            rows, differ = _written(here, size, slots, heads, head)
            queries.append(rows)
            differing += differ
        return differing

    here.tried(found, "norm and rotation of tokens to 8 bits, that differ", fill)
    for chunks in (1, 2, 7):
        end = chunks * chunk

        def attended(impl: "Impl", end: int = end) -> torch.Tensor:
            keys = WindowRing(ring.k, ring.v, end, end, ring.k_scales, ring.v_scales).used.rows
            return dense_attention_fp8(queries[0], *keys, dtype=here.dtype, impl=impl)

        def error(attended: Any = attended) -> float:
            got, expected = attended(here.fast).double(), attended("reference").double()
            return float((got - expected).norm() / expected.norm())

        def rate(attended: Any = attended, end: int = end) -> float:
            return 4 * heads * chunk * end * head / here.median_ms(lambda: attended(here.fast)) / 1e9

        name = f"dense attention in 8 bits to {chunks} chunks"
        here.tried(found, name, error)
        if not here.dry:
            here.tried(found, f"{name}, TFLOP/s", rate)
    return found


def _written(here: "Here", size: tuple[int, int, int], slots: KvTokens, heads: int, head: int) -> tuple[Fp8Rows, int]:
    """Write a chunk to ``slots``; return its queries, and how many numbers of it differ
    from the reference's."""
    tokens, width = size[0] * size[1] * size[2], heads * head
    q, k, v = (torch.randn(1, tokens, width, device=here.device).to(here.dtype) for _ in range(3))
    v = v + 1
    weight = torch.randn(width, device=here.device).to(here.dtype)
    tables = rotation_tables(head, first_frame=7, frames=size[0], rows=size[1], cols=size[2], device=here.device)
    given = (q, k, v, weight, weight, tables)
    found = rms_norm_rope_fp8(*given, size=size, kv_out=slots.rows, impl=here.fast)
    expected = rms_norm_rope_fp8(*given, size=size, impl="reference")
    differing = 0
    for rows, others in zip(found, expected, strict=True):
        differing += int((rows.values.float() != others.values.float()).sum())
        differing += int((rows.scales != others.scales).sum())
    return found[0], differing
