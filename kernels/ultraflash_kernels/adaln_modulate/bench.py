"""Timing of norm, modulation and gated sum at the sizes of the SR transformer."""

from functools import partial

import torch

from ultraflash_kernels.adaln_modulate import (
    adaln_modulate,
    adaln_modulate_fp8,
    gated_residual,
)
from ultraflash_kernels.measure import Case, implementations, main

__all__ = ["cases"]


def cases(device: torch.device) -> list[Case]:
    """A group at 2K on a GPU, a thousand tokens elsewhere."""
    gpu = device.type == "cuda"
    blocks, dtype = (720, torch.bfloat16) if gpu else (8, torch.float32)
    x, y = (torch.randn(1, blocks, 128, 1536, dtype=dtype, device=device) for _ in range(2))
    shift, scale, gate = torch.randn(3, 1, 1536, device=device)
    impls = implementations(device)
    found = [
        Case(
            name=f"adaln_modulate {list(x.shape)}",
            dtype=dtype,
            calls={
                impl: partial(adaln_modulate, x, shift, scale, impl=impl) for impl in impls
            },
            moved_bytes=2 * x.nbytes,
        ),
        Case(
            name=f"adaln_modulate with an offset {list(x.shape)}",
            dtype=dtype,
            calls={
                impl: partial(adaln_modulate, x, shift, scale, offset=gate[0], impl=impl)
                for impl in impls
            },
            moved_bytes=2 * x.nbytes,
        ),
        Case(
            name=f"gated_residual {list(x.shape)}",
            dtype=dtype,
            calls={impl: partial(gated_residual, x, y, gate, impl=impl) for impl in impls},
            moved_bytes=3 * x.nbytes,
        ),
    ]

    if not gpu or torch.cuda.get_device_capability(device) >= (8, 9):
        found.append(
            Case(
                name=f"adaln_modulate_fp8 {list(x.shape)}",
                dtype=dtype,
                calls={
                    impl: partial(adaln_modulate_fp8, x, shift, scale, impl=impl)
                    for impl in impls
                },
                moved_bytes=x.nbytes + x.numel(),
            )
        )
    return found


if __name__ == "__main__":
    main(__file__, cases)
