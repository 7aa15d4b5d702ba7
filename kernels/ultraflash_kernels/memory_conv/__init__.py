"""3x3 convolutions of memory decoders, with what follows or precedes them fused."""

from ultraflash_kernels.memory_conv.op import (
    activated_conv,
    memory_conv,
    residual_conv,
    upsampled_conv,
)

__all__ = ["activated_conv", "memory_conv", "residual_conv", "upsampled_conv"]
