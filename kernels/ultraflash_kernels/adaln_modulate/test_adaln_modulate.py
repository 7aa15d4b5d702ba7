"""Norm under scale and shift and the gated sum: reference against a loop in float64,
kernel against reference."""

import math

import pytest
import torch
from torch import Tensor

from ultraflash_kernels.adaln_modulate import (
    adaln_modulate,
    adaln_modulate_fp8,
    gated_residual,
    residual_norm,
)
from ultraflash_kernels.dispatch import KERNEL_DTYPES, Impl
from ultraflash_kernels.fp8_linear import quantise_rows
from ultraflash_kernels.testing import DEVICE, DTYPES, TOLERANCE

SHAPES = [
    pytest.param((1,), (1,), 1, id="one of everything"),
    pytest.param((2,), (37,), 63, id="odd sizes"),
    pytest.param((2, 3), (5,), 16, id="a vector for each frame"),
    pytest.param((1,), (2, 3), 1000, id="blocks of tokens"),
]


def example(
    lead: tuple[int, ...], tokens: tuple[int, ...], width: int, dtype: torch.dtype
) -> tuple[Tensor, ...]:
    """x, y and three float32 vectors; x has a mean that the norm must take off."""
    draw = torch.Generator().manual_seed(width)
    x, y = (3 * torch.randn(*lead, *tokens, width, generator=draw) + 5 for _ in range(2))
    vectors = [torch.randn(*lead, width, generator=draw) for _ in range(3)]
    return *(tensor.to(DEVICE, dtype) for tensor in (x, y)), *(
        vector.to(DEVICE) for vector in vectors
    )


def oracle(x: Tensor, shift: Tensor, scale: Tensor, *, steps: bool) -> Tensor:
    """One row at a time in float64, rounded to the dtype of x where the reference says
    so."""
    rows, width = x.flatten(0, -2), x.shape[-1]
    each = rows.shape[0] // (shift.numel() // width)
    shifts, scales = shift.reshape(-1, width), scale.reshape(-1, width)
    out = torch.empty_like(rows)
    for i, row in enumerate(rows.double()):
        centred = row - row.sum() / width
        normed = (
            (centred / math.sqrt(float(centred @ centred) / width + 1e-6))
            .to(x.dtype)
            .double()
        )
        gain, lift = 1 + scales[i // each].double(), shifts[i // each].double()
        gain = gain.to(x.dtype).double() if steps else gain
        product = (normed * gain).to(x.dtype).double() if steps else normed * gain
        out[i] = (product + lift).to(x.dtype)
    return out.view(x.shape)


def assert_near(got: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    assert got.dtype == dtype
    bound = 2 * TOLERANCE[dtype] * (1 + expected.double().abs())
    assert ((got.double() - expected.double()).abs() <= bound).all()


def assert_rounded_alike(got: Tensor, expected: Tensor) -> None:
    """Half precision that is rounded in the same places differs where float32 sums
    straddle a step: hardly ever."""
    if got.dtype != torch.float32:
        assert int((got != expected).sum()) <= 1 + got.numel() // 50


@pytest.mark.parametrize("dtype", KERNEL_DTYPES, ids=str)
@pytest.mark.parametrize(
    "steps", [False, True], ids=["float32 vectors", "vectors in the dtype of x"]
)
@pytest.mark.parametrize(("lead", "tokens", "width"), SHAPES)
def test_the_definition_equals_a_loop_over_rows(
    lead: tuple[int, ...],
    tokens: tuple[int, ...],
    width: int,
    dtype: torch.dtype,
    steps: bool,
) -> None:
    x, y, shift, scale, gate = example(lead, tokens, width, dtype)
    if steps:
        shift, scale, gate = shift.to(dtype), scale.to(dtype), gate.to(dtype)
    assert_near(
        adaln_modulate(x, shift, scale, impl="reference"),
        oracle(x, shift, scale, steps=steps),
        dtype,
    )
    spread = gate.reshape(*lead, *(1 for _ in tokens), width).double()
    product = y.double() * spread
    expected = x.double() + (product.to(dtype).double() if steps else product)
    assert_near(gated_residual(x, y, gate, impl="reference"), expected, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "steps", [False, True], ids=["float32 vectors", "vectors in the dtype of x"]
)
@pytest.mark.parametrize(("lead", "tokens", "width"), SHAPES)
def test_the_kernel_equals_the_definition(
    lead: tuple[int, ...],
    tokens: tuple[int, ...],
    width: int,
    dtype: torch.dtype,
    steps: bool,
) -> None:
    x, y, shift, scale, gate = example(lead, tokens, width, dtype)
    if steps:
        shift, scale, gate = shift.to(dtype), scale.to(dtype), gate.to(dtype)
    modulated = adaln_modulate(x, shift, scale, impl="triton")
    expected = adaln_modulate(x, shift, scale, impl="reference")
    assert_near(modulated, expected, dtype)
    assert_rounded_alike(modulated, expected)
    added = gated_residual(x, y, gate, impl="triton")
    torch.testing.assert_close(
        added, gated_residual(x, y, gate, impl="reference"), rtol=0, atol=0
    )


def test_bfloat16_is_rounded_after_the_norm_and_at_the_end() -> None:
    x, y, shift, scale, gate = example((1,), (4,), 256, torch.bfloat16)
    normed = torch.nn.functional.layer_norm(x.float(), (256,), eps=1e-6).bfloat16().float()
    expected = (normed * (1 + scale) + shift).bfloat16()
    assert torch.equal(adaln_modulate(x, shift, scale, impl="reference"), expected)
    added = (x.float() + y.float() * gate).bfloat16()
    assert torch.equal(gated_residual(x, y, gate, impl="reference"), added)


@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_the_memory_around_strided_rows_is_not_read(impl: Impl) -> None:
    x, y, shift, scale, gate = example((2,), (5,), 37, torch.float32)
    around = torch.full((4, 2, 7, 50), math.nan, device=DEVICE)
    inner = around[:2, :, 1:6, 3:40]
    inner[0], inner[1] = x, y
    vectors = torch.full((2, 3, 50), math.nan, device=DEVICE)
    vectors[:, :, 5:42] = torch.stack([shift, scale, gate], dim=1)
    s, c, g = vectors[:, :, 5:42].unbind(1)
    assert torch.equal(
        adaln_modulate(inner[0], s, c, impl=impl),
        adaln_modulate(x, shift, scale, impl=impl),
    )
    assert torch.equal(
        gated_residual(inner[0], inner[1], g, impl=impl),
        gated_residual(x, y, gate, impl=impl),
    )
    turned = x.transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(
        adaln_modulate(turned, shift, scale, impl=impl),
        adaln_modulate(x, shift, scale, impl=impl),
    )


def test_a_row_of_nan_stays_alone() -> None:
    x, y, shift, scale, gate = example((1,), (9,), 63, torch.float32)
    before = adaln_modulate(x, shift, scale, impl="triton")
    x[:, 4] = math.nan
    after = adaln_modulate(x, shift, scale, impl="triton")
    others = [0, 1, 2, 3, 5, 6, 7, 8]
    assert torch.equal(before[:, others], after[:, others]) and after[:, 4].isnan().all()
    assert gated_residual(x, y, gate, impl="triton")[:, 4].isnan().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [1, 63, 1000])
def test_quantised_rows_are_those_of_the_modulated_rows(
    width: int, dtype: torch.dtype
) -> None:
    x, _, shift, scale, _ = example((2,), (5,), width, dtype)
    got = adaln_modulate_fp8(x, shift, scale, impl="triton")
    expected = quantise_rows(
        adaln_modulate(x, shift, scale, impl="reference"), impl="reference"
    )
    assert got.values.dtype == torch.float8_e4m3fn and got.scales.shape == (2, 5, 1)
    torch.testing.assert_close(
        got.scales, expected.scales, rtol=2 * TOLERANCE[dtype], atol=0
    )
    direct = adaln_modulate_fp8(x, shift, scale, impl="reference")
    assert torch.equal(direct.values.float(), expected.values.float())
    near = expected.values.float()
    # The interpreter loses a carry into the exponent: what should become a power of two
    # comes out as half of it.
    carried = torch.frexp(near)[0].abs() == 0.5
    bound = near.abs() / 8 + 2**-9
    assert (carried | ((got.values.float() - near).abs() <= bound)).all()


def test_no_rows_give_no_rows() -> None:
    x, vector = torch.zeros(2, 0, 8, device=DEVICE), torch.zeros(2, 8, device=DEVICE)
    for impl in ("reference", "triton"):
        assert adaln_modulate(x, vector, vector, impl=impl).shape == x.shape
        assert gated_residual(x, x, vector, impl=impl).shape == x.shape
        assert adaln_modulate_fp8(x, vector, vector, impl=impl).values.shape == x.shape


def test_the_definition_compiles_into_one_graph() -> None:
    x, y, shift, scale, gate = example((1,), (3,), 8, torch.float32)

    def both(x: Tensor, y: Tensor) -> Tensor:
        return gated_residual(adaln_modulate(x, shift, scale), y, gate)

    assert torch.equal(
        torch.compile(both, backend="eager", fullgraph=True)(x, y), both(x, y)
    )


def test_a_kernel_is_whole_in_a_compiled_graph() -> None:
    x, y, shift, scale, gate = example((1,), (3,), 8, torch.float32)

    def both(x: Tensor, y: Tensor) -> Tensor:
        return gated_residual(
            adaln_modulate(x, shift, scale, impl="triton"), y, gate, impl="triton"
        )

    assert torch.equal(
        torch.compile(both, backend="eager", fullgraph=True)(x, y), both(x, y)
    )


def test_gradients_flow_through_the_definition() -> None:
    x, y, shift, scale, gate = example((1,), (2,), 4, torch.float32)
    for tensor in (x, y, shift, scale, gate):
        tensor.requires_grad_()
    gated_residual(adaln_modulate(x, shift, scale), y, gate).sum().backward()
    assert all(tensor.grad is not None for tensor in (x, y, shift, scale, gate))


def test_arguments_that_do_not_fit_are_refused() -> None:
    x, vector = torch.zeros(2, 3, 8), torch.zeros(2, 8)
    with pytest.raises(ValueError, match="and vectors"):
        adaln_modulate(x, vector[:1], vector[:1])
    with pytest.raises(ValueError, match="and vectors"):
        adaln_modulate(x, vector, vector[:, :4])
    with pytest.raises(ValueError, match="all be float32"):
        adaln_modulate(x.half(), vector.half(), vector)
    with pytest.raises(ValueError, match="y must match x"):
        gated_residual(x, x[:, :1], vector)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("gated", [True, False], ids=["gated", "plain sum"])
@pytest.mark.parametrize("norm", ["float32 vectors", "vectors as x", "weights"])
@pytest.mark.parametrize(("lead", "tokens", "width"), SHAPES)
def test_sum_and_norm_in_one_pass_are_the_sum_and_its_norm(
    lead: tuple[int, ...],
    tokens: tuple[int, ...],
    width: int,
    norm: str,
    gated: bool,
    dtype: torch.dtype,
) -> None:
    x, y, shift, scale, gate = example(lead, tokens, width, dtype)
    affine = norm == "weights"
    if norm != "float32 vectors":
        shift, scale, gate = shift.to(dtype), scale.to(dtype), gate.to(dtype)
    if affine:
        shift, scale = (each.reshape(-1, width)[0] for each in (shift, scale))
    given = (x, y, gate if gated else None, shift, scale)
    total, normed = residual_norm(*given, affine=affine, impl="triton")
    expected_total = gated_residual(x, y, gate, impl="reference") if gated else x + y
    torch.testing.assert_close(total, expected_total, rtol=0, atol=0)
    assert isinstance(normed, Tensor)
    if affine:
        weights = (scale, shift)
        expected = torch.nn.functional.layer_norm(total, (width,), *weights, eps=1e-6)
    else:
        expected = adaln_modulate(total, shift, scale, impl="reference")
    assert_near(normed, expected, dtype)
    assert_rounded_alike(normed, expected)
    by_definition = residual_norm(*given, affine=affine, impl="reference")
    assert torch.equal(by_definition[0], expected_total)
    assert isinstance(by_definition[1], Tensor) and torch.equal(by_definition[1], expected)


def test_sum_and_norm_in_8_bits_are_the_quantised_norm() -> None:
    x, y, shift, scale, gate = example((2,), (5,), 63, torch.float32)
    total, rows = residual_norm(x, y, gate, shift, scale, fp8=True, impl="triton")
    expected = adaln_modulate_fp8(total, shift, scale, impl="triton")
    assert not isinstance(rows, Tensor)
    torch.testing.assert_close(rows.scales, expected.scales, rtol=2e-6, atol=0)
    off = (rows.values.float() - expected.values.float()).abs()
    assert float((off > 0).float().mean()) < 0.02


def test_what_does_not_fit_a_sum_and_its_norm_is_refused() -> None:
    x, vector = torch.zeros(2, 3, 8), torch.zeros(2, 8)
    with pytest.raises(ValueError, match="weight and bias"):
        residual_norm(x, x, None, vector, vector, affine=True)
    with pytest.raises(ValueError, match="same shape"):
        residual_norm(x, x, torch.zeros(8), vector, vector)
    with pytest.raises(ValueError, match="y must match x"):
        residual_norm(x, x[:1], None, vector, vector)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("norm", ["float32 vectors", "vectors as x", "weights"])
@pytest.mark.parametrize("impl", ["reference", "triton"])
@pytest.mark.parametrize(("lead", "tokens", "width"), SHAPES)
def test_an_offset_is_added_before_the_norm(
    lead: tuple[int, ...],
    tokens: tuple[int, ...],
    width: int,
    impl: Impl,
    norm: str,
    dtype: torch.dtype,
) -> None:
    x, _, shift, scale, _ = example(lead, tokens, width, dtype)
    offset = torch.linspace(-3, 4, width, device=DEVICE)
    affine = norm == "weights"
    if norm != "float32 vectors":
        shift, scale = shift.to(dtype), scale.to(dtype)
    if affine:
        shift, scale = (each.reshape(-1, width)[0] for each in (shift, scale))
    moved = x.double() + offset
    normed = torch.nn.functional.layer_norm(moved, (width,), eps=1e-6)
    if affine:
        expected = normed * scale.double() + shift.double()
    else:
        over = (*lead, *(1 for _ in tokens), width)
        expected = normed * (1 + scale.double()).view(over) + shift.double().view(over)
    got = adaln_modulate(x, shift, scale, offset=offset, affine=affine, impl=impl)
    assert got.dtype == dtype
    # Up to four roundings, of numbers that the scale has enlarged.
    largest = (1 + scale.double().abs()).max() * (1 + normed.abs())
    bound = 4 * TOLERANCE[dtype] * largest
    assert ((got.double() - expected).abs() <= bound).all()


@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_the_norm_sees_of_an_offset_what_half_precision_would_round_off(impl: Impl) -> None:
    x = torch.full((1, 5, 64), 1000.0, dtype=torch.float16, device=DEVICE)
    offset = torch.linspace(0, 0.1, 64, device=DEVICE)
    zeros = torch.zeros(1, 64, device=DEVICE)
    got = adaln_modulate(x, zeros, zeros, offset=offset, impl=impl)
    expected = torch.nn.functional.layer_norm(offset, (64,), eps=1e-6).expand_as(x)
    torch.testing.assert_close(got.float(), expected, rtol=0, atol=0.01)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("narrow", [False, True], ids=["float32 vectors", "vectors as x"])
@pytest.mark.parametrize(("lead", "tokens", "width"), SHAPES)
def test_an_offset_is_added_to_a_sum_before_it_is_rounded(
    lead: tuple[int, ...],
    tokens: tuple[int, ...],
    width: int,
    narrow: bool,
    dtype: torch.dtype,
) -> None:
    x, y, shift, scale, gate = example(lead, tokens, width, dtype)
    offset = torch.linspace(-3, 4, width, device=DEVICE)
    if narrow:
        shift, scale, gate, offset = (
            each.to(dtype) for each in (shift, scale, gate, offset)
        )
    gates = gate.reshape(*lead, *(1 for _ in tokens), width)
    product = (y * gates).float()  # rounded as the gate is
    for weight, added in ((gate, product), (None, y.float())):
        expected = (x.float() + offset.float() + added).to(dtype)
        for impl in ("reference", "triton"):
            total, normed = residual_norm(
                x, y, weight, shift, scale, offset=offset, impl=impl
            )
            assert torch.equal(total, expected)
            assert isinstance(normed, Tensor)
            assert_near(normed, adaln_modulate(total, shift, scale), dtype)
            if weight is not None:
                got = gated_residual(x, y, weight, offset=offset, impl=impl)
                assert torch.equal(got, expected)


def test_an_offset_of_another_width_is_refused() -> None:
    x, vector, offset = torch.zeros(2, 3, 8), torch.zeros(2, 8), torch.zeros(2, 8)
    with pytest.raises(ValueError, match=r"offset must be \[8\]"):
        adaln_modulate(x, vector, vector, offset=offset)
    with pytest.raises(ValueError, match=r"offset must be \[8\]"):
        residual_norm(x, x, vector, vector, vector, offset=offset)
    with pytest.raises(ValueError, match=r"offset must be \[8\]"):
        gated_residual(x, x, vector, offset=offset)
    with pytest.raises(ValueError, match="weight and bias"):
        adaln_modulate(x, vector, vector, affine=True)
