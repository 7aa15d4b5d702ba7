"""A linear layer and GELU behind it, in one product."""

from ultraflash_kernels.linear_gelu.op import LinearGeluImpl, epilogue_refusal, linear_gelu

__all__ = ["LinearGeluImpl", "epilogue_refusal", "linear_gelu"]
