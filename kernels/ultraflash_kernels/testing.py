"""Helpers for the tests of all operations: device, dtypes of its kernels,
tolerances."""

import torch

__all__ = ["DEVICE", "DTYPES", "TOLERANCE"]

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
"""A GPU if there is one, else the CPU with Triton's interpreter."""
DTYPES = [torch.float32, torch.float16] + ([torch.bfloat16] if DEVICE == "cuda" else [])
"""Dtypes to test here; the interpreter computes bfloat16 incorrectly."""
TOLERANCE = {
    torch.float64: 1e-12,
    torch.float32: 2.5e-6,
    torch.float16: 1e-3,
    torch.bfloat16: 8e-3,
}
"""Error of values around 1 after one rounding to a dtype; tests multiply it by the
operation's number of roundings."""
