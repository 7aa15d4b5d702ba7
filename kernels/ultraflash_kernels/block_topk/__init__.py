"""Which key blocks each query block attends to."""

from ultraflash_kernels.block_topk.op import block_topk

__all__ = ["block_topk"]
