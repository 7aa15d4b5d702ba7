"""Division by the root mean square, times a weight."""

from ultraflash_kernels.rms_norm.op import rms_norm

__all__ = ["rms_norm"]
