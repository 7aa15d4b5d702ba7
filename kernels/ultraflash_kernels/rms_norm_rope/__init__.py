"""Norm and rotation of queries and keys, written head by head in blocks."""

from ultraflash_kernels.rms_norm_rope.op import AxisTables, rms_norm_rope

__all__ = ["AxisTables", "rms_norm_rope"]
