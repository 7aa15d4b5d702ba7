"""What the tests of all operations share: the device, the dtypes of its kernels, how
close a result has to be."""

import torch

__all__ = ["DEVICE", "DTYPES", "TOLERANCE"]

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
"""A GPU where there is one, else Triton's interpreter."""
DTYPES = [torch.float32, torch.float16] + ([torch.bfloat16] if DEVICE == "cuda" else [])
"""What kernels compute in here; the interpreter computes bfloat16 wrongly."""
TOLERANCE = {
    torch.float64: 1e-12,
    torch.float32: 2.5e-6,
    torch.float16: 1e-3,
    torch.bfloat16: 8e-3,
}
"""Error after one rounding to a dtype, of values about 1; tests multiply it by how
often the operation rounds."""
