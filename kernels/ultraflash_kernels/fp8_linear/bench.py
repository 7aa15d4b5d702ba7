"""Timing of 8-bit layers at the sizes of the transformers, compared with the same
layers in bfloat16."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F

from ultraflash_kernels.fp8_linear import fp8_linear, quantise_rows
from ultraflash_kernels.measure import Case, implementations, main

__all__ = ["cases"]


def cases(device: torch.device) -> list[Case]:
    """The layers of a block for a group at 1K on a GPU; a small one elsewhere."""
    sizes = (
        [(1536, 1536), (1536, 8960), (8960, 1536)]
        if device.type == "cuda"
        else [(512, 512)]
    )
    return [case for width, out in sizes for case in _pair(width, out, device)]


def _pair(width: int, out: int, device: torch.device) -> tuple[Case, Case]:
    gpu = device.type == "cuda"
    tokens, dtype = (39936, torch.bfloat16) if gpu else (256, torch.float32)
    x, weight = (
        torch.randn(rows, width, dtype=dtype, device=device) for rows in (tokens, out)
    )
    rows, small = quantise_rows(x), quantise_rows(weight)
    calls: dict[str, Callable[[], object]] = {"plain": partial(F.linear, x, weight)}
    if gpu:
        calls["scaled_mm"] = partial(fp8_linear, x, small, impl="scaled_mm")
        calls["scaled_mm, rows given"] = partial(fp8_linear, rows, small, impl="scaled_mm")
        calls["precise, rows given"] = partial(
            fp8_linear, rows, small, impl="scaled_mm", fast_accumulation=False
        )
    else:
        calls["reference"] = partial(fp8_linear, x, small, impl="reference")

    return (
        Case(
            name=f"fp8_linear {tokens}x{width} -> {out}",
            dtype=dtype,
            calls=calls,
            moved_bytes=x.numel() + weight.numel() + tokens * out * dtype.itemsize,
            flops=2 * tokens * width * out,
        ),
        Case(
            name=f"quantise_rows {tokens}x{width}",
            dtype=dtype,
            calls={
                impl: partial(quantise_rows, x, impl=impl)
                for impl in implementations(device)
            },
            moved_bytes=x.nbytes + x.numel(),
        ),
    )


if __name__ == "__main__":
    main(__file__, cases)
