"""Norm and rotation of queries and keys, written head by head in blocks."""

from ultraflash_kernels.rms_norm_rope.op import (
    AxisTables,
    rms_norm_rope,
    rms_norm_rope_means,
)

__all__ = ["AxisTables", "rms_norm_rope", "rms_norm_rope_means"]
