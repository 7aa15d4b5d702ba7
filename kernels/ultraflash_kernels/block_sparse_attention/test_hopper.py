"""The attention kernels for Hopper on the GPU that they are for; everywhere else their
source runs in an emulator (``tests/kernels/test_kernel_hopper.py``)."""

import subprocess
import sys

import pytest
import torch

CAN_RUN = torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)
PROGRAM = """
import torch
from ultraflash_kernels.block_sparse_attention import dense_attention, hopper

gpu = torch.device("cuda")
for use in ("block lists", "dense"):
    for dtype in (*hopper.DTYPES, torch.float8_e4m3fn):
        assert (fault := hopper.fault(use, gpu, dtype)) is None, f"{use}, {dtype}: {fault}"
q, k, v = torch.randn(3, 1, 12, 1000, 128, device=gpu).bfloat16()
first = dense_attention(q, k, v, impl="hopper")
for _ in range(20):
    again = dense_attention(q, k, v, impl="hopper")
    assert torch.equal(again, first), "the same call gives other bits"
"""
LONGEST_S = 300
"""Until a kernel that waits in vain is ended."""


@pytest.mark.skipif(not CAN_RUN, reason="needs a GPU of compute capability 9.0")
def test_it_computes_what_others_compute_and_the_same_bits_each_time() -> None:
    # An illegal access, or a wait in vain, would take all later tests with it.
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST_S)
    assert done.returncode == 0, done.stderr
