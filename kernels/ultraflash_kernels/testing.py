"""Shared by the tests of all operations: the device, the dtypes of its kernels, the
tolerances."""

import torch

__all__ = ["DEVICE", "DTYPES", "TOLERANCE"]

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
"""A GPU where there is one, else Triton's interpreter."""
DTYPES = [torch.float32, torch.float16] + ([torch.bfloat16] if DEVICE == "cuda" else [])
"""Dtypes to test here; the interpreter computes bfloat16 incorrectly."""
TOLERANCE = {
    torch.float64: 1e-12,
    torch.float32: 2.5e-6,
    torch.float16: 1e-3,
    torch.bfloat16: 8e-3,
}
"""Error after one rounding to a dtype, of values about 1; tests multiply it by how
often the operation rounds."""
