"""Layer norm with scale and shift, and the gated residual sum."""

from ultraflash_kernels.adaln_modulate.op import (
    adaln_modulate,
    adaln_modulate_fp8,
    gated_residual,
    residual_norm,
)

__all__ = ["adaln_modulate", "adaln_modulate_fp8", "gated_residual", "residual_norm"]
