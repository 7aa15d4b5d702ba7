"""Timing of the first layer of a feed-forward, with GELU after its matmul and fused
into it."""

from collections.abc import Callable
from functools import partial

import torch

from ultraflash_kernels.linear_gelu import epilogue_refusal, linear_gelu
from ultraflash_kernels.measure import Case, main

__all__ = ["cases"]


def cases(device: torch.device) -> list[Case]:
    """A group at 1K and a chunk of the generator on a GPU; a small layer elsewhere."""
    gpu = device.type == "cuda"
    dtype = torch.bfloat16 if gpu else torch.float32
    sizes = [(37440, 1536, 8960), (4680, 1536, 8960)] if gpu else [(256, 256, 512)]
    found: list[Case] = []
    for rows, width, out in sizes:
        x = torch.randn(rows, width, dtype=dtype, device=device)
        weight = torch.randn(out, width, dtype=dtype, device=device)
        bias = torch.randn(out, dtype=dtype, device=device)
        calls: dict[str, Callable[[], object]] = {
            "reference": partial(linear_gelu, x, weight, bias, impl="reference")
        }
        if epilogue_refusal(x, weight, bias) is None:
            calls["epilogue"] = partial(linear_gelu, x, weight, bias, impl="epilogue")

        found.append(
            Case(
                name=f"linear_gelu {rows}x{width} -> {out}",
                dtype=dtype,
                calls=calls,
                moved_bytes=x.nbytes + weight.nbytes + rows * out * dtype.itemsize,
                flops=2 * rows * width * out,
            )
        )
    return found


if __name__ == "__main__":
    main(__file__, cases)
