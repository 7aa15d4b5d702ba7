"""Attention to a prompt: reference against a loop in float64, kernel against
reference."""

import math

import pytest
import torch
from torch import Tensor

from ultraflash_kernels.dispatch import KernelUnsupportedError
from ultraflash_kernels.fp8_linear import quantise_rows
from ultraflash_kernels.testing import DEVICE, DTYPES, TOLERANCE
from ultraflash_kernels.text_attention import kernel, text_attention, text_attention_fp8


def inputs(
    batch: int, tokens: int, heads: int, keys: int, depth: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return queries, weight, keys, values and weights of keys, one of them absent."""
    draw = torch.Generator().manual_seed(3)
    shapes = (
        (batch, tokens, heads * depth),
        (heads * depth,),
        *2 * ((batch, heads, keys, depth),),
    )
    q, weight, k, v = (
        torch.randn(shape, generator=draw).to(DEVICE, dtype) for shape in shapes
    )
    log_weights = torch.randn(keys, generator=draw)
    if keys > 1:
        log_weights[-1] = -math.inf
    return q + 1, weight, k, v, log_weights.to(DEVICE)


def exactly(
    q: Tensor, weight: Tensor, k: Tensor, v: Tensor, log_weights: Tensor | None
) -> Tensor:
    wide = q.double()
    normed = (
        (wide / (wide.square().mean(-1, keepdim=True) + 1e-6).sqrt()).to(q.dtype).double()
    )
    normed = (normed * weight.double()).unflatten(-1, (k.shape[1], -1))
    scores = torch.einsum("bthd,bhkd->bhtk", normed, k.double()) / math.sqrt(k.shape[-1])
    scores = scores if log_weights is None else scores + log_weights.double()
    return torch.einsum("bhtk,bhkd->bthd", scores.softmax(-1), v.double()).flatten(2)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("weighted", [True, False], ids=["weighted", "equal"])
@pytest.mark.parametrize(
    "sizes",
    [
        (1, 1, 1, 1, 2),
        (2, 37, 3, 63, 16),
        (1, 70, 2, 130, 24),
        (1, 5, 5, 64, 128),
        (2, 0, 2, 3, 8),
    ],
    ids=str,
)
def test_kernel_and_reference_attend_to_weighted_keys(
    sizes: tuple[int, int, int, int, int], weighted: bool, dtype: torch.dtype
) -> None:
    *given, log_weights = inputs(*sizes, dtype)
    weights = log_weights if weighted else None
    expected = exactly(*given, log_weights=weights)
    for impl in ("reference", "triton"):
        got = text_attention(*given, log_weights=weights, impl=impl)
        assert got.dtype == dtype and got.shape == given[0].shape and got.is_contiguous()
        assert (
            (got.double() - expected).abs() <= 6 * TOLERANCE[dtype] * (1 + expected.abs())
        ).all()


@pytest.mark.parametrize("few", [True, False], ids=["few tokens", "many tokens"])
def test_every_tiling_gives_the_same(monkeypatch: pytest.MonkeyPatch, few: bool) -> None:
    given = inputs(1, 20, 6, 70, 16, torch.float16)
    expected = text_attention(*given, impl="reference")
    monkeypatch.setattr(kernel, "MANY_TOKENS", 100 if few else 20)
    for block in (32, 128):
        monkeypatch.setattr(
            kernel, "tiles", lambda *_, block=block: kernel.Tiles(16, block, 64, 4, 2)
        )
        torch.testing.assert_close(
            text_attention(*given, impl="triton"), expected, atol=4e-3, rtol=0
        )


@pytest.mark.parametrize("tokens", [37, 1])
def test_8_bits_are_those_of_quantising_afterwards(
    monkeypatch: pytest.MonkeyPatch, tokens: int
) -> None:
    monkeypatch.setattr(kernel, "PROCESSORS", 1)  # programs take several tiles
    monkeypatch.setattr(kernel, "tiles", lambda *_: kernel.Tiles(16, 64, 32, 4, 2))
    given = inputs(2, tokens, 2, 70, 16, torch.float16)
    for impl in ("reference", "triton"):
        small = text_attention_fp8(*given, impl=impl)
        wanted = quantise_rows(text_attention(*given, impl=impl), impl="reference")
        assert small.values.view(torch.uint8).equal(wanted.values.view(torch.uint8))
        assert small.scales.equal(wanted.scales)


def test_tensors_may_lie_apart_and_what_is_between_is_not_read() -> None:
    q, weight, k, v, log_weights = inputs(2, 9, 2, 5, 16, torch.float32)
    expected = text_attention(q, weight, k, v, log_weights, impl="reference")
    wide = torch.full((2, 9, 50), math.nan, device=DEVICE)
    wide[..., 9:41] = q
    apart = [torch.full((2, 5, 3, 16), math.nan, device=DEVICE) for _ in "kv"]
    for each, given in zip(apart, (k, v), strict=True):
        each[:, :, 1:] = given.transpose(1, 2)
    k, v = (each[:, :, 1:].transpose(1, 2) for each in apart)
    got = text_attention(wide[..., 9:41], weight, k, v, log_weights, impl="triton")
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


def test_a_key_with_a_weight_stands_for_equal_keys() -> None:
    q, weight, k, v, _ = inputs(1, 7, 2, 4, 16, torch.float32)
    many = [torch.cat([x, x[:, :, -1:].expand(-1, -1, 9, -1)], dim=2) for x in (k, v)]
    expected = text_attention(q, weight, *many, impl="reference")
    log_weights = torch.tensor([0.0, 0.0, 0.0, math.log(10)], device=DEVICE)
    for impl in ("reference", "triton"):
        got = text_attention(q, weight, k, v, log_weights, impl=impl)
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


def test_the_reference_is_differentiable_and_auto_takes_it() -> None:
    given = [x.double().requires_grad_() for x in inputs(1, 3, 2, 4, 4, torch.float32)[:4]]
    log_weights = torch.tensor([0.0, 1.0, 0.0, -math.inf], device=DEVICE)
    assert torch.autograd.gradcheck(
        lambda *xs: text_attention(*xs, log_weights=log_weights), given
    )
    with pytest.raises(KernelUnsupportedError, match="gradients"):
        text_attention(*(x.float() for x in given), log_weights=log_weights, impl="triton")


def test_what_does_not_fit_is_refused() -> None:
    q, weight, k, v, log_weights = inputs(1, 3, 2, 4, 8, torch.float32)
    for wrong in (
        (q, weight[1:], k, v),
        (q[..., 1:], weight, k, v),
        (q, weight, k, v[:, :, 1:]),
    ):
        with pytest.raises(ValueError, match=r"weight \[heads \* D\] and k, v"):
            text_attention(*wrong)
    for weights in (log_weights[1:], log_weights.double()):
        with pytest.raises(ValueError, match=r"log_weights must be float32 \[4\]"):
            text_attention(q, weight, k, v, weights)
    q, weight, k, v, _ = inputs(1, 3, 1, 4, 256, torch.float32)
    with pytest.raises(KernelUnsupportedError, match="at most 128 channels, got 256"):
        text_attention(q, weight, k, v, impl="triton")


def test_shapes_are_known_without_storage() -> None:
    q, k = (torch.empty(shape, device="meta") for shape in ((1, 5, 32), (1, 2, 7, 16)))
    found = torch.ops.ultraflash.text_attention_fp8(q, q[0, 0], k, k, None, 1e-6)
    assert [list(x.shape) for x in found] == [[1, 5, 32], [1, 5, 1]]
    assert (
        torch.ops.ultraflash.text_attention(q, q[0, 0], k, k, None, 1e-6).shape == q.shape
    )
