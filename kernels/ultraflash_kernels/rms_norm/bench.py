"""Time the RMS norm at the sizes of cross-attention queries."""

from functools import partial

import torch

from ultraflash_kernels.measure import Case, implementations, main
from ultraflash_kernels.rms_norm import rms_norm

__all__ = ["cases"]


def cases(device: torch.device) -> list[Case]:
    """A group at 2K on a GPU, a thousand tokens elsewhere."""
    gpu = device.type == "cuda"
    tokens, dtype = (84240, torch.bfloat16) if gpu else (1024, torch.float32)
    x, weight = (
        torch.randn(size, 1536, dtype=dtype, device=device) for size in (tokens, 1)
    )
    return [
        Case(
            name=f"rms_norm {list(x.shape)}",
            dtype=dtype,
            calls={
                impl: partial(rms_norm, x, weight[0], impl=impl)
                for impl in implementations(device)
            },
            moved_bytes=2 * x.nbytes,
        )
    ]


if __name__ == "__main__":
    main(__file__, cases)
