"""Linear layers in 8-bit floating point, each row with its own scale."""

from ultraflash_kernels.fp8_linear.layer import Fp8Linear, quantise_linears
from ultraflash_kernels.fp8_linear.op import (
    Fp8Impl,
    Fp8Rows,
    e4m3_refusal,
    fp8_linear,
    fp8_refusal,
    quantise_gelu_rows,
    quantise_rows,
    scaled_mm_refusal,
)

__all__ = [
    "Fp8Impl",
    "Fp8Linear",
    "Fp8Rows",
    "e4m3_refusal",
    "fp8_linear",
    "fp8_refusal",
    "quantise_gelu_rows",
    "quantise_linears",
    "quantise_rows",
    "scaled_mm_refusal",
]
