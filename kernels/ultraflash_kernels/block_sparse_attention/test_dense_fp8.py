"""Dense attention in 8 bits: near attention that is not, from parts of larger buffers,
refusals."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from ultraflash_kernels import dispatch
from ultraflash_kernels.block_lists import BlockLists
from ultraflash_kernels.block_sparse_attention import (
    block_list_attention_fp8,
    dense_attention,
    dense_attention_fp8,
)
from ultraflash_kernels.dispatch import KernelUnsupportedError
from ultraflash_kernels.fp8_linear import Fp8Rows, quantise_rows
from ultraflash_kernels.testing import DEVICE

CAPACITY = 160
"""Tokens of the buffers for keys and values."""


def filled(rows: Fp8Rows, *, turned: bool = False) -> Fp8Rows:
    """Return the same rows as the first ones of a buffer, the others NaN."""
    parts: list[Tensor] = []
    for x in rows:
        buffer = x.new_full((*x.shape[:2], CAPACITY, x.shape[3]), math.nan)
        buffer[:, :, : x.shape[2]] = x
        part = buffer.mT.contiguous() if turned else buffer
        parts.append(part[..., : x.shape[2]] if turned else part[:, :, : x.shape[2]])
    return Fp8Rows(*parts)


def case(
    width: int = 32, queries: int = 37, keys: int = 101, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, and keys and values of uneven sizes."""
    draw = torch.Generator().manual_seed(width)
    q, k, v = (torch.randn(2, 3, n, width, generator=draw) for n in (queries, keys, keys))
    v = v * 4.0 ** torch.randn(2, 3, keys, 1, generator=draw)
    return q.to(DEVICE, dtype), k.to(DEVICE, dtype), v.to(DEVICE, dtype)


def in_8_bits(q: Tensor, k: Tensor, v: Tensor) -> tuple[Fp8Rows, Fp8Rows, Fp8Rows]:
    rows = [quantise_rows(x, impl="reference") for x in (q, k, v)]
    return rows[0], filled(rows[1]), filled(rows[2], turned=True)


def test_it_is_near_attention_in_16_bits_and_reads_only_the_keys_that_are_there() -> None:
    q, k, v = case()
    found = dense_attention_fp8(*in_8_bits(q, k, v), dtype=q.dtype, impl="reference")
    exact = dense_attention(q, k, v, impl="reference")
    assert found.dtype == q.dtype and found.shape == q.shape
    assert 0 < float((found - exact).norm() / exact.norm()) < 0.1
    assert (
        dense_attention_fp8(*in_8_bits(q, k, v), impl="reference").dtype == torch.bfloat16
    )


@pytest.mark.parametrize(
    ("width", "queries", "keys", "dtype"),
    [
        pytest.param(128, 130, 144, torch.float16, id="heads as published"),
        pytest.param(32, 37, 101, torch.float32, id="one step and a part"),
        pytest.param(64, 128, 128, torch.float32, id="whole steps"),
        pytest.param(24, 5, 3, torch.float32, id="less than a step"),
    ],
)
def test_the_kernel_is_near_the_reference(
    width: int, queries: int, keys: int, dtype: torch.dtype
) -> None:
    """Buffers are NaN behind the keys, and tiles end within them."""
    rows = in_8_bits(*case(width, queries, keys, dtype))
    found, expected = (
        dense_attention_fp8(*rows, dtype=dtype, impl=impl).double()
        for impl in ("triton", "reference")
    )
    assert found.shape == expected.shape
    assert found.stride(1) < found.stride(2), "heads of a token are adjacent"
    assert float((found - expected).norm() / expected.norm()) < 0.04, (
        "weights of three bits of mantissa"
    )


def test_the_kernel_for_dense_attention_computes_what_the_one_for_lists_does() -> None:
    """A list of all blocks is dense attention; a step of 64 keys has the same scale."""
    q, k, v = (quantise_rows(x, impl="reference") for x in case(32, 64, 128))
    dense = dense_attention_fp8(q, k, v.turned(), dtype=torch.float32, impl="triton")

    def blocks(rows: Fp8Rows) -> Fp8Rows:
        return Fp8Rows(*(x.unflatten(2, (-1, 64)) for x in rows))

    every = BlockLists.from_mask(torch.ones(2, 3, 1, 2, dtype=torch.bool, device=DEVICE))
    listed = block_list_attention_fp8(
        blocks(q),
        blocks(k),
        blocks(v).turned(),
        every,
        dtype=torch.float32,
        impl="triton",
    )
    torch.testing.assert_close(dense, listed.flatten(2, 3), rtol=0, atol=2e-2)


def test_sums_over_many_keys_lose_nothing_to_units_that_add_few_bits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Matrix units of compute capability 9.0 add products in 8 bits with 14 bits of
    mantissa, cut off; here with 8, so that 2,048 keys suffice. Equal keys give the mean
    of values, whatever their number."""
    keys = 2048 if DEVICE == "cpu" else 32768
    if DEVICE == "cpu":
        from triton.runtime import interpreter

        exact = interpreter.InterpreterBuilder.create_dot

        def coarse(self: Any, *given: Any) -> Any:
            done = exact(self, *given)
            done.data = (done.data.view("int32") & -(1 << 16)).view("float32")
            return done

        monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", coarse)
    q, k = (torch.zeros(1, 1, n, 32, device=DEVICE) for n in (16, keys))
    v = 1 + torch.rand(k.shape, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    rows = [quantise_rows(x, impl="reference") for x in (q, k, v)]
    given = (rows[0], rows[1], rows[2].turned())
    found = dense_attention_fp8(*given, dtype=torch.float32, impl="triton")
    torch.testing.assert_close(
        found, v.mean(2, keepdim=True).expand_as(found), rtol=0.02, atol=0
    )


def test_rows_of_other_layouts_are_refused() -> None:
    q, k, v = in_8_bits(*case())
    with pytest.raises(ValueError, match=r"v must be float8_e4m3fn \[B, H, D, tokens\]"):
        dense_attention_fp8(q, k, k)
    with pytest.raises(ValueError, match="q must be float8_e4m3fn"):
        dense_attention_fp8(Fp8Rows(q.values.float(), q.scales), k, v)
    with pytest.raises(ValueError, match=r"k must be .* with torch.float32 "):
        dense_attention_fp8(q, Fp8Rows(k.values, k.scales[:, :, :1]), v)
    with pytest.raises(ValueError, match="impl must be"):
        dense_attention_fp8(q, k, v, impl="fast")  # pyright: ignore[reportArgumentType]


def test_an_explicit_choice_never_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = in_8_bits(*case())
    with pytest.raises(
        KernelUnsupportedError, match="dense_attention_fp8: the kernel for Hop"
    ):
        dense_attention_fp8(*rows, impl="hopper")
    with pytest.raises(KernelUnsupportedError, match="results are float32"):
        dense_attention_fp8(*rows, dtype=torch.int8, impl="triton")
    with pytest.raises(KernelUnsupportedError, match="144 wide, expected at most 128"):
        dense_attention_fp8(*in_8_bits(*case(144)), impl="triton")
    tight = (*rows[:2], Fp8Rows(rows[2].values.contiguous(), rows[2].scales))
    with pytest.raises(KernelUnsupportedError, match="start a buffer of a multiple of 16"):
        dense_attention_fp8(*tight, dtype=torch.float32, impl="triton")
    monkeypatch.setattr(dispatch, "device_refusal", lambda _device: "there is none.")
    with pytest.raises(KernelUnsupportedError, match="there is none"):
        dense_attention_fp8(*rows, dtype=torch.float32, impl="triton")
