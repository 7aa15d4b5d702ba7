"""Norm and rotation of queries and keys, written head by head in blocks."""

from ultraflash_kernels.rms_norm_rope.op import (
    AxisTables,
    rms_norm_rope,
    rms_norm_rope_means,
)
from ultraflash_kernels.rms_norm_rope.op_fp8 import rms_norm_rope_means_fp8

__all__ = [
    "AxisTables",
    "rms_norm_rope",
    "rms_norm_rope_means",
    "rms_norm_rope_means_fp8",
]
