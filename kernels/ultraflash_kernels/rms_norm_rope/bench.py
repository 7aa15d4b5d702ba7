"""Timing of norm, rotation and scatter at the sizes of the SR transformer."""

from functools import partial

import torch

from ultraflash_kernels.measure import Case, implementations, main
from ultraflash_kernels.rms_norm_rope import AxisTables, rms_norm_rope

__all__ = ["cases"]


def cases(device: torch.device) -> list[Case]:
    """Groups at 1K and 2K on a GPU, one temporal block of a small grid elsewhere."""
    gpu = device.type == "cuda"
    dtype = torch.bfloat16 if gpu else torch.float32
    sizes = [(6, 60, 104), (6, 90, 156)] if gpu else [(2, 16, 32)]
    return [_case(size, dtype, device) for size in sizes]


def _case(size: tuple[int, int, int], dtype: torch.dtype, device: torch.device) -> Case:
    block = (2, 8, 8)
    blocks = 1
    for tokens, side in zip(size, block, strict=True):
        blocks *= -(-tokens // side)

    q, k, v = torch.randn(3, 1, blocks, 128, 1536, dtype=dtype, device=device)
    weight = torch.ones(1536, dtype=dtype, device=device)
    turns = [
        torch.randn(count, pairs, dtype=torch.complex64, device=device).sgn()
        for count, pairs in zip(size, (22, 21, 21), strict=True)
    ]
    tables = AxisTables.of(*turns)
    out = torch.empty(3, 1, 12, blocks, 128, 128, dtype=dtype, device=device).unbind()
    to = (out[0], out[1], out[2])

    return Case(
        name=f"rms_norm_rope {list(size)} tokens of 12 x 128",
        dtype=dtype,
        calls={
            impl: partial(
                rms_norm_rope,
                q,
                k,
                v,
                weight,
                weight,
                tables,
                size=size,
                block=block,
                out=to,
                impl=impl,
            )
            for impl in implementations(device)
        },
        moved_bytes=6 * q.nbytes,
    )


if __name__ == "__main__":
    main(__file__, cases)
