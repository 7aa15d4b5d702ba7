"""Softmax attention over selected blocks of keys."""

from ultraflash_kernels.block_sparse_attention.op import (
    block_list_attention,
    block_sparse_attention,
)

__all__ = ["block_list_attention", "block_sparse_attention"]
