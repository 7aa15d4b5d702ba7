"""The norm of rows: reference against float64, kernel against reference."""

import math

import pytest
import torch

from ultraflash_kernels.rms_norm import rms_norm
from ultraflash_kernels.testing import DEVICE, DTYPES, TOLERANCE


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (37, 63), (2, 5, 1000), (3, 0, 8)], ids=str)
def test_kernel_and_definition_divide_by_the_root_mean_square(
    shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    draw = torch.Generator().manual_seed(1)
    x = (3 * torch.randn(shape, generator=draw) + 1).to(DEVICE, dtype)
    weight = torch.randn(shape[-1], generator=draw).to(DEVICE, dtype)
    wide = x.double()
    exact = wide / (wide.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    expected = exact.to(dtype).double() * weight.double()
    for impl in ("reference", "triton"):
        got = rms_norm(x, weight, impl=impl)
        assert got.dtype == dtype and got.shape == x.shape
        off = (got.double() - expected).abs()
        assert (off <= 2 * TOLERANCE[dtype] * (1 + expected.abs())).all()


def test_rows_may_lie_apart_and_what_is_between_is_not_read() -> None:
    around = torch.full((4, 5, 80), math.nan, device=DEVICE)
    around[:, :, 3:66] = torch.randn(4, 5, 63, device=DEVICE)
    weight = torch.ones(63, device=DEVICE)
    inner = around[:, :, 3:66]
    got = rms_norm(inner, weight, impl="triton")
    torch.testing.assert_close(got, rms_norm(inner.clone(), weight, impl="triton"))
    assert got.isfinite().all()


def test_a_weight_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"weight must be \[8\]"):
        rms_norm(torch.zeros(2, 8), torch.zeros(7))
