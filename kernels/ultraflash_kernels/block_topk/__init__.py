"""Selection of the key blocks that each query block attends to."""

from ultraflash_kernels.block_topk.op import block_means, block_topk, choose_blocks

__all__ = ["block_means", "block_topk", "choose_blocks"]
