"""Softmax attention over selected blocks of keys, and over all of them."""

from ultraflash_kernels.block_sparse_attention.op import (
    block_list_attention,
    block_sparse_attention,
)
from ultraflash_kernels.block_sparse_attention.op_dense import dense_attention
from ultraflash_kernels.block_sparse_attention.op_dense_fp8 import dense_attention_fp8
from ultraflash_kernels.block_sparse_attention.op_fp8 import block_list_attention_fp8

__all__ = [
    "block_list_attention",
    "block_list_attention_fp8",
    "block_sparse_attention",
    "dense_attention",
    "dense_attention_fp8",
]
