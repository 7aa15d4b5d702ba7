"""Norm and rotation of queries and keys, written head by head in blocks or tokens."""

from ultraflash_kernels.rms_norm_rope.axis_tables import AxisTables
from ultraflash_kernels.rms_norm_rope.op import rms_norm_rope, rms_norm_rope_means
from ultraflash_kernels.rms_norm_rope.op_fp8 import (
    rms_norm_rope_fp8,
    rms_norm_rope_means_fp8,
)

__all__ = [
    "AxisTables",
    "rms_norm_rope",
    "rms_norm_rope_fp8",
    "rms_norm_rope_means",
    "rms_norm_rope_means_fp8",
]
