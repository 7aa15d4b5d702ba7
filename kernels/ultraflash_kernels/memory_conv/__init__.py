"""3x3 convolutions of memory decoders, with what follows or precedes them fused."""

from ultraflash_kernels.memory_conv.op import memory_conv, residual_conv, upsampled_conv

__all__ = ["memory_conv", "residual_conv", "upsampled_conv"]
