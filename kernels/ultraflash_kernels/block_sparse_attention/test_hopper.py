"""The attention kernel for Hopper on the GPU that it is for; everywhere else its source
runs in an emulator (``tests/kernels/test_kernel_hopper.py``)."""

import pytest
import torch

from ultraflash_kernels.block_sparse_attention import dense_attention, hopper

GPU = torch.device("cuda")
CAN_RUN = torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)
pytestmark = pytest.mark.skipif(not CAN_RUN, reason="needs compute capability 9.0")


@pytest.mark.parametrize("dtype", hopper.DTYPES, ids=str)
@pytest.mark.parametrize("use", ["block lists", "dense"])
def test_it_computes_what_other_implementations_compute(
    use: hopper.HopperUse, dtype: torch.dtype
) -> None:
    assert hopper.fault(use, GPU, dtype) is None


def test_its_results_are_the_same_bit_for_bit_each_time() -> None:
    q, k, v = torch.randn(3, 1, 12, 1000, 128, device=GPU).bfloat16()
    first = dense_attention(q, k, v, impl="hopper")
    again = [dense_attention(q, k, v, impl="hopper") for _ in range(20)]
    assert all(torch.equal(each, first) for each in again)
