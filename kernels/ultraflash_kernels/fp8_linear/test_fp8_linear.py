"""Row-wise 8-bit layers: rounding against a table of all numbers, products against
float64, the kernel against both."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from ultraflash_kernels.dispatch import KERNEL_DTYPES, Impl, KernelUnsupportedError
from ultraflash_kernels.fp8_linear import (
    Fp8Linear,
    Fp8Rows,
    fp8_linear,
    quantise_gelu_rows,
    quantise_linears,
    quantise_rows,
    scaled_mm,
)
from ultraflash_kernels.testing import DEVICE, DTYPES

NUMBERS = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).double()
"""Everything from 0 to 448 that 8 bits hold."""
RELATIVE_ERROR = 2**-4
"""Half a step of three bits of mantissa."""


def rows(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Rows of very different magnitude."""
    draw = torch.Generator().manual_seed(seed)
    return (
        torch.randn(shape, generator=draw)
        * 10.0 ** torch.randn(*shape[:-1], 1, generator=draw)
    ).to(DEVICE, dtype)


def nearest(values: Tensor) -> Tensor:
    """The number of 8 bits next to each value, the even one of two: by search in the
    table of all."""
    magnitude = values.abs().reshape(-1, 1)
    distance = (magnitude - NUMBERS.to(values.device)).abs()
    odd = torch.arange(127, device=values.device) % 2
    best = (distance + odd * 1e-9 * magnitude.clamp(min=1e-3)).argmin(dim=1)
    return (NUMBERS.to(values.device)[best].view(values.shape) * values.sign()).to(
        torch.float64
    )


@pytest.mark.parametrize("dtype", KERNEL_DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (5, 37), (2, 3, 63), (2, 1000)], ids=str)
def test_a_row_is_scaled_to_the_largest_number_and_rounded_to_nearest(
    shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    x = rows(*shape, dtype=dtype)
    values, scales = quantise_rows(x, impl="reference")
    assert values.dtype == torch.float8_e4m3fn and scales.shape == (*shape[:-1], 1)
    torch.testing.assert_close(scales, x.float().abs().amax(-1, keepdim=True) / 448)
    assert (values.float().abs().amax(-1) == 448).all()
    assert torch.equal(values.double(), nearest((x.float() / scales).double()))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (5, 37), (2, 3, 63), (2, 1000)], ids=str)
def test_the_kernel_equals_the_definition(
    shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    x = rows(*shape, dtype=dtype)
    got, expected = quantise_rows(x, impl="triton"), quantise_rows(x, impl="reference")
    assert torch.equal(got.scales, expected.scales)
    exact, values = x.float() / expected.scales, expected.values.float()
    if DEVICE == "cuda":
        assert torch.equal(got.values.float(), values)
    # The interpreter rounds ties up, and loses a carry: what should become a power of
    # two comes out as half of it.
    carried = torch.frexp(values)[0].abs() == 0.5
    assert (carried | ((got.values.float() - exact).abs() == (values - exact).abs())).all()


@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_the_memory_around_strided_rows_is_not_read(impl: Impl) -> None:
    x = rows(3, 37)
    around = torch.full((8, 50), math.nan, device=DEVICE)
    around[1:7:2, 4:41] = x
    alone, inside = (
        quantise_rows(x, impl=impl),
        quantise_rows(around[1:7:2, 4:41], impl=impl),
    )
    assert torch.equal(alone.values.float(), inside.values.float()) and torch.equal(
        alone.scales, inside.scales
    )
    turned = quantise_rows(x.t().contiguous().t(), impl=impl)
    assert torch.equal(alone.values.float(), turned.values.float())


def test_a_row_of_zeros_stays_zero() -> None:
    for impl in ("reference", "triton"):
        values, scales = quantise_rows(torch.zeros(2, 5, device=DEVICE), impl=impl)
        assert (values.float() == 0).all() and (scales > 0).all()


@pytest.mark.parametrize("sizes", [(1, 1, 1), (37, 63, 5), (7, 1000, 3)], ids=str)
def test_products_are_those_of_the_numbers_that_are_stored(
    sizes: tuple[int, int, int],
) -> None:
    tokens, width, out = sizes
    x, weight, bias = (
        rows(tokens, width),
        quantise_rows(rows(out, width, seed=1)),
        rows(out, 1, seed=2)[:, 0],
    )
    quantised = quantise_rows(x)
    stored = (quantised.values.double() * quantised.scales) @ (
        weight.values.double() * weight.scales
    ).t() + bias
    for given in (x, quantised):
        got = fp8_linear(given, weight, bias, dtype=torch.float32, impl="reference")
        torch.testing.assert_close(
            got.double(), stored, rtol=1e-5, atol=1e-4 * float(stored.abs().max())
        )
    assert fp8_linear(quantised, weight).dtype == torch.bfloat16
    assert fp8_linear(x.half(), weight).dtype == torch.float16


def test_the_error_of_a_layer_is_that_of_three_bits() -> None:
    x, weight = torch.randn(64, 512, device=DEVICE), torch.randn(32, 512, device=DEVICE)
    exact = x.double() @ weight.double().t()
    got = fp8_linear(x, quantise_rows(weight), impl="reference").double()
    assert ((got - exact).norm() / exact.norm()) < RELATIVE_ERROR


@pytest.mark.skipif(DEVICE != "cpu", reason="on a GPU the layer runs it by itself")
def test_the_library_call_gets_its_operands_as_it_wants_them() -> None:
    """A CPU knows the call too, so its argument order, layout and scales are checked
    without a GPU."""
    x, weight = quantise_rows(rows(3, 5, 32, seed=3)), quantise_rows(rows(48, 32, seed=4))
    bias = rows(48, 1, seed=5)[:, 0].bfloat16()
    try:
        got = scaled_mm.linear(*x, *weight, bias, torch.bfloat16, True)
    except (RuntimeError, NotImplementedError) as error:
        pytest.skip(f"this torch has no row-wise product on a CPU: {error}")
    expected = fp8_linear(x, weight, bias, impl="reference")
    torch.testing.assert_close(
        got, expected, rtol=1.6e-2, atol=1e-2 * float(expected.abs().max())
    )


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [1, 37, 1000])
def test_the_product_on_a_gpu_equals_the_definition(tokens: int) -> None:
    x, weight = (
        rows(tokens, 1536, dtype=torch.bfloat16),
        quantise_rows(rows(512, 1536, seed=1)),
    )
    bias = rows(512, 1, seed=2)[:, 0].bfloat16()
    got, expected = (
        fp8_linear(x, weight, bias, impl=impl) for impl in ("scaled_mm", "reference")
    )
    torch.testing.assert_close(
        got, expected, rtol=3.2e-2, atol=3.2e-2 * float(expected.abs().max())
    )


def test_asking_for_what_cannot_run_says_why() -> None:
    weight = quantise_rows(torch.ones(5, 3, device=DEVICE))
    with pytest.raises(KernelUnsupportedError, match="multiples of 16, got 3 and 5"):
        fp8_linear(torch.ones(2, 3, device=DEVICE), weight, impl="scaled_mm")
    with pytest.raises(KernelUnsupportedError, match="NVIDIA GPU"):
        fp8_linear(torch.ones(2, 16), quantise_rows(torch.ones(16, 16)), impl="scaled_mm")
    with pytest.raises(ValueError, match="bias"):
        fp8_linear(torch.ones(2, 3, device=DEVICE), weight, torch.ones(3, device=DEVICE))
    with pytest.raises(ValueError, match="bias"):
        fp8_linear(torch.ones(2, 4, device=DEVICE), weight)
    with pytest.raises(ValueError, match="must be floats"):
        quantise_rows(torch.ones(3, dtype=torch.int32))


class Network(nn.Module):
    """Layers of every kind that must, or must not, be replaced."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(32, 32)
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"q": nn.Linear(32, 32, bias=False)}) for _ in range(2)
        )
        self.odd = nn.Linear(32, 7)
        self.head = nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = x + block["q"](x)  # pyright: ignore[reportIndexIssue]
        return self.head(x)


def test_layers_are_replaced_but_for_those_to_keep() -> None:
    network = Network()
    plain = copy.deepcopy(network)
    assert quantise_linears(network, keep=("head", "em*")) == ("blocks.0.q", "blocks.1.q")
    assert (
        type(network.head) is nn.Linear
        and type(network.odd) is nn.Linear
        and type(network.embed) is nn.Linear
    )
    x = torch.randn(9, 32)
    exact = plain(x)
    assert 0 < float(((network(x) - exact).norm() / exact.norm()).detach()) < RELATIVE_ERROR
    with pytest.raises(ValueError, match="no linear layer matches 'tail"):
        quantise_linears(Network(), keep=("tail",))


def test_a_change_of_dtype_leaves_8_bit_weights_alone_and_they_save_and_load() -> None:
    layer = Fp8Linear.of(nn.Linear(32, 16))
    before = layer.rows
    layer.to(torch.bfloat16)
    assert torch.equal(layer.rows.values.float(), before.values.float())
    assert torch.equal(layer.rows.scales, before.scales)
    assert layer(torch.ones(3, 32, dtype=torch.bfloat16)).dtype == torch.bfloat16
    other = Fp8Linear.of(nn.Linear(32, 16))
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other.rows.scales, before.scales)
    assert layer(Fp8Rows(*quantise_rows(torch.ones(3, 32)))).shape == (3, 16)


def test_a_layer_compiles_into_one_graph() -> None:
    layer, x = Fp8Linear.of(nn.Linear(32, 16).to(DEVICE)), torch.randn(3, 32, device=DEVICE)
    assert torch.equal(torch.compile(layer, backend="eager", fullgraph=True)(x), layer(x))

    def scales(x: Tensor) -> Tensor:
        return quantise_rows(x, impl="triton").scales

    assert torch.equal(torch.compile(scales, backend="eager", fullgraph=True)(x), scales(x))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(5, 37), (2, 3, 1000)], ids=str)
def test_rows_of_gelu_are_quantised_without_a_pass_between(
    shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    x = 3 * rows(*shape, dtype=dtype) / 10
    given = torch.nn.functional.gelu(x, approximate="tanh")
    expected = quantise_rows(given, impl="reference")
    direct = quantise_gelu_rows(x, impl="reference")
    assert torch.equal(direct.values.float(), expected.values.float())
    got = quantise_gelu_rows(x, impl="triton")
    torch.testing.assert_close(got.scales, expected.scales, rtol=2e-3, atol=1e-12)
    near = expected.values.float()
    # The interpreter loses a carry into the exponent: what should become a power of two
    # comes out as half of it.
    carried = torch.frexp(near)[0].abs() == 0.5
    bound = near.abs() / 8 + 2**-9
    assert (carried | ((got.values.float() - near).abs() <= bound)).all()
