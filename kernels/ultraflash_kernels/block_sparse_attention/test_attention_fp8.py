"""Attention in 8 bits: near attention that is not, the kernel near the reference,
padding, refusals."""

import math

import pytest
import torch
from torch import Tensor

from ultraflash_kernels import dispatch
from ultraflash_kernels.block_lists import BlockLists
from ultraflash_kernels.block_sparse_attention import (
    block_list_attention,
    block_list_attention_fp8,
)
from ultraflash_kernels.dispatch import Impl, KernelUnsupportedError
from ultraflash_kernels.fp8_linear import Fp8Rows, quantise_rows
from ultraflash_kernels.testing import DEVICE

FILL = 2


def in_8_bits(q: Tensor, k: Tensor, v: Tensor) -> tuple[Fp8Rows, Fp8Rows, Fp8Rows]:
    """Quantise each token of each head, values turned."""
    q_rows, k_rows, v_rows = (quantise_rows(x, impl="reference") for x in (q, k, v))
    return q_rows, k_rows, v_rows.turned()


def ring_of(rows: Fp8Rows, capacity: int) -> Fp8Rows:
    """Put the first ``FILL`` blocks into a ring whose unused places are NaN."""
    parts: list[Tensor] = []
    for x in rows:
        ring = x.new_full((*x.shape[:2], capacity, *x.shape[3:]), math.nan)
        ring[:, :, :FILL] = x[:, :, :FILL]
        parts.append(ring)
    return Fp8Rows(*parts)


def new_of(rows: Fp8Rows) -> Fp8Rows:
    return Fp8Rows(*(x[:, :, FILL:] for x in rows))


def attended(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, *, impl: Impl = "reference"
) -> Tensor:
    """Attend in 8 bits, with the first ``FILL`` blocks of k and v in a ring."""
    q_rows, k_rows, v_rows = in_8_bits(q, k, v)
    return block_list_attention_fp8(
        q_rows,
        new_of(k_rows),
        new_of(v_rows),
        BlockLists.from_mask(mask),
        ring=(ring_of(k_rows, 5), ring_of(v_rows, 5)),
        fill=FILL,
        dtype=q.dtype,
        impl=impl,
    )


def case(
    tokens: int, width: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Blocks of tokens of uneven size, some of them padding; a row that lists nothing,
    and one that lists all."""
    draw = torch.Generator().manual_seed(tokens)
    q, k, v = (torch.randn(1, 2, n, tokens, width, generator=draw) for n in (2, 4, 4))
    v = v * 4.0 ** torch.randn(1, 2, 4, tokens, 1, generator=draw)
    for x in (k, v):
        x[:, :, 1, tokens // 2 :] = 0.0
        x[:, :, 3] = 0.0
    mask = torch.tensor([[0, 0, 0, 0], [1, 1, 1, 1]]).bool().expand(1, 2, 2, 4)
    return q.to(DEVICE, dtype), k.to(DEVICE, dtype), v.to(DEVICE, dtype), mask.to(DEVICE)


def off(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize(
    ("tokens", "width", "dtype"),
    [
        pytest.param(128, 128, torch.float16, id="as published"),
        pytest.param(32, 24, torch.float32, id="two blocks a step"),
        pytest.param(37, 16, torch.float32, id="odd"),
    ],
)
def test_the_kernel_is_near_the_definition_and_both_near_16_bits(
    tokens: int, width: int, dtype: torch.dtype
) -> None:
    q, k, v, mask = case(tokens, width, dtype)
    by_kernel, defined = attended(q, k, v, mask, impl="triton"), attended(q, k, v, mask)
    assert by_kernel.dtype == dtype and (by_kernel[:, :, 0] == 0).all(), (
        "a row without blocks gives zeros"
    )
    assert off(by_kernel, defined) < 0.04, "weights of three bits of mantissa"
    exact = block_list_attention(q, k, v, BlockLists.from_mask(mask), impl="reference")
    assert 0 < off(defined, exact) < 0.1


@pytest.mark.parametrize("impl", ["triton", "reference"])
@pytest.mark.parametrize(("tokens", "width"), [(64, 16), (37, 16)], ids=["even", "odd"])
def test_where_a_block_lies_changes_no_bit(impl: Impl, tokens: int, width: int) -> None:
    """Each block is quantised once, with its group; reading it back from a ring gives
    the same bits as quantising all blocks again for every group."""
    q, k, v, mask = case(tokens, width, torch.float32)
    q_rows, k_rows, v_rows = in_8_bits(q, k, v)
    lists = BlockLists.from_mask(mask)
    whole = block_list_attention_fp8(
        q_rows, k_rows, v_rows, lists, dtype=q.dtype, impl=impl
    )
    assert torch.equal(attended(q, k, v, mask, impl=impl), whole)


def test_rows_of_other_layouts_are_refused() -> None:
    q, k, v, mask = case(16, 16, torch.float16)
    rows, lists = in_8_bits(q, k, v), BlockLists.from_mask(mask)
    with pytest.raises(ValueError, match="values must be float8_e4m3fn"):
        block_list_attention_fp8(rows[0], rows[1], rows[1], lists)
    with pytest.raises(ValueError, match="queries and keys must be float8_e4m3fn"):
        block_list_attention_fp8(Fp8Rows(q, rows[0].scales), *rows[1:], lists)
    apart = Fp8Rows(*(x.transpose(1, 2).contiguous().transpose(1, 2) for x in rows[1]))
    given = (rows[0], apart, rows[2], lists)
    with pytest.raises(KernelUnsupportedError, match="blocks of a head must be adjacent"):
        block_list_attention_fp8(*given, impl="triton")
    assert torch.equal(
        block_list_attention_fp8(*given), block_list_attention_fp8(*rows, lists)
    )


def test_what_cannot_run_in_8_bits_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v, mask = case(16, 144, torch.float16)
    with pytest.raises(KernelUnsupportedError, match="144 wide, expected at most 128"):
        attended(q, k, v, mask, impl="triton")
    monkeypatch.setattr(dispatch, "device_refusal", lambda _device: "there is none.")
    q, k, v, mask = case(16, 16, torch.float16)
    with pytest.raises(KernelUnsupportedError, match="there is none"):
        attended(q, k, v, mask, impl="triton")
