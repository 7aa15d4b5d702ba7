"""3x3 convolutions of memory decoders, fused with preceding or following operations."""

from ultraflash_kernels.memory_conv.op import (
    activated_conv,
    library_refusal,
    memory_conv,
    residual_conv,
    upsampled_conv,
    upsampled_head,
)
from ultraflash_kernels.memory_conv.phases import head_taps, phase_taps

__all__ = [
    "activated_conv",
    "head_taps",
    "library_refusal",
    "memory_conv",
    "phase_taps",
    "residual_conv",
    "upsampled_conv",
    "upsampled_head",
]
