"""3x3 convolutions of the causal memory block, with what follows them fused."""

from ultraflash_kernels.memory_conv.op import memory_conv, residual_conv

__all__ = ["memory_conv", "residual_conv"]
