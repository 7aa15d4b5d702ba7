"""Timing of block means and block selection at the sizes of the SR transformer."""

import torch

from ultraflash_kernels.block_lists import BlockRule
from ultraflash_kernels.block_topk import block_means, choose_blocks
from ultraflash_kernels.measure import Case, main

__all__ = ["cases"]

RULES = {
    "1K": BlockRule(rows=8, cols=13, temporal=3, remembered=3, window=9, budget=2704),
    "2K": BlockRule(rows=12, cols=20, temporal=3, remembered=3, window=9, budget=6400),
}
SMALL = BlockRule(rows=4, cols=5, temporal=3, remembered=3, window=9, budget=100)


def cases(device: torch.device) -> list[Case]:
    """A steady group at 1K and 2K on a GPU, a small one elsewhere."""
    gpu = device.type == "cuda"
    impls = ("reference", "triton") if gpu else ("reference",)
    found: list[Case] = []
    for size, rule in (RULES if gpu else {"small": SMALL}).items():
        new = torch.randn(1, rule.queries, 128, 12, 128, device=device).permute(
            0, 3, 1, 2, 4
        )
        new = new.bfloat16() if gpu else new
        ring = torch.randn_like(new[:, :, : rule.keys - rule.queries])
        found.append(
            Case(
                name=f"block_means {size}, ring and group",
                dtype=new.dtype,
                calls={
                    impl: lambda impl=impl, x=ring, y=new: block_means(x, y, impl=impl)
                    for impl in impls
                },
                moved_bytes=ring.nbytes + new.nbytes,
            )
        )

        for dtype in (torch.float32, torch.bfloat16):
            # Means of many independent values are near zero; these are spread like
            # those of a trained network.
            q, k = (
                2 * torch.randn(1, 12, blocks, 128, device=device).to(dtype)
                for blocks in (rule.queries, rule.keys)
            )
            found.append(
                Case(
                    name=f"choose_blocks {size}",
                    dtype=dtype,
                    calls={
                        impl: lambda impl=impl, q=q, k=k, rule=rule: choose_blocks(
                            q, k, rule, impl=impl
                        )
                        for impl in impls
                    },
                    moved_bytes=q.nbytes + k.nbytes,
                )
            )
    return found


if __name__ == "__main__":
    main(__file__, cases)
