"""A linear layer followed by GELU, in one matmul."""

from ultraflash_kernels.linear_gelu.op import LinearGeluImpl, epilogue_refusal, linear_gelu

__all__ = ["LinearGeluImpl", "epilogue_refusal", "linear_gelu"]
