"""3x3 convolutions of memory decoders, fused with preceding or following operations."""

from ultraflash_kernels.memory_conv.op import (
    activated_conv,
    memory_conv,
    residual_conv,
    upsampled_conv,
)

__all__ = ["activated_conv", "memory_conv", "residual_conv", "upsampled_conv"]
